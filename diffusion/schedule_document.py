"""A noise schedule in `genbo.json`: its family, its parameters by name, and its ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from genbo.diffusion.kinds import class_of, kind_of, kinds
from genbo.diffusion.refused import Refused
from genbo.schedules.link import Bounded
from genbo.schedules.schedule import Family

if TYPE_CHECKING:
    from genbo.schedules.schedule import Schedule

SCHEDULES = "genbo.schedules"
KEYS = ("family", "parameters", "zero_terminal")  # what stands beside them are options of the family


def schedule_document(schedule: Schedule) -> dict[str, Any]:
    """A schedule as a job has it: its family, and each parameter by name."""
    values = {name: value[0].tolist() for name, value in schedule.values.items()}
    links = schedule.family.links
    parameters = {name: v if not isinstance(links[name], Bounded) else v[0] for name, v in values.items()}
    family: Any = schedule.family
    options = {f.name: vars(family)[f.name] for f in fields(family) if f.name not in links}
    return {
        "family": kind_of(schedule.family),
        "parameters": parameters,
        **options,
        "zero_terminal": schedule.zero_terminal,
    }


def schedule_from(document: Mapping[str, object]) -> Schedule | None:
    """What `schedule_document` wrote, as a schedule; None where a folder has none. `Refused` where it cannot be one."""
    from genbo.schedules.schedule import schedule_of

    said = document.get("noise_schedule")
    if not isinstance(said, dict):
        return None
    kind, parameters = said.get("family"), said.get("parameters")
    family, more = _family(kind), {name: value for name, value in said.items() if name not in KEYS}
    if family is None or not isinstance(parameters, dict):
        known = ", ".join(name for name in kinds(SCHEDULES) if _family(name))
        raise Refused(f"genbo.json: noise_schedule has no family {kind!r} with parameters; there are {known}")
    try:
        made = family(**parameters, **more)
        for name, numbers in made.starts().items():
            if (why := made.links[name].why_not(numbers)) is not None:
                raise ValueError(f"{name}: {why}")
    except (TypeError, ValueError) as problem:
        raise Refused(f"genbo.json: noise_schedule: {problem}") from problem
    return schedule_of(made, zero_terminal=bool(said.get("zero_terminal")))


def _family(kind: object) -> Any:
    """The family of that name, or None: the room also has files that are no family."""
    try:
        found = class_of(SCHEDULES, str(kind))
    except (KeyError, AttributeError):
        return None
    return found if Family in found.__mro__ else None

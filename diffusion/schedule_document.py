"""A noise schedule in `genbo.json`: its family, its parameters by name, and its ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from genbo.diffusion.kinds import class_of, kind_of, kinds
from genbo.diffusion.refused import Refused
from genbo.schedules.link import Bounded

if TYPE_CHECKING:
    from genbo.schedules.schedule import Schedule

SCHEDULES = "genbo.schedules"


def schedule_document(schedule: Schedule) -> dict[str, Any]:
    """A schedule as a job has it: its family, and each parameter by name."""
    values = {name: value[0].tolist() for name, value in schedule.values.items()}
    links = schedule.family.links
    parameters = {name: v if not isinstance(links[name], Bounded) else v[0] for name, v in values.items()}
    normalised = {"normalised": schedule.family.normalised} if hasattr(schedule.family, "normalised") else {}
    return {
        "family": kind_of(schedule.family),
        "parameters": parameters,
        **normalised,
        "zero_terminal": schedule.zero_terminal,
    }


def schedule_from(document: Mapping[str, Any]) -> Schedule | None:
    """What `schedule_document` wrote, as a schedule; None where a folder has none. `Refused` where it cannot be one."""
    from genbo.schedules.schedule import schedule_of

    said = document.get("noise_schedule")
    if not isinstance(said, dict):
        return None
    kind, parameters = said.get("family"), said.get("parameters")
    family, more = _family(kind), {"normalised": said["normalised"]} if "normalised" in said else {}
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
    return found if hasattr(found, "starts") else None

"""genbo schema: the JSON schema of a job, for editors; from the same options that the job is read with."""

from __future__ import annotations

import json
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt, MinLen
from pydantic import BaseModel, Field, create_model

from genbo.cli.job import catalog
from genbo.cli.job.job import BudgetJob
from genbo.diffusion.data import Data
from genbo.diffusion.kinds import class_name

DIALECT = "http://json-schema.org/draft-07/schema#"  # what editors' YAML servers read
Prompts = str | Annotated[list[str], MinLen(1)]
LEVEL = r"^\s*start(\s*[-+]\s*[0-9.]+([eE][-+]?[0-9]+)?)?\s*$"


def run() -> int:
    """Print it."""
    print(json.dumps(job_schema(), indent=2, ensure_ascii=False))
    return 0


def job_schema() -> dict[str, Any]:
    """A schema in draft 7: `definitions` rather than `$defs`, and no `prefixItems`."""
    schema = job_model().model_json_schema(ref_template="#/definitions/{model}")
    schema["definitions"] = schema.pop("$defs")
    return {"$schema": DIALECT, "title": "A genbo job", **_without_titles(schema)}


def job_model() -> type[BaseModel]:
    """A model of the job as it may be written, with all its short forms."""
    reward = _room("rewards", weight=(float, 1.0))
    keep = _room("rewards", at_least=(float | Annotated[str, Field(pattern=LEVEL)], ...))
    judge = _room("rewards")
    evaluate = _model(
        "Evaluate",
        prompts=(Prompts | None, None),
        samples=(Annotated[int, Ge(2)], 128),
        judges=(judge | list[judge] | None, None),  # type: ignore[valid-type]
    )
    return _model(
        "Job",
        version=(Literal[1], ...),
        model=(_models(), Field(default_factory=dict)),
        prompts=(Prompts | None, None),  # needed by all but a network of one's own
        tune=(_tune(), ...),
        reward=(reward | Annotated[list[reward], MinLen(1)], ...),  # type: ignore[valid-type]
        data=(str | catalog.nested(Data) | None, None),
        lower=(_lower(reward) | None, None),
        finetune=(Literal["auto", "none"] | _finetune(), "auto"),
        keep=(keep | list[keep] | None, None),  # type: ignore[valid-type]
        estimator=(_room("estimators"), "auto"),
        optimizer=(_room("optimizers"), "adam"),
        budget=(BudgetJob, Field(default_factory=dict)),
        evaluate=(evaluate, Field(default_factory=dict)),
        seed=(Annotated[int, Ge(0), Lt(2**63)], 0),
        output=(Annotated[str, MinLen(1)], "runs/tune"),
    )


def _lower(reward: Any) -> Any:
    """With a reward of its own, or, of one that trains the network on data, without."""
    own = {"reward": (reward | Annotated[list[reward], MinLen(1)], ...)}
    kinds = {kind: hasattr(catalog.options_of("lower", kind), "trains") for kind in catalog.kinds("lower")}
    alone = [kind for kind, trains in kinds.items() if trains]
    return reduce(or_, [Literal[tuple(alone)], *(_kind("lower", k, {} if k in alone else own) for k in kinds)])


def _finetune() -> type[BaseModel]:
    factors = list[Annotated[float, Gt(0)]]
    return create_model("Weights", __base__=catalog.model_of("lower", "finetune"), also=(factors, [0.1, 10.0]))


def _models() -> Any:
    numbers = float | list[float]
    guidance = numbers | _room("guidance")
    batch = Literal["auto"] | Annotated[int, Ge(1)]
    own = {"sampler": (_room("samplers"), "ddim"), "guidance": (guidance, 5.0), "batch": (batch, "auto")}
    return _room("models", short=False, **own)


def _room(room: str, *, short: bool = True, **own: Any) -> Any:
    """One of the kinds of a room, by name (where all options may be left out) or as a mapping of them."""
    kinds = [_kind(room, kind, own) for kind in catalog.kinds(room)]
    names = [kind for kind in catalog.kinds(room) if not any(o.required for o in catalog.options(room, kind))]
    needs_more = any(default is ... for _, default in own.values())
    short_form = [Literal[tuple(names)]] if short and names and not needs_more else []
    return reduce(or_, [*short_form, *kinds])


def _kind(room: str, kind: str, own: dict[str, Any]) -> type[BaseModel]:
    base = catalog.model_of(room, kind)
    name = "".join(map(class_name, (room, kind))) + "".join(part.capitalize() for part in own)
    entries: dict[str, Any] = {
        "kind": (Literal[kind], kind if catalog.DEFAULTS.get(room) == kind else ...),
        **own,
    }
    return create_model(name, __base__=base, __doc__=catalog.help_line(room, kind), **entries)


def _tune() -> type[BaseModel]:
    """A key for each tunable, and `guidance.<option>` for each number of any rule."""
    entries: dict[str, Any] = {}
    for name in catalog.kinds("tunables"):
        model = catalog.model_of("tunables", name)
        entries[name] = (model | None, None)
    rules = [catalog.hints_of(catalog.options_of("guidance", kind)) for kind in catalog.kinds("guidance")]
    numbers = {name for hints in rules for name, hint in hints.items() if catalog.words(hint).startswith("number")}
    guidance = catalog.model_of("tunables", "guidance")
    for option in sorted(numbers - {"weight"}):
        entries[f"guidance_{option}"] = (guidance | None, Field(default=None, alias=f"guidance.{option}"))
    return _model("Tune", **entries)


def _model(name: str, **entries: Any) -> type[BaseModel]:
    return create_model(name, __config__=catalog.STRICT, **entries)


def _without_titles(value: Any) -> Any:
    """pydantic titles every field after its own name, which says nothing."""
    match value:
        case dict():
            return {k: _without_titles(v) for k, v in value.items() if not (k == "title" and isinstance(v, str))}
        case list():
            return [_without_titles(item) for item in value]
    return value

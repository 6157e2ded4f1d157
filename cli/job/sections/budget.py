"""`budget`: how many samples and steps the tuning may take, and how long."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, Field

from genbo.bilevel.lower.reweight import Reweight
from genbo.cli.job import catalog
from genbo.cli.job.reader import Reader
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.sections.lower import trains
from genbo.cli.job.sections.model import MAX_STEPS
from genbo.cli.job.yaml_nodes import Node

MAX_SAMPLES = 1_000_000
ROUNDS = 4  # of a search for lambda, where the job does not give their number
FACTOR = r"^[0-9]+(\.[0-9]+)?x$"  # 1.5x
LATER = ("precision", "work")  # not written where they are not given, as jobs were written before there were any
OF_THE_LEVEL = ("samples", "pool")  # which a search for lambda has under `lower`


class BudgetJob(BaseModel):
    """`samples` a step; `steps`, `denoiser_calls`, `work` or `minutes`, whichever is reached first, ends the tuning.

    Without steps nothing is tuned, and the start is evaluated.

    `work` is for a search: image forwards, plus twice the backwards, after which no further candidate begins.

    With a `pool` the samples of all steps come from that many, in turn. With `lower:` a step is a round. A search for
    lambda with a `precision` like 1.5x begins with a smaller bank and ends as soon as both ends of lambda's 95 %
    interval are within this factor of it; `lower.samples` and `steps` still limit how much is drawn.
    """

    model_config = catalog.STRICT

    steps: Annotated[int, Ge(0), Lt(MAX_STEPS + 1)] = 20
    samples: Annotated[int, Ge(2), Lt(MAX_SAMPLES + 1)] = 64
    pool: Annotated[int, Ge(2), Lt(MAX_SAMPLES + 1)] | None = None
    denoiser_calls: Annotated[int, Ge(1)] | None = None
    work: Annotated[int, Ge(1)] | None = None
    minutes: Annotated[float, Gt(0)] | None = None
    precision: Annotated[str, Field(pattern=FACTOR)] | None = None

    @property
    def ratio(self) -> float | None:
        """The factor of `precision`, above 1."""
        return None if self.precision is None else float(self.precision.removesuffix("x"))


class BudgetSection(Section[BudgetJob]):
    key = "budget"

    def read(self, reader: Reader) -> BudgetJob | None:
        """With a search for lambda a step is a round of it, and how many samples it draws stands under `lower`."""
        node, lower = reader.at_or("budget", {}), reader.at("lower")
        found = reader.validated(BudgetJob, node)
        if found is not None and found.precision is not None:
            _precise(reader, node, lower, found)
        if found is None or lower is None or lower.value is None or trains(lower):
            return found
        assert isinstance(node.value, dict)
        for key in OF_THE_LEVEL:
            if key in node.value:
                message = "a search for lambda draws lower.samples a prompt; set that instead, and delete this"
                reader.note(node.value[key], message)
        return found if "steps" in node.value else found.model_copy(update={"steps": ROUNDS})

    def described(self) -> Entry:
        return BudgetJob, Field(default_factory=dict)

    def written(self, value: BudgetJob, level: Level) -> Any:
        unused: tuple[str, ...] = OF_THE_LEVEL if level.tilts else ()
        unused += tuple(key for key in LATER if getattr(value, key) is None)
        return {key: entry for key, entry in value.model_dump().items() if key not in unused}


def _differs(precision: Node | None) -> bool:
    """Whether `lower.precision` is there and not the default, which stands in every resolved job."""
    return precision is not None and precision.value != Reweight.precision


def _precise(reader: Reader, node: Node, lower: Node | None, found: BudgetJob) -> None:
    """Notes what is wrong with a precision."""
    assert isinstance(node.value, dict) and found.ratio is not None
    at = node.value["precision"]
    if found.ratio <= 1:
        reader.note(
            at, f"must be more than 1x, not {found.precision}: both ends of the interval within this factor of λ"
        )
    elif lower is None or lower.value is None or trains(lower):
        reader.note(
            at, "is for a search for lambda, whose bank can grow; set budget.steps and samples, and delete this"
        )
    elif isinstance(lower.value, dict) and _differs(lower.value.get("precision")):
        reader.note(at, "the precision is given twice, here and as lower.precision; delete one of them")


BUDGET = BudgetSection()

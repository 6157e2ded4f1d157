"""`budget`: how many samples and steps the tuning may take, and how long."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Gt, Lt
from pydantic import BaseModel, Field

from genbo.cli.job import catalog
from genbo.cli.job.reader import Reader
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.sections.lower import trains
from genbo.cli.job.sections.model import MAX_STEPS

MAX_SAMPLES = 1_000_000
ROUNDS = 4  # of a search for lambda, where the job does not give their number
OF_THE_LEVEL = ("samples", "pool")  # which a search for lambda has under `lower`


class BudgetJob(BaseModel):
    """`samples` a step; `steps`, `denoiser_calls` or `minutes`, whichever is reached first, ends the tuning.

    With a `pool` the samples of all steps come from that many, in turn. With `lower:` a step is a round.
    """

    model_config = catalog.STRICT

    steps: Annotated[int, Ge(1), Lt(MAX_STEPS + 1)] = 20
    samples: Annotated[int, Ge(2), Lt(MAX_SAMPLES + 1)] = 64
    pool: Annotated[int, Ge(2), Lt(MAX_SAMPLES + 1)] | None = None
    denoiser_calls: Annotated[int, Ge(1)] | None = None
    minutes: Annotated[float, Gt(0)] | None = None


class BudgetSection(Section[BudgetJob]):
    key = "budget"

    def read(self, reader: Reader) -> BudgetJob | None:
        """With a search for lambda a step is a round of it, and how many samples it draws stands under `lower`."""
        node, lower = reader.at_or("budget", {}), reader.at("lower")
        found = reader.validated(BudgetJob, node)
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
        unused = OF_THE_LEVEL if level.tilts else ()
        return {key: entry for key, entry in value.model_dump().items() if key not in unused}


BUDGET = BudgetSection()

"""`finetune`: the fine-tuning of the weights at the lambda that was found."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from annotated_types import Gt
from pydantic import BaseModel, SkipValidation, create_model

from genbo.bilevel.lower.finetune import Finetune
from genbo.cli.job import catalog
from genbo.cli.job.kind import FROZEN
from genbo.cli.job.reader import Reader, without
from genbo.cli.job.section import Entry, Level, Section
from genbo.cli.job.sections.lower import LOWER
from genbo.cli.job.sections.model import MODEL


class WeightsJob(BaseModel):
    """Fine-tuning at the lambda that was found, and at `also` times it for comparison."""

    model_config = FROZEN

    options: SkipValidation[Finetune]
    also: tuple[float, ...] = (0.1, 10.0)

    def document(self) -> dict[str, Any]:
        """As a job writes it."""
        return {**catalog.document_of("lower", self.options), "also": list(self.also)}


class FinetuneSection(Section[WeightsJob]):
    key = "finetune"
    optional = True

    def read(self, reader: Reader) -> WeightsJob | None:
        """`none`, or options; where it is not written, the usual ones for a model that has weights to tune."""
        node = reader.at("finetune")
        if node is None or node.value == "auto":
            return _usual(reader)
        if node.value == "none" or not reader.mapping(node, "steps: 300"):
            return None
        bare, also = without(node, "also")
        kind = reader.of_kind(bare, "lower", "finetune", also=("also",))
        factors = [0.1, 10.0] if also is None else also.plain()
        if not isinstance(factors, list) or not all(_is_factor(x) for x in factors):
            assert also is not None
            message = "must be a list of factors of lambda greater than 0 and other than 1, like [0.1, 10]"
            reader.note(also, message)
            return None
        return WeightsJob(options=kind.options, also=tuple(map(float, factors))) if kind else None

    def described(self) -> Entry:
        base, factors = catalog.model_of("lower", "finetune"), list[Annotated[float, Gt(0)]]
        weights = create_model("Weights", __base__=base, also=(factors, [0.1, 10.0]))
        return Literal["auto", "none"] | weights, "auto"

    def written(self, value: WeightsJob | None, level: Level) -> Any:
        if not level.tilts:
            return None
        return value.document() if value else "none"


def _usual(reader: Reader) -> WeightsJob | None:
    lower, model = LOWER.of(reader), MODEL.of(reader)
    tilted = lower is not None and lower.kind in ("reweight", "finetune")
    if not tilted or model is None or model.kind != "diffusers":
        return None
    same = lower.options if lower and isinstance(lower.options, Finetune) else Finetune()
    return WeightsJob(options=same)


def _is_factor(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf and value != 1


FINETUNE = FinetuneSection()

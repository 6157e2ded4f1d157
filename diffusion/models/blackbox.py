"""Any other diffusers pipeline, sampled by its own call: no gradients, and only guidance can be tuned.

What can be tuned of it is its guidance weight: one for all steps, or one a step where its call has
`callback_on_step_end`. The sampler's kind names the scheduler that is put into it, with the pipeline's own settings; a
flow model takes euler.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genbo.diffusion import pipeline_folder, scheduler_settings
from genbo.diffusion.kinds import kind_of
from genbo.diffusion.models.diffusers import Diffusers


@dataclass(frozen=True)
class Blackbox(Diffusers):
    """The options are those of `diffusers`, but for `distilled_guidance`: a pipeline's call has one guidance."""

    @property
    def differentiable(self) -> bool:
        return False

    @property
    def time_range(self) -> tuple[float, float] | None:
        return None

    @property
    def known_prompts(self) -> list[str] | None:
        return None

    def folder_mistakes(self, folder: Path) -> list[str]:
        return pipeline_folder.folder_mistakes(folder, self.variant, any_class=True)

    def family(self, pipeline: str) -> str:
        return "_blackbox"

    def misfits(self, sampler: Any, rule: Any, tuned: frozenset[str]) -> Iterator[tuple[str, str]]:
        wrong = scheduler_settings.undrawn(sampler)
        for said in [wrong] if wrong else self.undrawable(sampler):
            yield "sampler", said
        if kind_of(rule) != "plain":
            yield "guidance", "a black box guides by itself; write a number, or tune guidance"
        if strange := sorted(name for name in tuned if name != "guidance"):
            yield "tune", f"a black box can be tuned in guidance alone, not in {strange[0]}"
        if self.distilled_guidance is not None:
            yield "distilled_guidance", "a black box has one guidance; write model.guidance instead"

    def _unfollowed(self, config: dict[str, Any], sampler: object) -> list[str]:
        """Every setting is followed: diffusers' own scheduler draws."""
        return []

    @property
    def _below_1(self) -> str:
        return "guidance at 1 and below is none: a black box draws by diffusers' own call, which switches it off there"

"""A diffusers pipeline: a bundled model, a local folder, or a hub id.

The folder is untrusted data: its pipeline class must be one that genbo knows, its weights safetensors, its tensors
complete and finite, and no code in it is ever run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from genbo.diffusion import bundled, damage, pipeline_folder, scheduler_settings
from genbo.diffusion.kinds import kind_of
from genbo.diffusion.pipeline_options import PipelineOptions
from genbo.diffusion.tokens import readers_of

if TYPE_CHECKING:
    from genbo.diffusion.process import Model
    from genbo.rewards._tokens import TokenReader

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
LONG_CALLS = 20_000  # network calls from which compiling, a minute or two, is paid back


@dataclass(frozen=True)
class Diffusers(PipelineOptions):
    """`revision` and `variant` as in `from_pretrained`; `dtype: auto` is bf16 on a GPU and fp32 on a CPU.

    `height` and `width` are pixels, where they are not the model's own. `lora` is a safetensors file, or its folder,
    that is merged into the weights at `lora_scale`. `distilled_guidance` is told to networks that were distilled for it
    (FLUX.1 dev; diffusers' own 3.5 where it is null). `offload` keeps off the GPU what does not work just now: text
    encoders (`encoders`), every network (`model`), or every layer (`sequential`, slow). `compile: auto` compiles on a
    GPU in long jobs.
    """

    @property
    def time_range(self) -> tuple[float, float] | None:
        """What the network may be told, noisiest first: its training steps; None where they are not known yet."""
        steps = pipeline_folder.scheduler_of(self.folder).get("num_train_timesteps") if self.folder else None
        if self.folder is None or not isinstance(steps, int):
            return None
        return (float(steps), 1.0) if pipeline_folder.is_flow(self.folder) else (steps - 1.0, 0.0)

    @property
    def known_prompts(self) -> list[str] | None:
        """The classes of a model that draws classes; None where prompts are words."""
        return pipeline_folder.known_prompts(self.folder) if self.folder else None

    def readers(self) -> list[TokenReader]:
        """Of its text encoders, where its folder is here."""
        return readers_of(self.folder) if self.folder is not None else []

    @property
    def takes_no_prompt(self) -> bool:
        """Whether its network is known to take no prompt."""
        return self.folder is not None and pipeline_folder.is_unconditional(self.folder)

    @property
    def differentiable(self) -> bool:
        """Whether a gradient can go back through the network: weights that were moved away are not there for it."""
        return self.offload in ("none", "encoders")

    def mistakes(self) -> list[str]:
        """What stops this model from being loaded, a sentence each; looks at the folder, loads nothing."""
        found = self._no_folder() if self.folder is None else self.folder_mistakes(self.folder)
        found += pipeline_folder.lora_mistakes(self.lora) if self.lora is not None else []
        if self.device == "cpu" and self.offload != "none":
            found.append("offload: there is nothing to move away from where the device is the CPU; delete it")
        return found

    def damages(self) -> list[str]:
        """What of the files on this machine is damaged, of a model without mistakes; reads headers and JSON alone."""
        found = self.folder_damages(self.folder) if self.folder else []
        if self.lora is not None and not found:
            found += damage.lora_damages(pipeline_folder.lora_file(self.lora), self.folder, self.variant)
        return found

    def _no_folder(self) -> list[str]:
        names = ", ".join(bundled.model_names())
        if not HUB_ID.fullmatch(self.pretrained) or self.pretrained.startswith((".", "/", "~")):
            return [
                f"pretrained: there is no folder {self.pretrained!r}; give a diffusers folder "
                f"(`hf download owner/name --local-dir ...` fetches one), a hub id (owner/name), or a bundled model "
                f"({names})"
            ]
        return []

    def misfits(self, sampler: Any, rule: Any, tuned: frozenset[str]) -> Iterator[tuple[str, str]]:
        """What of a job cannot work with this model, as (key under `model` or `tune`, sentence); loads nothing.

        `tuned` are the names under `tune`.
        """
        folder = self.folder
        if folder is None:
            return
        for said in self.undrawable(sampler):
            yield "sampler", said
        if "timesteps" in tuned and scheduler_settings.tells_log_sigma(pipeline_folder.scheduler_of(folder), sampler):
            yield "tune", "this network is told log sigma in place of a time, so timesteps cannot be tuned; delete them"
        guides = any(weight != 1 for weight in _listed(rule.weight)) or "guidance" in tuned
        if guides and pipeline_folder.is_unconditional(folder):
            yield "guidance", "this model is told nothing, so there is nothing to guide; write guidance: 1"
        if guides and pipeline_folder.takes_guidance(folder) and not self.negative_prompt:
            yield (
                "guidance",
                "this model was distilled to be told its guidance: write guidance: 1 and set or tune "
                "distilled_guidance; for true guidance, at twice the cost, give a negative_prompt",
            )
        if not pipeline_folder.takes_guidance(folder):
            asked = self.distilled_guidance is not None or "distilled_guidance" in tuned
            key = "distilled_guidance" if self.distilled_guidance is not None else "tune"
            if asked:
                yield key, "this model's network is not told its guidance; set or tune guidance instead"

    def undrawable(self, sampler: Any) -> Iterator[str]:
        """Why this sampler cannot draw from the folder: settings that it does not follow, steps that there are not."""
        folder, levels = self.folder, sampler.traits.levels_of
        if folder is None:
            return
        config = pipeline_folder.scheduler_of(folder)
        if scheduler_settings.is_flow(config) and (wrong := scheduler_settings.no_flow(sampler)):
            yield wrong
            return
        if levels is None:
            yield scheduler_settings.unserved(kind_of(sampler))
            return
        yield from self._unfollowed(config, sampler)
        pipeline = str(pipeline_folder.config_of(folder, "", "model_index.json").get("_class_name"))
        if not scheduler_settings.is_flow(config) and (
            said := scheduler_settings.steps_mistake(config, levels, sampler.steps, pipeline, kind_of(sampler))
        ):
            yield said

    def _unfollowed(self, config: dict[str, Any], sampler: Any) -> list[str]:
        return scheduler_settings.mistakes(config, sampler)

    def remarks(self, sampler: Any, lowest: float) -> Iterator[str]:
        """What is worth saying of how it is drawn; `lowest` is the least guidance weight that may occur."""
        if self.folder and (said := scheduler_settings.replaced(pipeline_folder.scheduler_of(self.folder), sampler)):
            yield said
        if lowest < 1:
            yield self._below_1

    @property
    def _below_1(self) -> str:
        return (
            "guidance below 1: a weight of 0 is the unconditional model here, and 1 no guidance; diffusers switches "
            "guidance off at 1 and below, so its plain call draws a lower weight as 1, and genbo.load as it was tuned"
        )

    def usual(self) -> tuple[Any, Any]:
        """A sampler and a guidance rule to draw with where nobody says otherwise."""
        from genbo.diffusion.guidance.plain import Plain
        from genbo.diffusion.samplers.ddim import Ddim
        from genbo.diffusion.samplers.euler import Euler

        folder = self.folder
        if folder is None:
            return Ddim(), Plain()
        unguided = pipeline_folder.is_unconditional(folder) or (
            pipeline_folder.takes_guidance(folder) and not self.negative_prompt
        )
        return Euler() if pipeline_folder.is_flow(folder) else Ddim(), Plain(1.0) if unguided else Plain()

    def compiled_for(self, calls: int) -> Diffusers:
        """With `compile: auto` decided for a job of so many network calls."""
        if self.compile != "auto":
            return self
        return replace(self, compile="on" if calls >= LONG_CALLS and self.torch_device().type == "cuda" else "off")

    def open(self) -> Model:
        """Load it. Raises `Refused` with a sentence for whatever is wrong with the folder."""
        from genbo.diffusion.load import load_pipeline

        return load_pipeline(self)


def _listed(weight: float | list[float]) -> list[float]:
    return weight if isinstance(weight, list) else [weight]

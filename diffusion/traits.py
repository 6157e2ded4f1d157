"""What a sampler and a guidance rule declare of themselves: a frozen record each, read where others would probe.

A class in `diffusion/samplers/` has `traits: ClassVar[SamplerTraits]`, one in `diffusion/guidance/` has
`traits: ClassVar[GuidanceTraits]`. Every field has a default that is right for a method that diffusers does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Levels = Literal["ddim", "ddpm", "euler", "dpmpp"]


@dataclass(frozen=True)
class SamplerTraits:
    """How a sampler stands to diffusers' schedulers.

    Attributes:
        levels_of: The scheduler of diffusers at whose noise levels it stops on a pipeline, by the name of the sampler
            in genbo that has the same; `scheduler_settings.CLASSES` has the four classes. None: it takes no levels
            from a scheduler, and draws from exact worlds and networks of one's own alone. A flow model takes `euler`.
        in_diffusers: Whether that scheduler takes the same steps, so that a pipeline's own call draws the same images.
        call_options: Options of the sampler that a pipeline's call takes under the same name.
        settings: Option -> its value -> settings of the scheduler that this value asks for. A value that is not listed
            leaves the model's own settings as they are.
    """

    levels_of: Levels | None = None
    in_diffusers: bool = False
    call_options: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[object, Mapping[str, Any]]] = field(default_factory=dict)

    def asked(self, sampler: object) -> dict[str, Any]:
        """The settings of diffusers' scheduler that the options of this sampler ask for."""
        found: dict[str, Any] = {}
        for option, by_value in self.settings.items():
            found |= by_value.get(vars(sampler)[option], {})
        return found

    def call(self, sampler: object) -> dict[str, Any]:
        """What a pipeline's call is handed of this sampler's options, by name."""
        return {name: vars(sampler)[name] for name in self.call_options}


@dataclass(frozen=True)
class GuidanceTraits:
    """How a guidance rule stands to diffusers, and what the plan must know of it.

    Attributes:
        in_diffusers: Whether diffusers' pipelines guide so, where their call takes every option of the rule.
        switches: Options beside `weight` that move `effective_weight`, and so can switch guidance off at a step.
        keeps_state: Whether `combine` hands a tensor from step to step.
    """

    in_diffusers: bool = False
    switches: tuple[str, ...] = ()
    keeps_state: bool = False

"""What samplers, guidance rules and models declare of themselves: a frozen record each, read where others would probe.

A class in `diffusion/samplers/` has `traits: ClassVar[SamplerTraits]`, one in `diffusion/guidance/` has
`traits: ClassVar[GuidanceTraits]`. Every field has a default that is right for a method that diffusers does not have.

What a model declares depends on its options, such as the folder that they name. So a class in `diffusion/models/`
states the fields of `ModelTraits` by themselves, as class variables, options, properties or methods of the same name,
and only those that differ from the defaults; so do opened models and rewards with those of `Origin`.
`kinds.declared(ModelTraits, options)` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genbo.rewards._traits import nothing

if TYPE_CHECKING:
    from genbo.rewards._extractors import Extractor
    from genbo.rewards._tokens import TokenReader

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

    def asked(self, sampler: object) -> dict[str, object]:
        """The settings of diffusers' scheduler that the options of this sampler ask for."""
        found: dict[str, Any] = {}
        for option, by_value in self.settings.items():
            found |= by_value.get(vars(sampler)[option], {})
        return found

    def call(self, sampler: object) -> dict[str, object]:
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


@dataclass(frozen=True)
class ModelTraits:
    """What the rest of genbo must know of a model before it is opened. The defaults are those of an exact world.

    Attributes:
        learns: Whether it is a network of the user's own, which needs data and a lower level that trains it.
        has_network: Whether there is a network behind it, which is trained by steps; the numbers of an exact world are
            trained by L-BFGS.
        differentiable: Whether a gradient can go back through it.
        device: `auto`, `cpu`, `cuda` or `cuda:0`.
        dtype: The precision of the network; None where nothing can be chosen.
        folder: Its folder on this machine; None where it has none, and for a hub id that was not fetched yet.
        hub_id: That hub id; None for every other model.
        time_range: The times that the network may be given, noisiest first; None where they are not known.
        known_prompts: All prompts that it knows; None where any text will do.
        takes_no_prompt: Whether its network is known to be conditioned on nothing.
        classes: Whether a network of the user's own is conditioned on the classes of its data.
        negative_prompt: What guidance moves away from; `""` for the unconditional prediction.
        height: Of its images in pixels, where it is not the model's own.
        width: The same of their width.
        misfits: (sampler, guidance rule, names under `tune`) -> what cannot work with this model, as pairs of a key
            under `model` (or `tune`) and a sentence with the remedy.
        undrawable: (sampler) -> why this sampler cannot draw from it, a sentence each.
        remarks: (sampler, the least guidance weight that may occur) -> warnings about how it is drawn.
        damages: () -> what of its files is damaged, a sentence each, as far as their headers tell.
        readers: () -> its text encoders, as `genbo.rewards._tokens` counts what they read of a prompt.
        compiled_for: (network calls) -> the options for so long a job; None where the length changes nothing.
    """

    learns: bool = False
    has_network: bool = False
    differentiable: bool = True
    device: str = "cpu"
    dtype: str | None = None
    folder: Path | None = None
    hub_id: str | None = None
    time_range: tuple[float, float] | None = None
    known_prompts: Sequence[str] | None = None
    takes_no_prompt: bool = False
    classes: bool = False
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    misfits: Callable[[Any, Any, frozenset[str]], Iterable[tuple[str, str]]] = nothing
    undrawable: Callable[[Any], Iterable[str]] = nothing
    remarks: Callable[[Any, float], Iterable[str]] = nothing
    damages: Callable[[], Sequence[str]] = nothing
    readers: Callable[[], Sequence[TokenReader]] = nothing
    compiled_for: Callable[[int], Any] | None = None


@dataclass(frozen=True)
class Origin:
    """Where an opened model or reward comes from, for the hashes of a run's inputs.

    Attributes:
        folder: Of its weights and configs, where they are in one.
        file: Of its weights, where they are in one file.
        extractor: The network whose features are compared, which has an identity of its own.
        lora_file: Of the adapter that was merged into its weights.
        notes: What loading it showed, a sentence without its full stop each, for the report.
    """

    folder: Path | None = None
    file: Path | None = None
    extractor: Extractor | None = None
    lora_file: Path | None = None
    notes: tuple[str, ...] = ()

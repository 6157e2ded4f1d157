"""What the families share: one network of a pipeline as a `Model`, what a prompt is told as, and the way to an image.

A family says which `part` of its pipeline the network is, gives `rows`, the tensors that prompts become, and `call`,
how the network is asked. Its levels come from `_discrete` or `_flow`. Everything computes what the pipeline's own
`__call__` does, with gradients. One difference is meant: diffusers switches guidance off at a weight of 1 or less; here
0 is the unconditional model.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from genbo.diffusion import scheduler_settings
from genbo.diffusion.adapt import AdaptedNetwork, Adapter, network_with
from genbo.diffusion.parts import encoders, networks
from genbo.diffusion.pipeline_options import PipelineOptions
from genbo.diffusion.process import Condition
from genbo.diffusion.refused import Refused
from genbo.diffusion.seed import Seed
from genbo.diffusion.tokens import unsaid

if TYPE_CHECKING:
    from genbo.diffusion.process import Sampler
    from genbo.schedules.grid import Grid

Size = tuple[int, int]


class PipelineModel:
    """The network of an opened pipeline, in eval mode, with weights that want no gradients."""

    part: ClassVar[str] = "unet"
    names: ClassVar[Mapping[str, str]] = {"weight": "guidance_scale"}  # our numbers, as the pipeline's call has them
    of_size: ClassVar[Mapping[str, Any]] = {}  # what its call must be told where the size is not the network's own
    prediction: str

    def __init__(self, pipeline: Any, options: PipelineOptions | None = None) -> None:
        self.pipeline, self.options = pipeline, options or PipelineOptions()
        for module in networks(pipeline).values():
            module.eval().requires_grad_(False)
        self.denoiser = getattr(pipeline, self.part)
        hooked = self.options.offload in ("model", "sequential")
        self.device = torch.device(pipeline._execution_device if hooked else self.denoiser.device)
        self.dtype = self.denoiser.dtype
        self.shape = (self.channels, *self._latent_size())
        self._rows: dict[str, dict[str, Tensor]] = {}
        self.network: AdaptedNetwork | None = None  # the denoiser, where it has weights of its own
        self.lora_file: Path | None = None
        self.fused: tuple[str, ...] = ()  # the components that it was merged into
        self.notes: tuple[str, ...] = ()  # what loading it showed, for the report

    # -- a family's own ------------------------------------------------------------------------------------------------

    def rows(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the network is told of these prompts: named tensors, a row each."""
        raise NotImplementedError

    def call(self, network: object, x_t: Tensor, time: Tensor, told: Mapping[str, Tensor]) -> Tensor:
        """The network's raw prediction (B, *shape)."""
        raise NotImplementedError

    def grid(self, sampler: Sampler) -> Grid:
        """The levels that the pipeline's own settings give the sampler (M = 1, float64, on the CPU)."""
        raise NotImplementedError

    def scheduler(self, sampler: Sampler, **settings: Any) -> Any:
        """diffusers' scheduler for the sampler, with the pipeline's own settings, or others."""
        raise NotImplementedError

    def arguments(self, sampler: Sampler, grid: Grid) -> dict[str, list[float]] | None:
        """What to hand to the pipeline's call to stop at these levels, by name; None where it takes nothing such."""
        return None

    def takes(self, scheduler: Any) -> set[str]:
        """What a call of the pipeline can hand on to this scheduler: `timesteps`, `sigmas`, both or neither."""
        taken = (inspect.signature(call).parameters for call in (self.pipeline.__call__, scheduler.set_timesteps))
        return {"timesteps", "sigmas"}.intersection(*taken)

    def prompted(self, sampler: Sampler) -> str | None:
        """How the pipeline's own call takes a `prompt`, in Python; None where it cannot draw what genbo draws."""
        return "prompt" if sampler.traits.in_diffusers else None

    @property
    def channels(self) -> int:
        return int(self.denoiser.config.in_channels)

    @property
    def own_size(self) -> Size:
        """Height and width of the latents that the network was trained on."""
        size = self.denoiser.config.sample_size
        if size is None:
            raise Refused(f"pretrained: the config of {self.part} in {self.folder} has no sample_size; write it there")
        height, width = (size, size) if isinstance(size, int) else size
        return int(height), int(width)

    @property
    def patch(self) -> int:
        """The side of what the network takes for one token, in latents."""
        return int(self.denoiser.config.get("patch_size") or 1)

    # -- sizes ---------------------------------------------------------------------------------------------------------

    @property
    def vae(self) -> Any:
        """The decoder, or None where samples are pixels."""
        return self.pipeline.components.get("vae")

    @property
    def pixels_per_latent(self) -> int:
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def pixels(self) -> Size:
        """Height and width of the images."""
        return self.shape[1] * self.pixels_per_latent, self.shape[2] * self.pixels_per_latent

    def _latent_size(self) -> Size:
        asked, own, unit = (self.options.height, self.options.width), self.own_size, self.pixels_per_latent
        for name, pixels in zip(("height", "width"), asked, strict=True):
            if pixels is not None and pixels % (unit * self.patch):
                raise Refused(f"{name}: this model makes images in multiples of {unit * self.patch} pixels")
        height, width = (n if pixels is None else pixels // unit for n, pixels in zip(own, asked, strict=True))
        return height, width

    # -- prompts -------------------------------------------------------------------------------------------------------

    @property
    def negative_prompt(self) -> str:
        return self.options.negative_prompt

    def encode(self, prompts: Sequence[str]) -> Condition:
        """Each prompt goes through the text encoders once in a run."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._rows]
        if new:
            with torch.no_grad(), self._encoders_here(), unsaid(self.pipeline):
                told = self.rows(new)
            self._rows.update({prompt: {name: t[i] for name, t in told.items()} for i, prompt in enumerate(new)})
        found = [self._rows[prompt] for prompt in prompts]
        return Condition({name: torch.stack([row[name] for row in found]) for name in found[0]})

    @contextmanager
    def _encoders_here(self) -> Iterator[None]:
        """The text encoders beside the network, for as long as they work, where they are kept off the device."""
        kept_off = encoders(self.pipeline).values() if self.options.offload == "encoders" else ()
        for network in kept_off:
            network.to(self.device)
        try:
            yield
        finally:
            for network in kept_off:
                network.to("cpu")

    def unconditional(self) -> Condition:
        return self.encode([self.negative_prompt])

    # -- network and decoder -------------------------------------------------------------------------------------------

    def __call__(self, x_t: Tensor, time: Tensor, condition: Condition) -> Tensor:
        return self.call(self.network or self.denoiser, x_t, time, condition.tensors)

    def decode(self, x: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> images (B, 3, H, W) in [0, 1]."""
        if self.vae is not None:
            x = self.vae.decode(self._unscaled(x.to(self.vae.dtype)), return_dict=False)[0]
        return (x / 2 + 0.5).clamp(0, 1)

    def _unscaled(self, x: Tensor) -> Tensor:
        """What the decoder takes, of latents that the network takes."""
        config = self.vae.config
        scale, mean, std = float(config.scaling_factor), config.get("latents_mean"), config.get("latents_std")
        if mean is None or std is None:
            return x / scale + (config.get("shift_factor") or 0)
        return x * x.new_tensor(std).reshape(1, -1, 1, 1) / scale + x.new_tensor(mean).reshape(1, -1, 1, 1)

    # -- weights -------------------------------------------------------------------------------------------------------

    def adapted(self, adapter: Adapter, seed: Seed) -> PipelineModel:
        """The same pipeline around a trainable twin of its network; everything else is shared."""
        new = copy.copy(self)
        new.network = network_with(self.denoiser, adapter, seed)
        return new

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """What is trained: of the denoiser alone."""
        return self.network.weights if self.network else {}

    @property
    def folder(self) -> Path:
        """Where it was loaded from."""
        return Path(self.pipeline.config._name_or_path)

    @property
    def variant(self) -> str | None:
        return self.options.variant


def as_loaded(pipeline: Any, scheduler: Any) -> object:
    """A scheduler as this class of pipeline has it when it is loaded: some set `steps_offset` or `clip_sample` anew.

    The class itself is asked. Where it would put a scheduler of another class in its place, this one is left as it is.
    """
    from diffusers.utils import logging

    parts = {**pipeline.components, "scheduler": scheduler}
    taken = inspect.signature(type(pipeline).__init__).parameters
    options = {name: pipeline.config[name] for name in taken if name in pipeline.config and name not in parts}
    loudness = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = type(pipeline)(**parts, **options).scheduler
    finally:
        logging.set_verbosity(loudness)
    return found if type(found) is type(scheduler) else scheduler


def refuse_unknown(scheduler: object) -> None:
    """`Refused` where a newer diffusers has a setting that genbo has never seen, and it is in use."""
    for name, value in scheduler_settings.unknown(scheduler):
        raise Refused(
            f"pretrained: this model's scheduler sets {name}: {value}, which genbo does not know; "
            f"delete it from its {scheduler_settings.FILE}, or take another model"
        )

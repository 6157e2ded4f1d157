"""Pipelines of the published sizes, with random weights and no text encoders.

The numbers are those of the published `config.json` files: Stable Diffusion 1.5, SDXL base 1.0, Stable Diffusion 3
medium, FLUX.1 dev. Text encoders are left out, as they work once a prompt: in their place stand numbers of each
prompt's own, in the shapes that they give. `tiny` keeps the classes and makes them small enough for a CPU.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import diffusers
import torch
from torch import Tensor

from genbo.bilevel.protocols import Tunable
from genbo.bilevel.tunables.distilled_guidance import DistilledGuidance
from genbo.bilevel.tunables.guidance import Guidance
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.process import GuidanceRule, Model, Sampler
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.euler import Euler
from genbo.diffusion.seed import Seed

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
UNQUANTISED = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
TINY_VAE = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
}
TINY_PIXELS = 16


@dataclass(frozen=True)
class Published:
    """What a pipeline is made of, and how it is measured: `batch` images are timed, `most` are asked for at once.

    `encoded` are the shapes of what `encode_prompt` returns for a prompt, in its order, None for what is not read.
    Samplings are repeated for `enough_s` seconds; compiling may take `compile_s`.
    """

    family: str
    pipeline: str
    network: str
    config: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: str
    settings: Mapping[str, Any]
    encoded: tuple[tuple[int, ...] | None, ...]
    batch: int
    most: int
    sampler: Sampler
    rule: GuidanceRule
    tunable: Tunable
    others: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline's own making
    pixels: int | None = None  # a side, where it is not the model's own
    enough_s: float = 6.0
    compile_s: float = 25.0

    def open(self, device: str | torch.device, dtype: torch.dtype) -> Model:
        """genbo's model around the pipeline, made on the device; its weights are those that the classes begin with."""
        with torch.device(device):
            network = getattr(diffusers, self.network)(**self.config)
            vae = diffusers.AutoencoderKL(**self.vae)
        made = {
            "unet" if "UNet" in self.network else "transformer": network.to(dtype),
            "vae": vae.to(dtype),
            "scheduler": getattr(diffusers, self.scheduler)(**self.settings),
        }
        kind = getattr(diffusers, self.pipeline)
        wanted = inspect.signature(kind.__init__).parameters.values()
        absent = {p.name: None for p in wanted if p.name != "self" and p.default is p.empty}
        pipeline = kind(**{**absent, **made, **self.others})
        pipeline.encode_prompt = Encoded(self.encoded, torch.device(device), dtype)
        module = importlib.import_module(f"genbo.diffusion.pipelines.{self.family}")
        model: Model = module.open_pipeline(pipeline, Diffusers(height=self.pixels, width=self.pixels))
        return model


@dataclass(frozen=True)
class Encoded:
    """Stands for text encoders: the same prompt is always the same numbers."""

    shapes: tuple[tuple[int, ...] | None, ...]
    device: torch.device
    dtype: torch.dtype

    def __call__(self, prompts: Sequence[str], *_: Any, **__: Any) -> tuple[Tensor | None, ...]:
        return tuple(None if shape is None else self._numbers(prompts, shape) for shape in self.shapes)

    def _numbers(self, prompts: Sequence[str], shape: tuple[int, ...]) -> Tensor:
        rows = [torch.randn(shape, generator=Seed(0).child(prompt).generator()) for prompt in prompts]
        return torch.stack(rows).to(self.device, self.dtype)


def _guided(start: float) -> dict[str, Any]:
    return {"rule": Plain(start), "tunable": Guidance(start, bounds=(1.0, 15.0))}


FULL = {
    "sd15": Published(
        family="stable_diffusion",
        pipeline="StableDiffusionPipeline",
        network="UNet2DConditionModel",
        config={
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
            "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
        },
        vae={**VAE, "latent_channels": 4, "sample_size": 512, "scaling_factor": 0.18215},
        scheduler="DDIMScheduler",
        settings={**BETAS, "set_alpha_to_one": False, "steps_offset": 1},
        encoded=((77, 768), None),
        batch=8,
        most=512,
        sampler=Ddim(steps=20),
        **_guided(7.5),
        others={"requires_safety_checker": False},
    ),
    "sdxl": Published(
        family="stable_diffusion_xl",
        pipeline="StableDiffusionXLPipeline",
        network="UNet2DConditionModel",
        config={
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 2,
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        vae={**VAE, "latent_channels": 4, "sample_size": 1024, "scaling_factor": 0.13025},
        scheduler="DDIMScheduler",
        settings={**BETAS, "set_alpha_to_one": False, "steps_offset": 1},
        encoded=((77, 2048), None, (1280,), None),
        batch=2,
        most=128,
        sampler=Ddim(steps=20),
        **_guided(5.0),
        others={"add_watermarker": False},
    ),
    "sd3": Published(
        family="stable_diffusion_3",
        pipeline="StableDiffusion3Pipeline",
        network="SD3Transformer2DModel",
        config={
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
        },
        vae={**VAE, **UNQUANTISED, "sample_size": 1024, "scaling_factor": 1.5305, "shift_factor": 0.0609},
        scheduler="FlowMatchEulerDiscreteScheduler",
        settings={"shift": 3.0},
        encoded=((333, 4096), None, (2048,), None),  # 77 tokens of CLIP's, 256 of T5's
        batch=2,
        most=128,
        sampler=Euler(steps=20),
        **_guided(7.0),
    ),
    "flux": Published(
        family="flux",
        pipeline="FluxPipeline",
        network="FluxTransformer2DModel",
        config={
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
            "axes_dims_rope": (16, 56, 56),
        },
        vae={**VAE, **UNQUANTISED, "sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159},
        scheduler="FlowMatchEulerDiscreteScheduler",
        settings={"shift": 3.0, "use_dynamic_shifting": True},
        encoded=((512, 4096), (768,), None),
        batch=1,
        most=128,
        sampler=Euler(steps=20),
        rule=Plain(1.0),
        tunable=DistilledGuidance(3.5, bounds=(1.0, 8.0)),
    ),
}

TINY_UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "cross_attention_dim": 32,
}
TINY: dict[str, dict[str, Any]] = {  # what is smaller, of `config` and of the shapes
    "sd15": {"config": TINY_UNET, "encoded": ((8, 32), None)},
    "sdxl": {
        "config": {
            **TINY_UNET,
            "transformer_layers_per_block": 1,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
        },
        "encoded": ((8, 32), None, (16,), None),
    },
    "sd3": {
        "config": {
            "sample_size": 8,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 4,
            "joint_attention_dim": 32,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 16,
            "pos_embed_max_size": 16,
        },
        "encoded": ((8, 32), None, (16,), None),
    },
    "flux": {
        "config": {
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 16,
            "axes_dims_rope": (4, 4, 8),
        },
        "encoded": ((8, 32), (16,), None),
    },
}


def tiny(name: str) -> Published:
    """The same classes and settings in small, and fewer steps."""
    full, small = FULL[name], TINY[name]
    return replace(
        full,
        config={**full.config, **small["config"]},
        vae={**full.vae, **TINY_VAE, "sample_size": TINY_PIXELS},
        encoded=small["encoded"],
        batch=min(full.batch, 2),
        most=4,
        sampler=type(full.sampler)(steps=4),  # type: ignore[call-arg]
        pixels=TINY_PIXELS,
        enough_s=0.5,
        compile_s=600.0,
    )

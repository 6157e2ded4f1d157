"""A small pipeline of every family, with random weights: the published classes, told of few tokens, in small rooms.

`MAKERS` holds a function each, that gives the pipeline; the fixture `family` in conftest.py writes them to disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WIDE_UNET = {"block_out_channels": (32, 64), "norm_num_groups": 32, "attention_head_dim": 8}
WIDE_VAE = {"block_out_channels": (32, 32), "norm_num_groups": 32}
CLASSES = 4
NAMES = {0: "tench, Tinca tinca", 1: "goldfish", 2: "white shark"}


def clip_tokenizer() -> Any:
    """CLIP's tokenizer over single bytes and a few merges: different texts are different tokens."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("r", "e"),
        ("d", "o"),
        ("re", "d</w>"),
        ("do", "g</w>"),
        ("a", "p"),
        ("p", "l"),
        ("pl", "e</w>"),
    ]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: n for n, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=16)


def t5_tokenizer() -> Any:
    """T5's tokenizer over single letters."""
    from transformers import T5Tokenizer

    letters = [chr(n) for n in range(33, 127)]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    return T5Tokenizer(vocab=vocab, extra_ids=0)


def clip(tokenizer: Any, *, width: int = 32, projection: int | None = None) -> Any:
    """A CLIP text encoder, with a projection of that width or without."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        projection_dim=projection or width,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5(tokenizer: Any, width: int = 32) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0
    )
    return T5EncoderModel(config)


def vae(channels: int = 4, **config: Any) -> Any:
    """Two pixels a latent."""
    from diffusers import AutoencoderKL

    kept = {"block_out_channels": (16, 16), "norm_num_groups": 8, "sample_size": 16}
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        **{**kept, **config},
    )


def unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    kept = {"block_out_channels": (16, 32), "norm_num_groups": 8, "attention_head_dim": 2}  # the number of heads
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **{**kept, **config},
    )


def ddim_scheduler(**config: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**{**BETAS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **config})


def flow_scheduler(**config: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


# -- families ----------------------------------------------------------------------------------------------------------


def stable_diffusion(*, wide: bool = False) -> Any:
    """16 x 16 images, latents of (4, 8, 8), with SD's DDIM. A wide one learns more in a few steps, and takes longer."""
    from diffusers import StableDiffusionPipeline

    tokenizer = clip_tokenizer()
    text_encoder = clip(tokenizer)
    return StableDiffusionPipeline(
        unet=unet(cross_attention_dim=32, **WIDE_UNET if wide else {}),
        vae=vae(**WIDE_VAE if wide else {}),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=ddim_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> Any:
    from diffusers import StableDiffusionXLPipeline

    tokenizer = clip_tokenizer()
    return StableDiffusionXLPipeline(
        unet=unet(
            cross_attention_dim=64,
            transformer_layers_per_block=1,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        vae=vae(scaling_factor=0.13025),
        text_encoder=clip(tokenizer),
        text_encoder_2=clip(tokenizer, projection=32),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        scheduler=ddim_scheduler(timestep_spacing="leading"),
        add_watermarker=False,
    )


def stable_diffusion_3() -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    tokenizer, words = clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        vae=vae(shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(tokenizer, projection=32),
        text_encoder_2=clip(tokenizer, projection=32),
        text_encoder_3=t5(words, 64),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        tokenizer_3=words,
        scheduler=flow_scheduler(shift=3.0),
    )


def flux() -> Any:
    from diffusers import FluxPipeline, FluxTransformer2DModel

    tokenizer, words = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    pipeline = FluxPipeline(
        transformer=transformer,
        vae=vae(shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(tokenizer),
        text_encoder_2=t5(words),
        tokenizer=tokenizer,
        tokenizer_2=words,
        scheduler=flow_scheduler(shift=3.0, use_dynamic_shifting=True),
    )
    return pipeline


def pixart_sigma() -> Any:
    from diffusers import PixArtSigmaPipeline, PixArtTransformer2DModel

    words = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=8,
        patch_size=2,
        use_additional_conditions=False,
    )
    return PixArtSigmaPipeline(
        transformer=transformer, vae=vae(), text_encoder=t5(words), tokenizer=words, scheduler=ddim_scheduler()
    )


def dit() -> Any:
    from diffusers import DiTPipeline, DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    return DiTPipeline(transformer=transformer, vae=vae(), scheduler=ddim_scheduler())


def pixels(classes: int | None = None) -> Any:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        num_class_embeds=classes,
    )


def ddpm() -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler

    return DDPMPipeline(unet=pixels(), scheduler=DDPMScheduler())


def ddim() -> Any:
    from diffusers import DDIMPipeline, DDIMScheduler

    return DDIMPipeline(unet=pixels(), scheduler=DDIMScheduler())


def ddim_classes() -> Any:
    """Told a class, or the last label for none."""
    from diffusers import DDIMPipeline, DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction")
    return DDIMPipeline(unet=pixels(CLASSES + 1), scheduler=scheduler)


def pixart_alpha() -> Any:
    """Of a class that genbo has no file for, and whose call takes no callback at the end of a step."""
    from diffusers import PixArtAlphaPipeline

    known = pixart_sigma()
    return PixArtAlphaPipeline(**known.components)


def sd_pag() -> Any:
    """Of a class that genbo has no file for, and whose call does."""
    from diffusers import StableDiffusionPAGPipeline

    known = stable_diffusion()
    parts = {name: part for name, part in known.components.items() if name != "image_encoder"}
    return StableDiffusionPAGPipeline(**parts, requires_safety_checker=False)


MAKERS: dict[str, Callable[[], Any]] = {
    "stable_diffusion": stable_diffusion,
    "stable_diffusion_xl": stable_diffusion_xl,
    "stable_diffusion_3": stable_diffusion_3,
    "flux": flux,
    "pixart_sigma": pixart_sigma,
    "dit": dit,
    "ddpm": ddpm,
    "ddim": ddim,
    "ddim_classes": ddim_classes,
    "pixart_alpha": pixart_alpha,
    "sd_pag": sd_pag,
}


def lively(pipeline: Any) -> Any:
    """Every zero that training would fill is given a value, so that what is told moves the image."""
    import torch

    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            for parameter in component.eval().parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.1)
    return pipeline

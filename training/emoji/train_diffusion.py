"""Train "emoji", a Stable Diffusion pipeline of 64 x 64 pixels, in minutes on one GPU.

    x --VAE--> z (4, 16, 16),   z_t = sqrt(abar_t) z + sqrt(1 - abar_t) e,
    U-Net and text encoder together:  E_t min(snr_t, 5) / snr_t  |e - e_hat(z_t, t, caption)|^2

One caption in ten is empty, so the model can be guided. Latents and captions live on the device and a whole
step is one CUDA graph; times are training time, compilation comes on top.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.emoji import data
from training.emoji.loop import Step, Trained, Wrap, bf16, prepare, run

TEXT_WIDTH, TEXT_LENGTH, VOCAB = 128, 20, 4096
CAPTION_VARIANTS = 24  # of each concept in each style
DROPPED_CAPTIONS = 0.1
SNR_CAP = 5.0
KL_WEIGHT = 1e-4


def new_vae() -> AutoencoderKL:
    """2.7 M parameters, 64 px to 16 x 16 x 4."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=64,
    )


def new_unet() -> UNet2DConditionModel:
    """7.7 M parameters; attention at 8 x 8 and in the middle, where a CPU can afford it."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 128, 176),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Four layers of width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, sampled from its very end."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def new_pipeline(emoji: data.Emoji) -> StableDiffusionPipeline:
    """An untrained pipeline with a tokenizer made for these captions."""
    words = [" ".join([label, *keys]) for label, keys in zip(emoji.labels, emoji.keywords, strict=True)]
    styles = emoji.styles * 50
    tokenizer = data.train_tokenizer([*words, *emoji.labels, *styles], VOCAB, TEXT_LENGTH)
    return StableDiffusionPipeline(
        vae=new_vae(),
        text_encoder=new_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=new_unet(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def train_vae(vae: AutoencoderKL, images: Tensor, args: argparse.Namespace) -> int:
    """Fit the VAE to the images and leave its averaged weights in place."""
    device, batch = images.device, args.batch_vae
    vae.train().to(memory_format=torch.channels_last)
    trained = Trained([vae], device, decay=0.998, weight_decay=1e-4)

    def loss_of(x: Tensor, noise: Tensor) -> Tensor:
        with bf16(device):
            posterior = vae.encode(x).latent_dist
            y = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        return F.l1_loss(y, x) + F.mse_loss(y, x) + KL_WEIGHT * kl

    def build(wrap: Wrap, generator: torch.Generator) -> Step:
        fast = wrap(loss_of)

        def step() -> None:
            rows = torch.randint(len(images), (batch,), device=device, generator=generator)
            flip = torch.rand(batch, 1, 1, 1, device=device, generator=generator) < 0.5
            x = images[rows]
            x = torch.where(flip, x.flip(3), x).contiguous(memory_format=torch.channels_last)
            noise = torch.randn(batch, 4, 16, 16, device=device, generator=generator)
            trained.update(fast(x, noise))

        return step

    step = prepare(build, device, args.compile, args.seed)
    steps = run(trained, step, args.steps_vae, args.minutes_vae, args.lr_vae, "vae")
    trained.use_ema()
    vae.eval()
    return steps


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, float]:
    """The images' latents (N, 4, 16, 16), unscaled, and the PSNR of their reconstruction in dB."""
    means, errors = [], []
    for x in images.split(256):
        mean = vae.encode(x).latent_dist.mean
        errors.append((vae.decode(mean).sample.clamp(-1, 1) - x).square().mean(dim=(1, 2, 3)))
        means.append(mean)
    return torch.cat(means), -10 * (torch.cat(errors).mean() / 4).log10().item()


def train_unet(
    pipe: StableDiffusionPipeline, latents: Tensor, emoji: data.Emoji, args: argparse.Namespace
) -> tuple[int, Trained]:
    """Fit U-Net and text encoder to the latents; leave their averaged weights in place."""
    device, batch = latents.device, args.batch_unet
    unet, text = pipe.unet.train().to(memory_format=torch.channels_last), pipe.text_encoder.train()
    captions = data.caption_table(emoji, pipe.tokenizer, CAPTION_VARIANTS).to(device)  # (C, S, V, L)
    empty = data.token_ids(pipe.tokenizer, [""]).to(device)  # (1, L)
    concept = torch.from_numpy(emoji.concept[: len(latents)]).to(device)
    style = torch.from_numpy(emoji.style[: len(latents)]).to(device)
    abar = pipe.scheduler.alphas_cumprod.to(device)
    snr = abar / (1 - abar)
    weight = snr.clamp(max=SNR_CAP) / snr
    trained = Trained([unet, text], device, decay=args.ema, weight_decay=0.01)
    if args.load_state:
        trained.from_tensors(load_file(args.load_state / "unet.safetensors"))

    def loss_of(z_t: Tensor, t: Tensor, hidden: Tensor, noise: Tensor, w: Tensor) -> Tensor:
        with bf16(device):
            out = unet(z_t, t, encoder_hidden_states=hidden, return_dict=False)[0]
        return (w * (out.float() - noise).square().mean(dim=(1, 2, 3))).mean()

    def build(wrap: Wrap, generator: torch.Generator) -> Step:
        fast = wrap(loss_of)

        def draw(high: int) -> Tensor:
            return torch.randint(high, (batch,), device=device, generator=generator)

        def step() -> None:
            rows, t = draw(len(latents)), draw(len(abar))
            ids = captions[concept[rows], style[rows], draw(CAPTION_VARIANTS)]
            drop = torch.rand(batch, 1, device=device, generator=generator) < DROPPED_CAPTIONS
            ids = torch.where(drop, empty, ids)
            noise = torch.randn(batch, 4, 16, 16, device=device, generator=generator)
            a = abar[t].view(-1, 1, 1, 1)
            z_t = a.sqrt() * latents[rows] + (1 - a).sqrt() * noise
            z_t = z_t.contiguous(memory_format=torch.channels_last)
            with bf16(device):
                hidden = text(ids).last_hidden_state  # not worth compiling
            trained.update(fast(z_t, t, hidden, noise, weight[t]))

        return step

    step = prepare(build, device, args.compile, args.seed + 1)
    steps = run(trained, step, args.steps_unet, args.minutes_unet, args.lr_unet, "unet")
    return steps, trained


def save_pipeline(pipe: StableDiffusionPipeline, folder: Path) -> None:
    """Write the pipeline in float16; the one in hand may not be used after this."""
    for module in (pipe.vae, pipe.unet, pipe.text_encoder):
        module.to(device="cpu", dtype=torch.float16, memory_format=torch.contiguous_format).eval()
    for part in (pipe, pipe.vae, pipe.unet):
        part.register_to_config(_name_or_path="")  # not the folder that --init named
    pipe.save_pretrained(folder, safe_serialization=True)
    config = (
        folder / "text_encoder" / "config.json"
    )  # diffusers loads in float32 unless told, transformers as this says
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data.PACKED)
    parser.add_argument("--out", type=Path, default=data.PIPELINE, help="folder of the finished pipeline")
    parser.add_argument("--init", type=Path, help="a pipeline folder to start from")
    parser.add_argument("--skip-vae", action="store_true", help="keep the VAE of --init as it is")
    parser.add_argument("--save-state", type=Path, help="folder for the full state of U-Net training")
    parser.add_argument("--load-state", type=Path, help="a --save-state folder to go on from, with its --init")
    parser.add_argument("--steps-vae", type=int, default=4300)
    parser.add_argument("--steps-unet", type=int, default=7900)
    parser.add_argument("--minutes-vae", type=float, default=float("inf"), help="end sooner where steps are slow")
    parser.add_argument("--minutes-unet", type=float, default=float("inf"))
    parser.add_argument("--batch-vae", type=int, default=256)
    parser.add_argument("--batch-unet", type=int, default=512)
    parser.add_argument("--lr-vae", type=float, default=1e-3)
    parser.add_argument("--lr-unet", type=float, default=8e-4)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument(
        "--compile", default="default", help="torch.compile's mode (max-autotune-no-cudagraphs), or none"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="seconds on a CPU: few images, few steps")
    args = parser.parse_args()
    if args.skip_vae and not args.init:
        parser.error("--skip-vae keeps the VAE of another pipeline; name it with --init")
    if args.load_state and not args.init:
        parser.error("--load-state goes on from a run; name the pipeline it wrote with --init")
    if args.smoke:
        args.minutes_vae, args.minutes_unet, args.batch_vae, args.batch_unet = 0.05, 0.05, 4, 4
    return args


def main() -> None:
    """Train, save, and say how it went."""
    args, start = parse(), time.monotonic()
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    emoji = data.load(args.data)
    images = data.pixels(emoji.images[:64] if args.smoke else emoji.images).to(device)
    pipe = StableDiffusionPipeline.from_pretrained(args.init, dtype=torch.float32) if args.init else new_pipeline(emoji)
    pipe.vae.to(device)
    pipe.unet.to(device)
    pipe.text_encoder.to(device)
    vae_steps = 0 if args.skip_vae else train_vae(pipe.vae, images, args)
    latents, psnr_db = encode(pipe.vae, images)
    if not args.skip_vae:
        pipe.vae.register_to_config(scaling_factor=1 / latents.std().item())
    latents = latents * pipe.vae.config.scaling_factor
    print(f"  vae {psnr_db:.2f} dB, scaling factor {pipe.vae.config.scaling_factor:.4f}", flush=True)
    steps, trained = train_unet(pipe, latents, emoji, args)
    if args.save_state:
        args.save_state.mkdir(parents=True, exist_ok=True)
        save_file(trained.to_tensors(), args.save_state / "unet.safetensors")
    trained.use_ema()
    save_pipeline(pipe, args.out)
    minutes = (time.monotonic() - start) / 60
    print(f"  {steps} steps, {minutes:.1f} minutes in all, wrote {args.out}", flush=True)
    data.record(
        "emoji",
        vae_steps=vae_steps,
        vae_batch=args.batch_vae,
        psnr_db=psnr_db,
        unet_steps=steps,
        unet_batch=args.batch_unet,
        minutes=minutes,
        device=data.device_name(device),
    )


if __name__ == "__main__":
    main()

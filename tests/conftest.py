"""A home of its own for the suite, a watch over what it opens, and tiny networks that the tests share.

The networks have random weights, and are written once a session in the formats that real ones come in.
"""

from __future__ import annotations

import atexit
import gc
import hashlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest

from tests.guard import sitecustomize as guard

# -- nothing of the machine's own --------------------------------------------------------------------------------------


def away_from_home() -> Path:
    """A new folder for everything that is read from, or left in, a home; the processes that tests start inherit it."""
    place = Path(tempfile.mkdtemp(prefix="genbo-tests-"))
    started_by = os.getpid()

    def cleared() -> None:
        if os.getpid() == started_by:  # not a child that was forked
            shutil.rmtree(place, ignore_errors=True)

    atexit.register(cleared)
    folders = {"HOME": "home", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config", "XDG_DATA_HOME": "data"}
    folders |= {"HF_HOME": "hub", "TORCH_HOME": "torch", "TORCHINDUCTOR_CACHE_DIR": "inductor", "MPLCONFIGDIR": "plots"}
    folders |= {"TRITON_CACHE_DIR": "triton"}
    for name, folder in folders.items():
        (place / folder).mkdir()
        os.environ[name] = str(place / folder)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "HF_TOKEN", "PYTHONUSERBASE"):
        os.environ.pop(name, None)
    return place


AWAY = away_from_home()  # before any library that looks there once is imported
NOTED = AWAY / "noted"
os.environ[guard.NOTED] = str(NOTED)
WATCH = str(Path(guard.__file__).parent)
PLACES = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place not in ("", WATCH)]
os.environ["PYTHONPATH"] = os.pathsep.join([WATCH, *PLACES])
guard.watch()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_from_elsewhere() -> Iterator[None]:
    """No test opens a file, or asks for a host, that a fresh machine does not have."""
    yield
    if NOTED.exists():
        noted = sorted(set(NOTED.read_text(encoding="utf-8").splitlines()))
        NOTED.unlink()
        pytest.fail("outside of the checkout, the environment and temporary folders: " + "; ".join(noted))


# -- less of the machine -----------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What was imported for the tests stays to their end, so no search for garbage looks at it again.

    Later searches are seldom: a test leaves little, and most of what it leaves goes without one.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 50, 100)
        gc.enable()


@pytest.fixture(autouse=True, scope="session")
def no_wait_for_the_disk() -> Iterator[None]:
    """Temporary folders need not outlive a power failure. The tests of what is synchronised watch the calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


hypothesis.settings.register_profile("anywhere", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("anywhere")  # nothing fails where the machine is busy


# -- tiny networks -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip `local-dir:` folder: 32 x 32 pixels, prepared with numbers that are nobody's default."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny-clip")
    model_cfg = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    preprocess_cfg = {
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = open_clip.CLIP(**model_cfg)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def random_resnet18(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file of torchvision's ResNet-18 before training, with 1,000 classes."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    file = tmp_path_factory.mktemp("random-resnet18") / "resnet18.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(resnet18().state_dict(), file)
    return file


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline folder: 16 x 16 images, latents of (4, 8, 8), with SD's DDIM."""
    import torch

    from tests.families import stable_diffusion

    folder = tmp_path_factory.mktemp("tiny-sd")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stable_diffusion().save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_pickscore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIPModel's folder as transformers saves it, tokenizer and preprocessing with it: 32 x 32 pixels."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    from tests.families import clip_tokenizer

    folder = tmp_path_factory.mktemp("tiny-pickscore")
    tokenizer = clip_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**tower, **words, "vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    config = CLIPConfig(
        text_config=text,
        vision_config={**tower, "hidden_size": 48, "image_size": 32, "patch_size": 8},
        projection_dim=24,
        logit_scale_init_value=4.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CLIPModel(config)
        for p in network.parameters():
            if p.ndim > 1:  # transformers' first weights would let little of text and image through
                p.data = torch.randn(p.shape) * p[0].numel() ** -0.5
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sides = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**sides, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_image_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ImageReward's tensors, small: timm's vision transformer, transformers' BLIP reader, and a head."""
    import torch
    from safetensors.torch import save_file
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn
    from transformers.models.blip.configuration_blip import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    folder = tmp_path_factory.mktemp("tiny-image-reward")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz,.!?"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + ["dog", "apple", "red", "blue"]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    eye = VisionTransformer(img_size=48, patch_size=16, embed_dim=128, depth=2, num_heads=2, num_classes=0)
    sizes = {"hidden_size": 64, "encoder_hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2}
    sizes |= {"vocab_size": len(words) + 2, "max_position_embeddings": 40, "num_attention_heads": 1}
    config = BlipTextConfig(bos_token_id=2, sep_token_id=3, **sizes)
    reader = BlipTextModel(config, add_pooling_layer=False)
    layers = [nn.Linear(64, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64)]
    head = nn.Sequential(*layers, nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1))
    held = {"blip.vision_proj.weight": torch.zeros(4, 128), "blip.vision_proj.bias": torch.zeros(4)}
    held["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    generator = torch.Generator().manual_seed(0)
    parts = {"blip.visual_encoder.": eye, "blip.text_encoder.": reader, "mlp.layers.": head}
    for prefix, part in parts.items():
        for name, value in part.state_dict().items():
            spread = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
            drawn = spread * torch.randn(value.shape, generator=generator)
            is_norm = value.ndim == 1 and name.endswith("weight")
            held[prefix + name] = drawn + 1 if is_norm else drawn
    save_file(held, folder / "ImageReward.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_timm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's folder as timm saves it: three classes with names."""
    import timm
    import torch
    from timm.models._hub import save_for_hf

    folder = tmp_path_factory.mktemp("tiny-timm")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model("test_vit.r160_in1k", num_classes=3, img_size=64)
        for p in network.parameters():
            if p.ndim == 2:
                p.data = torch.randn(p.shape) * p.shape[1] ** -0.5
    preparation = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3), "interpolation": "bicubic", "crop_pct": 0.9}
    labels = ["cat", "dog", "hen"]
    config = {"label_names": labels, "label_descriptions": {"cat": "tabby, tabby cat", "dog": "dog", "hen": "hen"}}
    save_for_hf(network, folder, model_config=config, safe_serialization=True, data_config=preparation)
    return folder


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Fashion-MNIST comes, of noise: 200 and 40 images of 28 x 28 pixels, ten labels."""
    import gzip
    import random
    import struct

    folder, noise = tmp_path_factory.mktemp("fashion"), random.Random(0)
    for name, count in (("train", 200), ("t10k", 40)):
        images = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + noise.randbytes(count * 28 * 28)
        labels = struct.pack(">4BI", 0, 0, 8, 1, count) + bytes(n % 10 for n in range(count))
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return folder


@pytest.fixture(scope="session")
def own_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python file of a user's own."""
    file = tmp_path_factory.mktemp("own-reward") / "my_reward.py"
    file.write_text("def score(images, prompts):\n    return images.float().mean((1, 2, 3))\n", encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def own_reward_sha256(own_reward: Path) -> str:
    return hashlib.sha256(own_reward.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a small pipeline by its family's name, as `tests.families` makes it."""
    import torch

    from tests.families import MAKERS, lively

    @cache
    def folder_of(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family.replace("_", "-"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            lively(MAKERS[family]()).save_pretrained(folder, safe_serialization=True)
        return folder

    return folder_of

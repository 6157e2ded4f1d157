"""SigLIP through `clip`: open_clip's own architecture, small, with a tokenizer of transformers' in the same folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from genbo.rewards import Refused
from genbo.rewards.clip import Clip
from genbo.rewards.hps import Hps
from tests.rewards.test_clip import pictures

PROMPTS = ["A red apple!", "a dog"]
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def tiny_siglip(tmp_path_factory) -> Path:
    """ViT-B-16-SigLIP as open_clip describes it, but for its size: a map-pooled timm tower, words without a mask."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-siglip")
    config = open_clip.get_model_config("ViT-B-16-SigLIP")
    config["embed_dim"] = 64
    config["vision_cfg"] |= {"timm_model_name": "test_vit.r160_in1k", "image_size": 32}
    config["text_cfg"] |= {"width": 64, "heads": 2, "layers": 2, "vocab_size": 64, "context_length": 16}
    letters = ["</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz!", *"ABCR"]
    words = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, [], unk_token="<unk>"))
    words.normalizer = normalizers.Sequence([normalizers.NFKC()])
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="</s>", unk_token="<unk>", model_max_length=16
    ).save_pretrained(folder)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    (folder / CONFIG).write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"})
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / WEIGHTS)
    return Path(folder)


@pytest.fixture
def folder(tiny_siglip, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_siglip, tmp_path / "siglip"))


@pytest.mark.parametrize("shape", [(32, 32), (70, 50)])
def test_score_is_the_cosine_of_open_clips_own_path(tiny_siglip, shape):
    network, transform = open_clip.create_model_from_pretrained(f"local-dir:{tiny_siglip}")
    assert type(network).__name__ == "CustomTextCLIP" and network.logit_bias.item() == -10
    tokenize = open_clip.get_tokenizer(f"local-dir:{tiny_siglip}")
    assert type(tokenize).__name__ == "HFTokenizer"
    words = tokenize(PROMPTS)
    assert words.shape == (2, 16) and words[0, -1] == 0
    assert torch.equal(words[0], tokenize(["a red apple"])[0]), "SigLIP reads neither capitals nor punctuation"
    images = pictures(2, *shape)
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    with torch.no_grad():
        image = network.encode_image(torch.stack([transform(Image.fromarray(p)) for p in pixels]))
        text = network.encode_text(words)
    score = Clip(str(tiny_siglip)).open()(images, PROMPTS)
    torch.testing.assert_close(score, torch.cosine_similarity(image, text), atol=5e-3, rtol=0)
    swapped = Clip(str(tiny_siglip)).open()(images, PROMPTS[::-1])
    assert (score - swapped).abs().max() > 0.01, "the prompt must matter, or this test says nothing of it"


def test_the_gradient_reaches_the_image(tiny_siglip):
    images = pictures(2, 40, 40).requires_grad_()
    score = Clip(str(tiny_siglip)).open()(images, PROMPTS)
    (grad,) = torch.autograd.grad(score[0], images)
    assert grad[0].abs().max() > 0 and not grad[1].any()


def test_a_folder_without_its_tokenizer_says_which_it_needs(folder):
    (folder / "tokenizer.json").unlink()
    (mistake,) = Clip(str(folder)).mistakes()
    assert mistake.startswith(f"pretrained: {folder} has no tokenizer (tokenizer.json or tokenizer.model), which")
    assert mistake.endswith("put that of timm/ViT-B-16-SigLIP there")
    assert Hps(str(folder)).mistakes() == [mistake]


def test_a_weights_file_cannot_bring_the_tokenizer(tiny_siglip):
    (mistake,) = Clip(str(tiny_siglip / WEIGHTS), model="ViT-B-16-SigLIP", preprocess="siglip").mistakes()
    assert "the tokenizer of ViT-B-16-SigLIP lies on the hub (timm/ViT-B-16-SigLIP)" in mistake
    assert mistake.endswith(f"put both into a folder with {CONFIG}, and name that without model")
    plain = Clip(str(tiny_siglip / WEIGHTS), model="ViT-B-32", preprocess="openai")
    assert plain.mistakes() == [], "open_clip brings the tokenizer of the others"


def test_a_tokenizer_that_cannot_be_read_is_a_sentence(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(Refused, match=r"the tokenizer of .* could not be loaded \(.+\); put its files into the folder"):
        Clip(str(folder)).open()


def test_a_tokenizer_may_name_no_code(folder):
    """By open_clip's own config a folder could let transformers run what lies in it."""
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["text_cfg"]["tokenizer_kwargs"]["trust_remote_code"] = True
    (folder / CONFIG).write_text(json.dumps(config))
    (mistake,) = Clip(str(folder)).mistakes()
    assert "hands trust_remote_code to the tokenizer, which could run code by it; delete it" in mistake


def test_code_of_a_tokenizers_own_is_not_run(folder):
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**said, "auto_map": {"AutoTokenizer": ["evil.Evil"] * 2}})
    )
    (folder / "evil.py").write_text(f"open({str(folder / 'was-run')!r}, 'w')")
    (mistake,) = Clip(str(folder)).mistakes()
    assert "names code of its own, which is not run; delete its auto_map" in mistake
    with pytest.raises(Refused):
        Clip(str(folder)).open()
    assert not (folder / "was-run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda held: held.pop("text.text_projection.bias"),
            r'Missing key\(s\) in state_dict: "text.text_projection.bias"',
        ),
        (lambda held: held["logit_bias"].fill_(float("nan")), "logit_bias of .* holds a NaN or an infinity; fetch"),
    ],
    ids=["missing", "NaN"],
)
def test_a_weight_that_is_missing_or_broken_is_named(folder, change, said):
    held = load_file(folder / WEIGHTS)
    change(held)
    save_file(held, folder / WEIGHTS)
    with pytest.raises(Refused, match=said):
        Clip(str(folder)).open()

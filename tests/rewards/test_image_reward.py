"""ImageReward's network against timm's vision transformer and transformers' BLIP and BERT, its recipe as published."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision import transforms
from transformers import BertTokenizer
from transformers.models.blip.configuration_blip import BlipTextConfig
from transformers.models.blip.modeling_blip_text import BlipTextModel

from genbo.rewards import Refused
from genbo.rewards.image_reward import ImageReward, wanted
from tests.rewards.test_clip import pictures

PROMPTS = ["a red apple!", "dogs", "a dog and a dog, a dog and an apple, a dog, a dog, a dog, a dog and one blue dog"]


@pytest.fixture
def folder(tiny_image_reward, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_image_reward, tmp_path / "image-reward"))


def of(held: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in held.items() if name.startswith(prefix)}


def tokenizer(folder: Path) -> BertTokenizer:
    """BLIP's: BERT's without capitals and two more tokens."""
    found = BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=True)
    found.add_special_tokens({"bos_token": "[DEC]"})
    found.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return found


def published(folder: Path, prepared: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """The steps of its `score`, on other people's networks."""
    held = load_file(folder / "ImageReward.safetensors")
    eye = VisionTransformer(img_size=48, patch_size=16, embed_dim=128, depth=2, num_heads=2, num_classes=0)
    eye.load_state_dict(of(held, "blip.visual_encoder."))
    sizes = {"hidden_size": 64, "encoder_hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2}
    words = held["blip.text_encoder.embeddings.word_embeddings.weight"].shape[0]
    more = {"max_position_embeddings": 40, "num_attention_heads": 1, "bos_token_id": 2, "sep_token_id": 3}
    reader = BlipTextModel(BlipTextConfig(vocab_size=words, **sizes, **more), add_pooling_layer=False)
    reader.load_state_dict(of(held, "blip.text_encoder."), strict=False)
    layers = [nn.Linear(64, 1024), nn.Dropout(0.2), nn.Linear(1024, 128), nn.Dropout(0.2), nn.Linear(128, 64)]
    head = nn.Sequential(*layers, nn.Dropout(0.1), nn.Linear(64, 16), nn.Linear(16, 1))
    head.load_state_dict(of(held, "mlp.layers."))
    given = tokenizer(folder)(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    with torch.no_grad():
        seen = eye.eval().forward_features(prepared)
        read = reader.eval()(
            input_ids=given.input_ids,
            attention_mask=given.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long),
        )
        score: torch.Tensor = head.eval()(read.last_hidden_state[:, 0])
    return (score[:, 0] - 0.16717362830052426) / 1.0333394966054072


def by_pillow(images: torch.Tensor) -> torch.Tensor:
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    steps = [transforms.Resize(48, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(48)]
    transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return torch.stack([transform(Image.fromarray(p)) for p in pixels])


@pytest.mark.parametrize("shape", [(48, 48), (97, 97), (48, 55), (64, 91)])
def test_is_the_published_recipe(tiny_image_reward, shape):
    images = pictures(3, *shape)
    reward = ImageReward(str(tiny_image_reward)).open()
    mine = reward(images, PROMPTS)
    assert ((reward.prepare(images) - by_pillow(images)) * 0.26).abs().max() < 2.5 / 255
    theirs = published(tiny_image_reward, by_pillow(images), PROMPTS)
    torch.testing.assert_close(mine, theirs, atol=0.03 * theirs.std().item(), rtol=0)
    assert theirs.std() > 0.1, "the network must tell these apart, or this test says nothing"
    torch.testing.assert_close(
        mine, published(tiny_image_reward, reward.prepare(images), PROMPTS), atol=1e-4, rtol=1e-4
    )


def test_prompts_become_the_same_words(tiny_image_reward):
    prompts = [*PROMPTS, "", "Ünïcode ñ 苹果!?", "DOG. dog,dog"]
    given = tokenizer(tiny_image_reward)(prompts, padding="max_length", truncation=True, max_length=35)
    words, there = ImageReward(str(tiny_image_reward)).open().words(prompts)
    assert words.tolist() == given["input_ids"] and there.tolist() == given["attention_mask"]
    assert len(set(map(tuple, words.tolist()))) == len(prompts) and words.shape == (6, 35)


def test_the_image_and_the_prompt_both_count(tiny_image_reward):
    reward = ImageReward(str(tiny_image_reward)).open()
    images = pictures(1, 48, 48).expand(2, -1, -1, -1)
    assert (reward(images, ["a dog", "an apple"]).diff().abs() > 1e-3).all()
    assert (reward(pictures(2, 48, 48), ["a dog", "a dog"]).diff().abs() > 1e-3).all()


def test_of_published_widths_every_layer_is_wanted():
    """ViT-L and BERT-base: 24 and 12 layers, even of a file that lost its last ones."""
    large = {
        "blip.visual_encoder.patch_embed.proj.weight": (1024, 3, 16, 16),
        "blip.visual_encoder.pos_embed": (1, 197, 1024),
        "blip.visual_encoder.blocks.0.norm1.weight": (1024,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (30524, 768),
        "blip.text_encoder.embeddings.position_embeddings.weight": (512, 768),
        "blip.text_encoder.encoder.layer.0.output.LayerNorm.weight": (768,),
    }
    found = wanted(large)
    assert "blip.visual_encoder.blocks.23.mlp.fc2.weight" in found
    assert "blip.text_encoder.encoder.layer.11.crossattention.self.key.weight" in found
    assert found["blip.text_encoder.encoder.layer.11.crossattention.self.key.weight"] == (768, 1024)
    assert found["mlp.layers.0.weight"] == (1024, 768) and found["mlp.layers.7.bias"] == (1,)
    assert wanted({}) == found, "a file that has nothing is told of the published network"
    numbers = sum(torch.Size(shape).numel() for shape in found.values())
    assert 440e6 < numbers < 450e6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda held: held.pop("mlp.layers.7.bias"), "has no mlp.layers.7.bias, which ImageReward needs"),
        (lambda held: held.update({"mlp.layers.7.bias": torch.zeros(2)}), "mlp.layers.7.bias is 2 in"),
        (lambda held: held.update({"mlp.layers.1.bias": torch.zeros(2)}), "has mlp.layers.1.bias, which"),
        (
            lambda held: held.update({"blip.visual_encoder.pos_embed": torch.zeros(3)}),
            "are not shaped as ImageReward's",
        ),
    ],
    ids=["missing", "shape", "extra", "strange"],
)
def test_what_is_wrong_with_the_file_is_said_before_it_is_read(folder, change, said):
    held = load_file(folder / "ImageReward.safetensors")
    change(held)
    save_file(held, folder / "ImageReward.safetensors")
    (mistake,) = ImageReward(str(folder)).mistakes()
    assert said in mistake and "; " in mistake


def test_a_nan_is_named(folder):
    held = load_file(folder / "ImageReward.safetensors")
    held["mlp.layers.4.weight"][3, 3] = float("nan")
    save_file(held, folder / "ImageReward.safetensors")
    with pytest.raises(Refused, match=r"mlp.layers.4.weight in .* holds a NaN or an infinity"):
        ImageReward(str(folder)).open()


def test_a_vocabulary_of_another_model_is_a_sentence(folder):
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    with pytest.raises(
        Refused, match=r"6 words, for a network that knows 67.*; put the vocab.txt of bert-base-uncased"
    ):
        ImageReward(str(folder)).open()
    (folder / "vocab.txt").unlink()
    (mistake,) = ImageReward(str(folder)).mistakes()
    assert "vocab.txt is missing; put the vocab.txt of bert-base-uncased there" in mistake


def test_the_conversion_that_the_mistake_gives_works(folder, monkeypatch):
    monkeypatch.chdir(folder)
    torch.save(load_file("ImageReward.safetensors"), "ImageReward.pt")
    Path("ImageReward.safetensors").unlink()
    (mistake,) = ImageReward(".").mistakes()
    (same,) = ImageReward("ImageReward.pt").mistakes()
    code = mistake.partition("convert it: ")[2]
    assert code == same.partition("convert it: ")[2] and "which can run code" in same
    exec(f"import torch, safetensors.torch\n{code}")  # noqa: S102 - our own sentence
    assert ImageReward(".").open()(pictures(1, 48, 48), ["a dog"]).isfinite().all()


@pytest.mark.parametrize(
    ("name", "said"),
    [("", "it is empty; give a folder with"), ("nowhere", "there is no folder nowhere; give one with")],
)
def test_a_folder_must_be_given(name, said):
    (mistake,) = ImageReward(name).mistakes()
    assert mistake == f"pretrained: {said} ImageReward.safetensors and vocab.txt"

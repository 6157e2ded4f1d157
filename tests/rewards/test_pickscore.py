"""PickScore against transformers' own CLIPModel and CLIPProcessor, on a small random model of the same class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from genbo.rewards import Refused
from genbo.rewards.pickscore import Pickscore
from tests.rewards.test_clip import pictures

PROMPTS = ["a red apple", "dog", "a dog, a dog and a very long tail of a dog that nobody reads to its end"]


@pytest.fixture
def folder(tiny_pickscore, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_pickscore, tmp_path / "pickscore"))


def published(folder: Path, images: torch.Tensor, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Its model card's own recipe: the prepared images, and the score of each with its prompt."""
    network, processor = CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)
    pixels = [Image.fromarray(p) for p in (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()]
    longest = network.config.text_config.max_position_embeddings
    seen = processor(images=pixels, return_tensors="pt")
    read = processor(text=prompts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    with torch.no_grad():
        found = network(**seen, **read)
    return seen["pixel_values"], found.logits_per_text.diagonal()


@pytest.mark.parametrize("shape", [(32, 32), (97, 97), (51, 72), (64, 94), (80, 45)])
def test_is_transformers_clip_with_its_own_scale(tiny_pickscore, shape):
    images = pictures(3, *shape)
    prepared, scores = published(tiny_pickscore, images, PROMPTS)
    reward = Pickscore(str(tiny_pickscore)).open()
    std = torch.tensor([0.2, 0.25, 0.3]).reshape(-1, 1, 1)
    assert ((reward.prepare(images) - prepared) * std).abs().max() < 2.5 / 255
    torch.testing.assert_close(reward(images, PROMPTS), scores, atol=0.03 * scores.std().item(), rtol=0)
    assert scores.std() > 1, "the network must tell these apart, or this test says nothing"


def test_a_config_of_an_older_transformers_means_the_same(folder, tiny_pickscore):
    """Published in 2023: eos_token_id 2 stood for the last token, and configs spoke of generation."""
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"eos_token_id": 2, "bos_token_id": 0, "num_beams": 1, "bad_words_ids": None}
    config |= {"torch_dtype": "float32", "transformers_version": "4.27.0", "logit_scale_init_value": 2.6592}
    (folder / "config.json").write_text(json.dumps(config))
    images = pictures(3, 32, 32)
    older, newer = (Pickscore(str(place)).open()(images, PROMPTS) for place in (folder, tiny_pickscore))
    torch.testing.assert_close(older, newer)
    torch.testing.assert_close(older, published(folder, images, PROMPTS)[1], atol=1e-3, rtol=1e-4)


def test_positions_of_an_older_file_are_let_be(folder):
    held = load_file(folder / "model.safetensors")
    held["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    save_file(held, folder / "model.safetensors")
    assert Pickscore(str(folder)).open()(pictures(1, 32, 32), ["dog"]).isfinite().all()


def test_without_its_preprocessor_images_are_prepared_as_clip_does(folder):
    (folder / "preprocessor_config.json").unlink()
    reward = Pickscore(str(folder)).open()
    assert reward.preparation["mean"] == (0.48145466, 0.4578275, 0.40821073) and reward.preparation["size"] == 32


def test_each_prompt_meets_the_text_tower_once(tiny_pickscore, monkeypatch):
    reward = Pickscore(str(tiny_pickscore)).open()
    seen = []
    forward = reward.network.text_model.forward
    monkeypatch.setattr(
        reward.network.text_model, "forward", lambda **given: seen.append(len(given["input_ids"])) or forward(**given)
    )
    images = pictures(3, 32, 32)
    first = reward(images, ["dog", "red", "dog"])
    assert seen == [2] and torch.equal(reward(images, ["dog", "red", "dog"]), first)
    assert seen == [2]


# -- what can be wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda held: held.pop("visual_projection.weight"),
            "has no visual_projection.weight, which this CLIPModel needs",
        ),
        (lambda held: held["logit_scale"].fill_(float("inf")), "logit_scale in .* holds a NaN or an infinity"),
        (lambda held: held.update({"logit_scale": torch.zeros(2)}), "logit_scale is 2 in .*, but a single number in"),
        (lambda held: held.update({"text_model.extra": torch.zeros(2)}), "has text_model.extra, which .* no place for"),
    ],
    ids=["missing", "infinite", "shape", "extra"],
)
def test_a_weight_that_is_missing_or_broken_is_named(folder, change, said):
    held = load_file(folder / "model.safetensors")
    change(held)
    save_file(held, folder / "model.safetensors")
    with pytest.raises(Refused, match=said):
        Pickscore(str(folder)).open()


def _edited(**changes):
    def edit(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (_edited(model_type="bert"), "is of no CLIPModel; give a folder of PickScore"),
        (_edited(text_config=None), "is of no CLIPModel"),
        (_pickled, "convert pytorch_model.bin, which is pickled and can run code"),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "has no tokenizer; put tokenizer.json of laion/CLIP-ViT-H",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_before_anything_is_loaded(folder, change, said):
    change(folder)
    (mistake,) = Pickscore(str(folder)).mistakes()
    assert mistake.startswith("pretrained: ") and said in mistake


@pytest.mark.parametrize(("name", "said"), [("", "it is empty"), ("nowhere", "there is no folder nowhere")])
def test_a_folder_must_be_given(name, said):
    (mistake,) = Pickscore(name).mistakes()
    assert said in mistake and "; give" in mistake


def test_numbers_that_make_no_network_are_a_sentence(folder):
    config = json.loads((folder / "config.json").read_text())
    _edited(vision_config={**config["vision_config"], "num_attention_heads": 7})(folder)
    with pytest.raises(Refused, match=r"makes no CLIPModel \(.+\); put the model's own there"):
        Pickscore(str(folder)).open()


@pytest.mark.parametrize("said", ['{"size": {"shortest_edge": 64}}', '{"resample": 1}', '{"image_mean": 3}', "["])
def test_a_preprocessor_that_cannot_be_is_a_sentence(folder, said):
    (folder / "preprocessor_config.json").write_text(said)
    with pytest.raises(Refused, match=r"preprocessor_config.json .+; put the one of laion/CLIP-ViT-H"):
        Pickscore(str(folder)).open()


def test_a_tokenizer_that_cannot_be_read_is_a_sentence(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(Refused, match=r"the tokenizer in .* cannot be read \(.+\); put tokenizer.json of laion"):
        Pickscore(str(folder)).open()


def test_a_tokenizer_that_knows_no_word_is_a_sentence(folder):
    said = json.loads((folder / "tokenizer.json").read_text())
    said["model"] |= {"vocab": {"<|startoftext|>": 0, "<|endoftext|>": 1}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(Refused, match=r"cannot be read \(it knows no word\); put tokenizer.json of laion"):
        Pickscore(str(folder)).open()


def test_a_tokenizer_of_another_model_is_a_sentence(folder):
    held = load_file(folder / "model.safetensors")
    held["text_model.embeddings.token_embedding.weight"] = held["text_model.embeddings.token_embedding.weight"][:99]
    save_file({k: v.clone() for k, v in held.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    text = {**config["text_config"], "vocab_size": 99, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    _edited(text_config=text)(folder)
    with pytest.raises(Refused, match=r"tokens, but the network 99; put tokenizer.json of"):
        Pickscore(str(folder)).open()


def test_the_real_config_is_one_that_transformers_makes_too():
    """PickScore's sizes, as published, on no device at all: every number of a CLIP-H is one that is read."""
    from genbo.rewards.pickscore import TEXT, VISION

    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    assert set(text) <= set(TEXT) and set(vision) <= set(VISION)
    with torch.device("meta"):
        network = CLIPModel(
            CLIPConfig(
                text_config={**text, "hidden_act": "gelu"},
                vision_config={**vision, "hidden_act": "gelu", "patch_size": 14},
                projection_dim=1024,
            )
        )
    assert 0.98e9 < sum(p.numel() for p in network.parameters()) < 0.99e9

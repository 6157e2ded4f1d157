"""The rewards that the field uses, in one job on a Stable Diffusion pipeline: gradients both ways, and every hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from genbo.cli.commands.tune import tune
from genbo.cli.job.job import JobMistakes, read_job


def test_forward_and_reverse_agree_through_all_of_them(
    tiny_sd: Path,
    tiny_pickscore: Path,
    tiny_image_reward: Path,
    tiny_timm: Path,
    tiny_clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "my.py").write_text("def score(images, prompts):\n    return images.mean((1, 2, 3))\n")
    rewards = [
        {"kind": "pickscore", "pretrained": str(tiny_pickscore)},
        {"kind": "image_reward", "pretrained": str(tiny_image_reward)},
        {"kind": "classifier", "pretrained": str(tiny_timm), "label": "dog"},
        {"kind": "hps", "pretrained": str(tiny_clip)},
        {"kind": "external", "file": "my.py", "differentiable": True},
    ]
    job: dict[str, Any] = {
        "version": 1,
        "model": {"pretrained": str(tiny_sd), "device": "cpu", "sampler": {"kind": "ddim", "steps": 3}},
        "prompts": ["a red dog", "an apple"],
        "tune": {"guidance": {"start": 3.0}},
        "reward": rewards,
        "budget": {"steps": 1, "samples": 4},
        "evaluate": {"samples": 4},
    }
    found = [
        tune({**job, "estimator": name, "output": name}, allow_code=["my.py"]).result().document
        for name in ("reverse_mode", "forward_mode")
    ]
    (reverse,), (forward,) = (document["steps"][0]["grad"] for document in found)
    assert reverse == pytest.approx(forward, rel=1e-3) and abs(reverse) > 0.01
    inputs = found[0]["environment"]["inputs"]
    assert set(inputs["image_reward"]) == {"ImageReward.safetensors", "vocab.txt"}
    assert set(inputs["classifier"]) == {"config.json", "model.safetensors"}
    assert {"model.safetensors", "tokenizer.json"} <= set(inputs["pickscore"])
    assert set(inputs["external"]) == {"my.py"} and "open_clip_model.safetensors" in inputs["hps"]


def test_sets_by_their_precision_recall_and_diversity(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the two only one compares with data; neither wants to be differentiated here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    for n in range(40):
        Image.effect_noise((16, 16), 30 + n).convert("RGB").save(tmp_path / "data" / f"{n}.png")
    near, far = {"kind": "precision_recall", "features": "pixels"}, {"kind": "diversity", "features": "pixels"}
    job: dict[str, Any] = {
        "version": 1,
        "model": {"pretrained": str(tiny_sd), "device": "cpu", "sampler": {"kind": "ddim", "steps": 2}},
        "prompts": ["a red dog", "an apple"],
        "tune": {"guidance": {"start": 3.0}},
        "budget": {"steps": 1, "samples": 8},
        "evaluate": {"samples": 8},
    }
    assert read_job({**job, "reward": far}).reward[0].kind == "diversity"
    with pytest.raises(JobMistakes, match="precision_recall compares samples with data"):
        read_job({**job, "reward": [far, near]})
    with pytest.raises(JobMistakes, match="nothing in this job uses data"):
        read_job({**job, "reward": far, "data": "digits"})
    shares = {"path": "data", "validation": 0.4, "test": 0.4}
    found = tune({**job, "reward": [near, far], "data": shares, "output": "sets"}).result().document
    assert found["estimator"]["kind"] == "zeroth_order"
    rewards = found["rewards"]
    assert 0 <= rewards["precision_recall"]["tuned"] <= 1 and rewards["diversity"]["tuned"] > 0

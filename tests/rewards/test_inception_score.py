"""The inception score against torchmetrics, by hand, and on sets whose score is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from genbo.diffusion.data import Data
from genbo.rewards import Refused
from genbo.rewards.inception_score import ExpDivergence, InceptionScore, divergences, divided

PROMPTS = ["key", "hole", "flat hammer"]


def beliefs(n: int, seed: int, classes: int = 7) -> torch.Tensor:
    """Log-probabilities (n, classes)."""
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(n, classes, generator=generator, dtype=torch.float64)).log_softmax(-1)


def score(logp: torch.Tensor, splits: int = 1) -> torch.Tensor:
    return -ExpDivergence(splits).values(logp, {})


class Given(torch.nn.Module):
    """torchmetrics' feature network, where the scores of the classes are there already."""

    num_features = 7

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


# -- the formula -------------------------------------------------------------------------------------------------------


def test_is_that_of_torchmetrics():
    from torchmetrics.image.inception import InceptionScore as Theirs

    logp = beliefs(60, 0)
    metric = Theirs(feature=Given(), splits=1)
    metric.update(logp)
    assert score(logp).mean().item() == pytest.approx(metric.compute()[0].item(), rel=1e-12)
    assert score(logp).mean().item() == pytest.approx(3.2, abs=0.5), "not a trivial value"


def test_splits_are_those_of_torchmetrics(monkeypatch):
    """It shuffles at random; told our order, it divides the samples as we do, into parts of unequal size too."""
    from torchmetrics.image.inception import InceptionScore as Theirs

    logp = beliefs(47, 1)
    order = torch.cat(divided(47, 5))
    assert sorted(order.tolist()) == list(range(47)) and order.tolist() != list(range(47))
    metric = Theirs(feature=Given(), splits=5)
    metric.update(logp)
    found = score(logp, splits=5).mean().item()
    monkeypatch.setattr(torch, "randperm", lambda n: order)
    assert found == pytest.approx(metric.compute()[0].item(), rel=1e-12)


def test_is_the_formula_by_hand():
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])
    kl = (p * np.log(p / p.mean(0))).sum(1)
    found = score(torch.from_numpy(p).log())
    assert found.mean().item() == pytest.approx(np.exp(kl.mean()))
    np.testing.assert_allclose(divergences(torch.from_numpy(p).log()).numpy(), kl)


def test_sure_of_all_classes_alike_is_their_number_and_unsure_is_one():
    sure = (1e3 * torch.eye(5, dtype=torch.float64)).log_softmax(-1).repeat(4, 1)
    assert score(sure).mean().item() == pytest.approx(5)
    assert score(sure[::5]).mean().item() == pytest.approx(1), "one class only"
    assert score(torch.zeros(6, 5).double().log_softmax(-1)).mean().item() == pytest.approx(1)


def test_shares_are_the_influence_of_each_sample():
    """A sample that counts a little more moves the score by its share less the mean."""
    logp, n, more = beliefs(12, 2), 12, 1e-6

    def weighted(w: torch.Tensor) -> torch.Tensor:
        w = w / w.sum()
        p = logp.exp()
        return (w @ (p * (logp - (w @ p).log())).sum(1)).exp()

    even = torch.full((n,), 1 / n, dtype=torch.float64)
    slopes = [(weighted(even * (1 - more) + more * torch.eye(n)[i].double()) - weighted(even)) / more for i in range(n)]
    torch.testing.assert_close(score(logp) - score(logp).mean(), torch.stack(slopes), atol=1e-4, rtol=1e-4)


def test_the_standard_error_is_that_of_repeated_sets():
    """Of 400 sets of 100 samples; the spread of the shares tells it from one set."""
    sets = [score(beliefs(100, 100 + seed)) for seed in range(400)]
    spread = torch.stack([rows.mean() for rows in sets]).std().item()
    told = np.mean([rows.std().item() / 10 for rows in sets])
    assert told == pytest.approx(spread, rel=0.12)


@pytest.mark.parametrize("splits", [1, 3])
def test_the_gradient_is_that_of_the_mean(splits):
    logits = beliefs(9, 3, classes=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: score(x.log_softmax(-1), splits).mean(), logits)


# -- the classifiers ---------------------------------------------------------------------------------------------------


def test_digits_by_the_bundled_classifier():
    """6.1474699974 is torchmetrics 1.9.0's value for the class scores of these images."""
    images = Data("digits").open().test.unit()[:100]
    found = InceptionScore("digits-features").open()(images)
    assert found.mean().item() == pytest.approx(6.1474699974, rel=1e-4)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    assert InceptionScore("digits-features").open()(noise).mean() < 3


def test_inception_has_the_classes_of_torchmetrics(tmp_path):
    """The scores without the bias, as the published score takes them; the formula on them is tested above."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    from genbo.rewards._inception import Inception

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Inception().network
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        network.fc.bias.data.normal_()
        images = torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    theirs = NoTrainInceptionV3("inception-v3-compat", ["logits_unbiased"], str(tmp_path / "weights.pth"))
    with torch.no_grad():
        wanted = theirs(images).log_softmax(-1)
        found = InceptionScore("inception", str(tmp_path / "weights.safetensors")).open().features(images.float() / 255)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_timm_classifier_is_given_what_the_classifier_reward_is_given(tiny_timm):
    from genbo.rewards.classifier import Classifier

    images = torch.rand(4, 3, 40, 30, generator=torch.Generator().manual_seed(2))
    logp = InceptionScore(str(tiny_timm)).open().features(images)
    for label in (0, 1):
        torch.testing.assert_close(Classifier(str(tiny_timm), label).open()(images, [""] * 4), logp[:, label])


def test_a_clip_believes_in_the_texts_by_its_own_scale():
    import open_clip

    from genbo.rewards import bundled

    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    reward = InceptionScore("emoji-clip", classes=PROMPTS).open()
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{bundled.folder('emoji-clip')}")
    tokens = open_clip.get_tokenizer(f"local-dir:{bundled.folder('emoji-clip')}")(PROMPTS)
    from genbo.rewards.clip import Clip

    with torch.no_grad():
        x = Clip("emoji-clip").open().prepare(images)
        wanted = model.eval().get_logits(x, tokens)[0].log_softmax(-1)
        torch.testing.assert_close(reward.features(images), wanted, atol=1e-4, rtol=1e-4)


# -- what cannot be scored ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"features": "pixels"}, "features: pixels have no classes; name a classifier"),
        ({"features": "nowhere"}, "features: 'nowhere' is no folder"),
        ({"features": "emoji-clip"}, "classes: a CLIP needs at least 2 texts to choose from; list them"),
        ({"features": "emoji-clip", "classes": ["a", "a"]}, "classes: a CLIP needs at least 2 texts"),
        ({"features": "digits-features", "classes": ["a", "b"]}, "classes: digits-features has classes of its own"),
        ({"features": "timm:resnet18", "weights": "download"}, "weights: classes of timm:resnet18 are not downloaded"),
        ({"features": "inception"}, "weights: inception needs a safetensors file"),
    ],
)
def test_mistakes_are_sentences(options, sentence):
    (found,) = InceptionScore(**options).mistakes()
    assert found.startswith(sentence)


def test_what_cannot_be_scored():
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(Refused, match="an inception score of 3 splits needs at least 6 samples, not 5"):
        InceptionScore("digits-features", splits=3).open()(images)
    assert InceptionScore("digits-features").open()(torch.full_like(images, float("nan"))).isnan().all()

"""Precision and recall against their definition written out ball by ball, and against answers known on paper."""

from __future__ import annotations

import pytest
import torch

from genbo.rewards import Refused
from genbo.rewards.precision_recall import Neighbours, PrecisionRecall, recalls

SCORES = ("precision", "recall", "f1")


def law(n: int, seed: int, shift: float = 0.0, dimensions: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dimensions, generator=generator, dtype=torch.float64) + shift


def in_balls(points: torch.Tensor, centres: torch.Tensor, k: int) -> float:
    """The share of points in the union of balls, one ball at a time."""
    inside = [False] * len(points)
    for c in centres:
        radius = sorted((c - other).norm().item() for other in centres)[k]  # the first is itself
        for i, p in enumerate(points):
            inside[i] = inside[i] or (c - p).norm().item() <= radius
    return sum(inside) / len(points)


def score(x: torch.Tensor, y: torch.Tensor, which: str, k: int = 3) -> torch.Tensor:
    rule = Neighbours(which, k)
    return -rule.values(x, rule.keep(y))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0])
def test_is_the_definition_ball_by_ball(k, shift):
    x, y = law(23, 0, shift), law(31, 1)
    precision, recall = in_balls(x, y, k), in_balls(y, x, k)
    found = {which: score(x, y, which, k).mean().item() for which in SCORES}
    total = precision + recall
    expected = {"precision": precision, "recall": recall, "f1": 2 * precision * recall / total if total else 0.0}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("which", SCORES)
def test_the_ends_are_known(which):
    y = law(20, 0)
    assert score(y.clone(), y, which).mean().item() == pytest.approx(1)
    assert score(law(20, 1, shift=100.0), y, which).mean().item() == 0


def test_one_corner_of_the_data_is_precise_and_does_not_recall():
    """Samples that all stand where a tenth of the data does: what strong guidance does."""
    y = torch.cat([law(20, n, shift=20.0 * n) for n in range(10)])
    x = law(20, 99)
    assert score(x, y, "precision").mean().item() > 0.6
    assert score(x, y, "recall").mean().item() <= 0.1


@pytest.mark.parametrize("k", [1, 3])
def test_what_a_sample_did_to_the_recall_is_what_leaving_it_out_undoes(k):
    x, y = law(14, 3, 0.5), law(25, 4)
    covered, without = recalls(x, y, k)
    assert covered.item() == pytest.approx(in_balls(y, x, k))
    left = [in_balls(y, torch.cat([x[:i], x[i + 1 :]]), k) for i in range(len(x))]
    assert without.tolist() == pytest.approx(left)
    assert without.std() > 0, "the samples must matter, or this test says nothing"


def test_of_f1_the_shares_are_those_of_its_two_parts():
    """By differences: the weight of one sample's share, moved through the harmonic mean."""
    x, y = law(30, 5, 0.8), law(30, 6)
    p, r, f = (score(x, y, which) for which in SCORES)
    h = 1e-6

    def harmonic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return 2 * a * b / (a + b)

    moved = harmonic(p.mean() + h * (p - p.mean()), r.mean() + h * (r - r.mean()))
    torch.testing.assert_close((moved - harmonic(p.mean(), r.mean())) / h, f - f.mean(), atol=1e-5, rtol=1e-5)


def test_the_error_bar_is_about_right():
    """The spread over fresh sets, against what one set says of itself; with the data held fixed."""
    y = law(100, 0)
    found = [score(law(50, seed, 0.5), y, "f1") for seed in range(100, 220)]
    seen = torch.stack([rows.mean() for rows in found]).std().item()
    said = torch.stack([rows.std() for rows in found]).mean().item() / 50**0.5
    assert 0.6 < said / seen < 1.6


def test_as_a_reward_of_sets(tmp_path):
    opened = PrecisionRecall("pixels", score="precision").open()
    assert opened.of_sets and not opened.differentiable and not PrecisionRecall.differentiable
    data = torch.rand(12, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    reward = opened.against(data, tmp_path)
    assert not reward.differentiable
    again = opened.against(data, tmp_path)  # from the cache
    images = torch.rand(9, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    assert reward(images).mean().item() == pytest.approx(in_balls(images.flatten(1), data.flatten(1), 3))
    assert torch.equal(reward(images), again(images)) and reward(images).shape == (9,)
    assert reward(images * float("nan")).isnan().all()


def test_too_few_are_sentences(tmp_path):
    opened = PrecisionRecall("pixels").open()
    with pytest.raises(Refused, match="3 images have no 3 neighbours each; give at least 4"):
        opened.against(torch.rand(3, 1, 2, 2), tmp_path)
    with pytest.raises(Refused, match="4 samples have too few neighbours for k: 3; draw 5 or more"):
        opened.against(torch.rand(8, 1, 2, 2), tmp_path)(torch.rand(4, 1, 2, 2))

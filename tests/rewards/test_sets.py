"""What every distance between sets promises as a reward, and how what is known of the data is kept."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

from genbo.rewards import Refused
from genbo.rewards._sets import cached, features_of
from genbo.rewards.fid import Fid
from genbo.rewards.kid import Kid
from genbo.rewards.mmd import Mmd

DISTANCES = [Fid, Kid, Mmd]


def images(count: int, seed: int = 0, size: int = 8) -> torch.Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=DISTANCES, ids=lambda cls: cls.__name__)
def reward(request, tmp_path):
    return request.param("digits-features").open().against(images(60, seed=1) ** 2, tmp_path)


def test_nearer_sets_score_higher(reward):
    scores = [reward(images(40, seed=2) ** power).mean() for power in (2.0, 1.0, 0.4)]
    assert scores[0] > scores[1] > scores[2]


def test_a_number_a_sample_in_double_precision(reward):
    x = images(12)
    before = x.clone()
    rows = reward(x, ["a prompt"] * 12)
    assert rows.shape == (12,) and rows.dtype == torch.float64 and rows.isfinite().all()
    assert torch.equal(x, before) and torch.equal(rows, reward(x))
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(reward(x[order]), rows[order])


def test_gradients_reach_the_images(reward):
    x = images(12).requires_grad_()
    (grad,) = torch.autograd.grad(reward(x).mean(), x)
    assert grad.isfinite().all() and grad.flatten(1).any(1).all()
    step = 1e-3 * reward(x).mean().abs() / grad.square().sum()
    higher = reward((x + step * grad).detach()).mean() - reward(x).mean()
    torch.testing.assert_close(higher, step * grad.square().sum(), rtol=0.1, atol=0, check_dtype=False)


def test_forward_mode_is_reverse_mode(reward):
    x, direction = images(12), images(12, seed=3) - 0.5
    live = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(reward(live).mean(), live)
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(reward(forward_ad.make_dual(x, direction)).mean()).tangent
    torch.testing.assert_close(tangent, (grad * direction).sum(), rtol=1e-4, atol=1e-9, check_dtype=False)


def test_a_set_in_parts_has_the_values_and_the_gradient_of_the_whole(reward):
    x = images(12).requires_grad_()
    whole = reward(x)
    (expected,) = torch.autograd.grad(whole.mean(), x)
    with torch.no_grad():
        features = torch.cat([reward.features(chunk) for chunk in x.split(5)])
        rows = reward.rows(features)
    pull, at = reward.pull(features), torch.arange(12).split(5)
    parts = [reward.shares(reward.features(x[rows_of]), rows[rows_of], pull[rows_of]) for rows_of in at]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-8)
    (grad,) = torch.autograd.grad(sum(p.sum() for p in parts) / 12, x)
    torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("cls", DISTANCES)
def test_an_image_that_is_not_a_number_makes_a_score_that_is_not_one(cls, tmp_path):
    reward = cls("pixels").open().against(images(20, size=4), tmp_path)
    x = images(6, seed=1, size=4)
    x[2, 0, 0, 0] = float("nan")
    assert reward(x).isnan().all()


def test_one_sample_or_none_has_no_distance(reward):
    with pytest.raises(Refused, match="at least 2 samples, not 1"):
        reward(images(1))


def test_what_cannot_be_data_is_refused(tmp_path):
    opened = Kid("pixels").open()
    with pytest.raises(Refused, match="at least 2"):
        opened.against(images(1), tmp_path)
    with pytest.raises(Refused, match="not finite"):
        opened.against(images(3) * float("nan"), tmp_path)


def test_samples_of_another_size_are_told(tmp_path):
    reward = Fid("pixels").open().against(images(20), tmp_path)
    with pytest.raises(Refused, match="16 features and the data 64"):
        reward(images(6, size=4))


def test_bytes_and_numbers_are_the_same_data(tmp_path):
    data = (images(20) * 255).round().to(torch.uint8)
    one, other = (Kid("pixels").open().against(d, tmp_path) for d in (data, data.float() / 255))
    torch.testing.assert_close(one.kept["features"], other.kept["features"])


def test_features_do_not_depend_on_how_images_are_grouped(monkeypatch):
    extractor, x = Kid("digits-features").open().extractor, images(20)
    whole = features_of(extractor, x)
    monkeypatch.setattr("genbo.rewards._sets.AT_ONCE", 7)
    torch.testing.assert_close(features_of(extractor, x), whole, rtol=1e-5, atol=1e-6)


# -- the cache ----------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """How often images went through a network."""
    calls = []
    real = features_of
    monkeypatch.setattr("genbo.rewards._sets.features_of", lambda *args: calls.append(1) or real(*args))
    return calls


@pytest.mark.parametrize("cls", DISTANCES)
def test_the_data_are_looked_at_once(cls, counted, tmp_path):
    first, second = (cls("digits-features").open().against(images(20), tmp_path) for _ in range(2))
    assert len(counted) == 1 and len(list(tmp_path.iterdir())) == 1
    assert torch.equal(first(images(5, seed=1)), second(images(5, seed=1)))


def test_other_data_networks_and_kernels_have_their_own_place(counted, tmp_path):
    for options in (Kid("pixels"), Kid("digits-features"), Kid("pixels", degree=2), Mmd("pixels"), Fid("pixels")):
        options.open().against(images(20), tmp_path)
    Kid("pixels").open().against(images(20, seed=1), tmp_path)
    assert len(counted) == len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("damage", ["cut", "empty", "flip", "other"])
def test_a_damaged_file_is_made_again(damage, counted, tmp_path):
    reward = Kid("pixels").open().against(images(20), tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-9] ^= 1
    file.write_bytes({"cut": content[:-1], "empty": b"", "flip": content, "other": b"x" * 99}[damage])
    again = Kid("pixels").open().against(images(20), tmp_path)
    assert len(counted) == 2
    assert torch.equal(again.kept["features"], reward.kept["features"])
    Kid("pixels").open().against(images(20), tmp_path)
    assert len(counted) == 2


def test_without_a_place_to_keep_things_it_works_all_the_same(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    made = cached("key", lambda: {"a": torch.ones(2)}, tmp_path / "file" / "below")
    assert torch.equal(made["a"], torch.ones(2))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert torch.equal(cached("key", lambda: {"a": torch.ones(3)})["a"], torch.ones(3))


def test_an_error_while_making_is_not_hidden(tmp_path):
    def broken() -> dict[str, torch.Tensor]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cached("key", broken, tmp_path)

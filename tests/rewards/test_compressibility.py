"""The size of a JPEG, against Pillow writing a file."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from genbo.rewards.compressibility import Compressibility


@pytest.mark.parametrize("quality", [20, 95])
def test_is_the_size_of_the_file_in_kilobytes(tmp_path, quality):
    images = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    scores = Compressibility(quality=quality).open()(images, ["", ""])
    for image, score in zip(images, scores, strict=True):
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / "image.jpg", quality=quality)
        assert score.item() * -1000 == pytest.approx((tmp_path / "image.jpg").stat().st_size)


def test_a_plain_image_beats_a_busy_one():
    busy = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain = torch.full_like(busy, 0.5)
    flat, noisy = Compressibility().open()(torch.cat([plain, busy]), ["", ""])
    assert flat > noisy + 1


def test_grey_images_and_values_out_of_range_are_taken():
    images = torch.linspace(-1, 2, 2 * 32 * 32).reshape(2, 1, 32, 32)
    reward = Compressibility().open()
    assert torch.equal(reward(images, ["", ""]), reward(images.clamp(0, 1), ["", ""]))


def test_mistakes():
    assert Compressibility().mistakes() == []
    assert Compressibility(quality=0).mistakes() == ["quality: 0 is not between 1 and 95; 95 keeps the most detail"]

"""Compressibility: minus the size of the image as a JPEG, in kB. Plain images score higher than busy ones.

The file is what Pillow writes, so there is no gradient; it counts whole bytes, so a difference wants a wide
step. It reads no prompt and carries no weights, so no licence of its own. Values: (-inf, 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Interval

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Compressibility:
    """`quality` is the JPEG quality, 1 to 95; with a negative weight the reward favours detail instead."""

    quality: Annotated[int, Interval(ge=1, le=95)] = 95
    differentiable: ClassVar[bool] = False

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each."""
        if 1 <= self.quality <= 95:
            return []
        return [f"quality: {self.quality} is not between 1 and 95; 95 keeps the most detail"]

    def open(self, device: str | torch.device = "cpu") -> _Size:
        return _Size(self.quality)


class _Size:
    differentiable: bool = False

    def __init__(self, quality: int) -> None:
        self.quality = quality

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        import torch

        pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
        sizes = [_bytes(image, self.quality) for image in pixels.permute(0, 2, 3, 1).cpu()]
        return torch.tensor(sizes, dtype=torch.float32, device=images.device) / -1000


def _bytes(pixels: Tensor, quality: int) -> int:
    """The size of (H, W, 3 or 1) as a JPEG."""
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels.squeeze(-1).numpy()).save(file, format="JPEG", quality=quality)
    return file.tell()

"""Images as a network was taught to see them: resize, crop and normalise, on tensors and on their device.

Gradients reach the image. Every resize is antialiased, as Pillow's is: without that a shrunk image is another image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def prepare(
    images: Tensor,
    *,
    size: int | tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    resize_mode: str = "shortest",
    fill_color: int = 0,
    mode: str = "RGB",
    whole: Callable[[float], int] = round,
) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, *size): open_clip's `image_transform_v2` on tensors; `whole` as for `centre`."""
    height, width = (size, size) if isinstance(size, int) else size
    wanted = resized(images.shape[-2], images.shape[-1], height, width, resize_mode)
    # open_clip drops the interpolation where the shortest side meets a size that is not square
    dropped = resize_mode == "shortest" and height != width
    kernel = "bilinear" if interpolation == "bilinear" and not dropped else "bicubic"
    images = centre(resize(images, wanted, kernel), height, width, fill_color / 255, whole)
    return normalise(images, mean, std)


def resized(h: int, w: int, height: int, width: int, resize_mode: str) -> tuple[int, int]:
    """The size to resize (h, w) to before cropping, rounded as torchvision and open_clip round it."""
    if resize_mode == "squash":
        return height, width
    if resize_mode == "shortest" and height == width:
        long = int(height * max(h, w) / min(h, w))
        return (height, long) if h <= w else (long, height)
    ratios = h / height, w / width
    ratio = max(ratios) if resize_mode == "longest" else min(ratios)
    return round(h / ratio), round(w / ratio)


def resize(images: Tensor, size: tuple[int, int], kernel: str) -> Tensor:
    """As Pillow does it: along the width, then along the height, and after each clipped to what an image can be.

    A bicubic kernel throws beyond black and white; in one go, sharp edges would be off by up to 18/255. (Since version
    13 Pillow begins with the height where that shrinks much more. What the models learned from did not, and nor does
    this.)
    """
    from torch.nn.functional import interpolate

    if size == tuple(images.shape[-2:]):
        return images
    for shape in ((images.shape[-2], size[1]), size):
        images = interpolate(images, shape, mode=kernel, antialias=True).clamp(0, 1)
    return images


def centre(images: Tensor, height: int, width: int, fill: float = 0.0, whole: Callable[[float], int] = round) -> Tensor:
    """Padded to at least (height, width), then cropped to it.

    `whole` is what becomes of half a pixel where the margin is odd: torchvision rounds, transformers cuts it off.
    """
    from torch.nn.functional import pad

    down, right = max(height - images.shape[-2], 0), max(width - images.shape[-1], 0)
    if down or right:
        images = pad(images, (right // 2, (right + 1) // 2, down // 2, (down + 1) // 2), value=fill)
    top, left = whole((images.shape[-2] - height) / 2), whole((images.shape[-1] - width) / 2)
    return images[..., top : top + height, left : left + width]


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (images - _channels(mean, images)) / _channels(std, images)


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return like.new_tensor(values).reshape(-1, 1, 1)

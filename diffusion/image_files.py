"""A folder of image files, which are not trusted: their pixels are bounded, and all that is wrong is named at once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.diffusion.images import MOST_BYTES, SUFFIXES
from genbo.diffusion.refused import Refused

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP")  # what a file says of itself counts, not its name
MOST_PIXELS = 2**26  # of one image
NAMED = 5  # files that one sentence names


def image_files(folder: Path) -> list[Path]:
    """Every image in a folder and below, by name; hidden ones are left out."""
    found = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted(file for file in found if not any(p.startswith(".") for p in file.relative_to(folder).parts))


def class_of(file: Path, folder: Path) -> str:
    """The subfolder that an image lies in, or nothing."""
    parts = file.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else ""


def decoded(files: Sequence[Path], folder: Path, size: int | None, color: str) -> tuple[Tensor, list[float]]:
    """All images, (N, C, H, W), and a hash of each file; raises `Refused` once, for all that is wrong."""
    import torch

    images: list[Tensor] = []
    hashes: list[float] = []
    broken: list[str] = []
    total = 0
    for file in files:
        try:
            content = file.read_bytes()
            image = decode(content, color)
        except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
            said = str(error).partition("\n")[0].replace(str(file), "the file") or type(error).__name__
            broken.append(f"{file.relative_to(folder)} ({said})")
            continue
        images.append(image if size is None else resized(image[None], size)[0])
        hashes.append(hash_of(content))
        total += images[-1].numel()
        if total > MOST_BYTES:
            raise Refused(
                f"data: the images of {folder} take more than {MOST_BYTES} bytes; give a smaller `size`, or fewer"
            )
    if wrong := _wrong(images, broken, files, folder):
        raise Refused("; ".join(wrong))
    channels = max(len(image) for image in images)
    return torch.stack([image.expand(channels, -1, -1) for image in images]), hashes


def _wrong(images: list[Tensor], broken: list[str], files: Sequence[Path], folder: Path) -> list[str]:
    if broken:
        named = ", ".join(broken[:NAMED]) + (f" and {len(broken) - NAMED} more" if len(broken) > NAMED else "")
        return [
            f"data: {len(broken)} of {len(files)} images in {folder} cannot be read: {named}; replace or remove them"
        ]
    first = images[0].shape[1:]
    for file, image in zip(files, images, strict=True):
        if image.shape[1:] != first:
            sizes = [f"{w} x {h}" for h, w in (first, image.shape[1:])]
            one, other = (name.relative_to(folder) for name in (files[0], file))
            return [
                f"data: the images have several sizes, {one} is {sizes[0]} and {other} is {sizes[1]}; "
                f"bring them to one with `size: {min(*first, *image.shape[1:])}`"
            ]
    return []


def decode(content: bytes, color: str) -> Tensor:
    """(1 or 3, H, W) in bytes, upright, on white where it is transparent."""
    import warnings
    from io import BytesIO

    import numpy as np
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        file = Image.open(BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("not an image of a format that is read here") from None  # Pillow's names the buffer
    with warnings.catch_warnings(), file as opened:
        warnings.simplefilter("ignore")
        if opened.width * opened.height > MOST_PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} is too large")
        image: Any = ImageOps.exif_transpose(opened)
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"{image.mode} has more than 8 bits a channel; convert it to 8")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        grey = color == "grey" or (color == "auto" and opened.mode in ("1", "L", "LA"))
        array = np.asarray(image.convert("L" if grey else "RGB"))
    pixels = torch.from_numpy(array.copy())
    return pixels[None] if grey else pixels.permute(2, 0, 1).contiguous()


def resized(pixels: Tensor, size: int) -> Tensor:
    """Bytes (N, C, H, W) -> (N, C, size, size): the shorter side to `size`, antialiased, then the middle."""
    import torch
    from torch.nn.functional import interpolate

    height, width = pixels.shape[-2:]
    if (height, width) == (size, size):
        return pixels
    shape = [max(size, round(side * size / min(height, width))) for side in (height, width)]
    parts = []
    for chunk in pixels.split(1024):
        grown = interpolate(chunk.float(), shape, mode="bicubic", antialias=True)
        top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
        middle = grown[..., top : top + size, left : left + size]
        parts.append(middle.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def hash_of(content: bytes) -> float:
    """A number in [0, 1) that depends on the content alone."""
    digest = hashlib.blake2b(content, digest_size=8, person=b"genbo split").digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53

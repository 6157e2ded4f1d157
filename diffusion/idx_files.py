"""MNIST's idx files, which are not trusted: what a header claims is bounded and must be what follows."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

from genbo.diffusion.images import LEAST, MOST_BYTES, SUFFIXES, Images, Split

if TYPE_CHECKING:
    from torch import Tensor

UNSIGNED_BYTES = 0x08  # the type in an idx header


def idx_sets(path: Path) -> dict[Split, tuple[Path, Path | None]]:
    """The idx files of a folder, images and labels, by the set they are for; ValueError says what is wrong."""
    if path.is_file():
        if path.suffix.lower() in SUFFIXES:
            raise ValueError(f"{path} is a single image; give the folder that it is in")
        return {"train": (path, _labels_of(path))}
    named: dict[str, Path] = {}
    for file in sorted(path.glob("*idx3-ubyte*"), reverse=True):  # the plain file after the packed one
        if file.name.removesuffix(".gz").endswith("idx3-ubyte"):
            named[file.name.removesuffix(".gz")] = file
    found: dict[Split, tuple[Path, Path | None]] = {}
    for name, file in sorted(named.items()):
        split: Split = "test" if name.startswith(("t10k", "test")) else "train"
        if split in found:
            raise ValueError(f"{path} has several sets, {found[split][0].name} and {file.name}; name the one file")
        found[split] = file, _labels_of(file)
    if set(found) == {"test"}:
        return {"train": found["test"]}
    return found


def _labels_of(images: Path) -> Path | None:
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    if name == images.name.removesuffix(".gz"):
        return None
    places = [images.with_name(name), images.with_name(f"{name}.gz")]
    return next((place for place in places if place.is_file()), None)


def agree(images: Path, labels: Path | None) -> None:
    """By their headers, the two files are of one set; ValueError says what is wrong."""
    count, height, width = _header(images, 3)
    if count < LEAST:
        raise ValueError(f"{images} holds {count} image; at least {LEAST} are needed")
    if not height or not width:
        raise ValueError(f"{images} holds images of {height} x {width} pixels; take another file")
    if labels is not None and (named := _header(labels, 1)[0]) != count:
        raise ValueError(
            f"{labels} has {named} labels for the {count} images of {images.name}; take the files of one set"
        )


def _opened(file: Path) -> IO[bytes]:
    return gzip.open(file) if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _header(file: Path, dimensions: int) -> tuple[int, ...]:
    with _opened(file) as stream:
        try:
            return _sizes(stream, file, dimensions)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{file} is not a gzip file, or is damaged ({error}); fetch it again") from error


def _sizes(stream: IO[bytes], file: Path, dimensions: int) -> tuple[int, ...]:
    head = stream.read(4 + 4 * dimensions)
    wanted = bytes([0, 0, UNSIGNED_BYTES, dimensions])
    if head[:4] != wanted:
        raise ValueError(
            f"{file} is no idx file of {'images' if dimensions == 3 else 'labels'}: "
            f"it begins with {head[:4].hex() or 'nothing'} instead of {wanted.hex()}; give another file"
        )
    if len(head) < 4 + 4 * dimensions:
        raise ValueError(f"{file} ends inside its header; fetch it again")
    sizes = struct.unpack(f">{dimensions}I", head[4:])
    if math.prod(sizes) > MOST_BYTES:
        claim = " x ".join(map(str, sizes))
        raise ValueError(f"{file} claims {claim} bytes, more than the {MOST_BYTES} that are read; give a smaller file")
    return sizes


def _read_idx(file: Path, dimensions: int) -> Tensor:
    """The numbers of an idx file, shaped."""
    import torch

    sizes, body = idx_bytes(file, dimensions)
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(sizes)


def idx_bytes(file: Path, dimensions: int) -> tuple[tuple[int, ...], bytes]:
    """The sizes and the bytes of an idx file; ValueError where they are not as many as its header says."""
    with _opened(file) as stream:
        try:
            sizes = _sizes(stream, file, dimensions)
            body = stream.read(math.prod(sizes) + 1)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{file} is damaged or cut short ({error}); fetch it again") from error
    if len(body) != math.prod(sizes):
        kind = "more" if len(body) > math.prod(sizes) else f"only {len(body)}"
        raise ValueError(f"{file} has {kind} bytes where its header promises {math.prod(sizes)}; fetch it again")
    return sizes, body


def read_set(images: Path, labels: Path | None) -> Images:
    pixels = _read_idx(images, 3)[:, None]
    if labels is None:
        return Images(pixels)
    numbers = _read_idx(labels, 1).long()
    return Images(pixels, numbers, numbered(int(numbers.max())))


def numbered(last: int) -> tuple[str, ...]:
    """Of numbered classes."""
    return tuple(map(str, range(last + 1)))

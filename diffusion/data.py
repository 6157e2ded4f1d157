"""Images to learn from and to compare with: a folder of files, MNIST's idx files, or scikit-learn's digits.

Nothing is fetched. Every image falls into train, validation or test by a hash of its own bytes, so adding images
moves none of the others, and copies of a file never stand on two sides. Idx files with a test set of their own
(`t10k-...`) keep it as it is. What is read is not trusted: what a header claims is bounded and must be what follows.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Lt

from genbo.diffusion.refused import Refused

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.diffusion.seed import Seed

DIGITS = "digits"
PRETRAINED = "pretrained"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")  # what a file says of itself counts, not its name
LEAST = 2  # images: fewer have no spread
MOST_BYTES = 2**31  # of decoded images: an idx file's claim, or a whole folder
MOST_PIXELS = 2**26  # of one image
NAMED = 5  # files that one sentence names
UNSIGNED_BYTES = 0x08  # the type in an idx header
TEN = tuple(map(str, range(10)))

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Images:
    """N images in bytes, (N, C, H, W), and, where there are any, their labels (N,) as numbers of `classes`."""

    pixels: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def unit(self) -> Tensor:
        """In [0, 1], float32: what rewards and feature networks take."""
        return self.pixels.float() / 255

    def signed(self) -> Tensor:
        """In [-1, 1], float32: what diffusion models learn."""
        return self.unit() * 2 - 1

    def rows(self, numbers: Tensor | slice) -> Images:
        return Images(self.pixels[numbers], None if self.labels is None else self.labels[numbers], self.classes)

    def to(self, device: str | torch.device) -> Images:
        return Images(self.pixels.to(device), None if self.labels is None else self.labels.to(device), self.classes)

    def batches(self, size: int) -> Iterator[Images]:
        """All of them, in order."""
        for at in range(0, len(self), size):
            yield self.rows(slice(at, at + size))

    def draw(self, samples: int, seed: Seed) -> Images:
        """`samples` at random, none twice unless there are fewer; the same ones for the same seed, on any device."""
        import torch

        generator, picked = seed.generator(), []
        for _ in range(math.ceil(samples / len(self))):
            picked.append(torch.randperm(len(self), generator=generator))
        return self.rows(torch.cat(picked)[:samples].to(self.pixels.device))


@dataclass(frozen=True)
class Splits:
    """Images to train on, images to steer by, and images for the report alone."""

    train: Images
    validation: Images
    test: Images


@dataclass(frozen=True)
class Data:
    """`path` is `digits`, a folder of images, or idx files: one of them, or the folder that holds the set. In a search
    for lambda it can be `pretrained`: samples of the job's own model before it is tuned.

    Images in a folder have one size, or are brought to `size` (the shorter side, then the middle square is taken).
    `color: auto` keeps colour where any image has it. Subfolders, or an idx file of labels, give classes. `validation`
    and `test` are the shares that are held back.
    """

    path: str
    size: Annotated[int, Ge(4)] | None = None
    color: Literal["auto", "grey", "rgb"] = "auto"
    validation: Annotated[float, Ge(0), Lt(1)] = 0.1
    test: Annotated[float, Ge(0), Lt(1)] = 0.1

    def mistakes(self) -> list[str]:
        """What is wrong, a sentence each; reads names and headers, and no image."""
        found = []
        if self.validation + self.test >= 1:
            shares = f"{self.validation:g} + {self.test:g}"
            found.append(f"data: validation and test ({shares}) leave nothing to train on; hold back less")
        return found + self._path_mistakes()

    def _path_mistakes(self) -> list[str]:
        if self.of_model:
            return []
        if self.path == DIGITS:
            missing = find_spec("sklearn") is None
            return ["data: digits come with scikit-learn; pip install scikit-learn"] if missing else []
        path = self.folder
        if not path.exists():
            return [f"data: there is no {path}; give a folder of images, idx files, or `{DIGITS}`"]
        try:
            sets = idx_sets(path)
            for images, labels in sets.values():
                _agree(images, labels)
        except (OSError, ValueError) as error:
            return [f"data: {error}"]
        if sets:
            return []
        files = image_files(path)
        if len(files) >= LEAST:
            return []
        have = "no image" if not files else "only one image"
        return [f"data: {path} has {have} ({', '.join(SUFFIXES)}); at least {LEAST} are needed"]

    @property
    def of_model(self) -> bool:
        """Whether these are samples of the job's own model, which are not read but drawn."""
        return self.path == PRETRAINED

    @property
    def folder(self) -> Path:
        return Path(self.path).expanduser()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, where there are any: from names and labels alone, and no image."""
        if self.path == DIGITS:
            return TEN
        try:
            sets = idx_sets(self.folder)
            if sets:
                labels = sets["train"][1]
                return () if labels is None else _names(max(_idx_bytes(labels, 1)[1]))
            found = sorted({_class_of(file, self.folder) for file in image_files(self.folder)})
        except (OSError, ValueError):
            return ()
        return tuple(found) if len(found) > 1 and "" not in found else ()

    def open(self) -> Splits:
        """Read it all into memory. Raises `Refused` with a sentence for everything that is wrong."""
        if wrong := self.mistakes():
            raise Refused("; ".join(wrong))
        if self.of_model:
            raise Refused("data: pretrained are samples of a job's own model; name a folder of images here")
        parts = self._digits() if self.path == DIGITS else self._idx() or self._files()
        shares: dict[Split, float] = {"train": 1, "validation": self.validation, "test": self.test}
        few = [f"{name} ({len(parts[name])})" for name in SPLITS if shares[name] and len(parts[name]) < LEAST]
        if few:
            raise Refused(
                f"data: {self.path} has too few images for {' and '.join(few)}; "
                f"at least {LEAST} are needed in each, so give more, or other shares of validation and test"
            )
        return Splits(**parts)

    def _digits(self) -> dict[Split, Images]:
        import torch
        from sklearn.datasets import load_digits

        found = load_digits()
        pixels = (torch.from_numpy(found.images)[:, None] * (255 / 16)).round().to(torch.uint8)  # 0 to 16
        labels = torch.from_numpy(found.target).long()
        return self._split(self._shaped(Images(pixels, labels, TEN)))

    def _idx(self) -> dict[Split, Images] | None:
        try:
            sets = {name: _read_set(*files) for name, files in idx_sets(self.folder).items()}
        except (OSError, ValueError) as error:
            raise Refused(f"data: {error}") from error
        if not sets:
            return None
        read = {name: self._shaped(images) for name, images in sets.items()}
        if "test" not in read:
            return self._split(read["train"])
        return {**self._split(read["train"], test=0), "test": read["test"]}

    def _files(self) -> dict[Split, Images]:
        import torch

        files = image_files(self.folder)
        pixels, hashes = _decoded(files, self.folder, self.size, self.color)
        classes = sorted({_class_of(file, self.folder) for file in files})
        labels = torch.tensor([classes.index(_class_of(file, self.folder)) for file in files])
        named = "" not in classes and len(classes) > 1
        images = Images(pixels, labels, tuple(classes)) if named else Images(pixels)
        return _by_hash(images, hashes, self.validation, self.test)

    def _shaped(self, images: Images) -> Images:
        pixels = images.pixels
        if self.color == "rgb":
            pixels = pixels.expand(-1, 3, -1, -1)
        if self.size is not None:
            pixels = _resized(pixels, self.size)
        return Images(pixels.contiguous(), images.labels, images.classes)

    def _split(self, images: Images, test: float | None = None) -> dict[Split, Images]:
        hashes = [_hash(row.numpy().tobytes()) for row in images.pixels]
        return _by_hash(images, hashes, self.validation, self.test if test is None else test)


# -- splits -------------------------------------------------------------------------------------------------


def _hash(content: bytes) -> float:
    """A number in [0, 1) that depends on the content alone."""
    digest = hashlib.blake2b(content, digest_size=8, person=b"genbo split").digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _by_hash(images: Images, hashes: Sequence[float], validation: float, test: float) -> dict[Split, Images]:
    import torch

    at = torch.tensor(hashes, dtype=torch.float64)
    held, kept = at < test, at >= test + validation
    return {
        "train": images.rows(kept),
        "validation": images.rows(~held & ~kept),
        "test": images.rows(held),
    }


# -- idx files ----------------------------------------------------------------------------------------------


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


def _agree(images: Path, labels: Path | None) -> None:
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

    sizes, body = _idx_bytes(file, dimensions)
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(sizes)


def _idx_bytes(file: Path, dimensions: int) -> tuple[tuple[int, ...], bytes]:
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


def _read_set(images: Path, labels: Path | None) -> Images:
    pixels = _read_idx(images, 3)[:, None]
    if labels is None:
        return Images(pixels)
    numbers = _read_idx(labels, 1).long()
    return Images(pixels, numbers, _names(int(numbers.max())))


def _names(last: int) -> tuple[str, ...]:
    """Of numbered classes."""
    return tuple(map(str, range(last + 1)))


# -- image files --------------------------------------------------------------------------------------------


def image_files(folder: Path) -> list[Path]:
    """Every image in a folder and below, by name; hidden ones are left out."""
    found = (file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    return sorted(file for file in found if not any(p.startswith(".") for p in file.relative_to(folder).parts))


def _class_of(file: Path, folder: Path) -> str:
    """The subfolder that an image lies in, or nothing."""
    parts = file.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else ""


def _decoded(files: Sequence[Path], folder: Path, size: int | None, color: str) -> tuple[Tensor, list[float]]:
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
        images.append(image if size is None else _resized(image[None], size)[0])
        hashes.append(_hash(content))
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


def _resized(pixels: Tensor, size: int) -> Tensor:
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

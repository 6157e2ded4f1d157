"""Images to learn from and to compare with: a folder of files, MNIST's idx files, or scikit-learn's digits.

Nothing is fetched. Every image falls into train, validation or test by a hash of its own bytes, so adding images
moves none of the others, and copies of a file never stand on two sides. Idx files with a test set of their own
(`t10k-...`) keep it as it is. What is read is not trusted: what a header claims is bounded and must be what follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Lt

from genbo.diffusion.idx_files import agree, idx_bytes, idx_sets, numbered, read_set
from genbo.diffusion.image_files import class_of, decoded, hash_of, image_files, resized
from genbo.diffusion.images import LEAST, SPLITS, SUFFIXES, Images, Split, Splits
from genbo.diffusion.refused import Refused

__all__ = ["DIGITS", "Data", "Images", "Splits"]

DIGITS = "digits"
PRETRAINED = "pretrained"
TEN = tuple(map(str, range(10)))


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
                agree(images, labels)
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
                return () if labels is None else numbered(max(idx_bytes(labels, 1)[1]))
            found = sorted({class_of(file, self.folder) for file in image_files(self.folder)})
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
            sets = {name: read_set(*files) for name, files in idx_sets(self.folder).items()}
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
        pixels, hashes = decoded(files, self.folder, self.size, self.color)
        classes = sorted({class_of(file, self.folder) for file in files})
        labels = torch.tensor([classes.index(class_of(file, self.folder)) for file in files])
        named = "" not in classes and len(classes) > 1
        images = Images(pixels, labels, tuple(classes)) if named else Images(pixels)
        return _by_hash(images, hashes, self.validation, self.test)

    def _shaped(self, images: Images) -> Images:
        pixels = images.pixels
        if self.color == "rgb":
            pixels = pixels.expand(-1, 3, -1, -1)
        if self.size is not None:
            pixels = resized(pixels, self.size)
        return Images(pixels.contiguous(), images.labels, images.classes)

    def _split(self, images: Images, test: float | None = None) -> dict[Split, Images]:
        hashes = [hash_of(row.numpy().tobytes()) for row in images.pixels]
        return _by_hash(images, hashes, self.validation, self.test if test is None else test)


def _by_hash(images: Images, hashes: Sequence[float], validation: float, test: float) -> dict[Split, Images]:
    import torch

    at = torch.tensor(hashes, dtype=torch.float64)
    held, kept = at < test, at >= test + validation
    return {
        "train": images.rows(kept),
        "validation": images.rows(~held & ~kept),
        "test": images.rows(held),
    }

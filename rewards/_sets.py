"""How far a set of samples is from a set of data: what all such distances share.

A reward scores an image; a distance scores a set, and is turned into a number a sample all the same:

    r_i = -(D + N psi_i),    sum_i psi_i = 0,    D - truth  ~  sum_i psi_i

Their mean is minus the distance D exactly, and their spread over sqrt(N) its standard error, because psi_i is what
sample i did to D (its influence). So whatever averages rewards over samples is right for these too, error bars
included, as long as all N samples are scored together. The error bar speaks of other samples, not of other data.

Gradients pass through the mean: grad mean_i r_i = -grad D. Where the set does not fit into memory, features are taken
without gradients first, and each part goes through `shares`, whose gradients add up to the whole.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from genbo.rewards import Refused

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.rewards._extractors import Extractor

LEAST = 2  # fewer samples have no spread
AT_ONCE = 64  # images that go through a feature network together
FORMAT = 1  # of the cache: another number forgets what is kept

Stored = dict[str, "Tensor"]


class Rule(Protocol):
    """One distance: what it keeps of the data, and what it says of each sample."""

    @property
    def key(self) -> str:
        """What `keep` depends on, beside the features."""

    def keep(self, data: Tensor) -> Stored:
        """Of the data's features (M, D), what the distance needs."""

    def values(self, features: Tensor, kept: Stored) -> Tensor:
        """D + N psi_i for N samples, (N,) in float64, differentiable in the features (N, D)."""


@dataclass(frozen=True)
class Opened:
    """A distance with its feature network, before it is told which data to compare with."""

    extractor: Extractor
    rule: Rule
    device: str | torch.device
    differentiable: bool = True
    of_sets: bool = True

    def against(self, data: Tensor, cache: Path | None = None) -> Distance:
        """The reward: minus the distance to `data`, (M, C, H, W) in [0, 1] or in bytes.

        What is needed of the data is kept in `cache`, the user's cache folder by default, under a hash of the data
        and of the network.
        """
        if len(data) < LEAST:
            raise Refused(f"data: {len(data)} image has no spread to compare with; give at least {LEAST}")
        key = f"{FORMAT} {self.extractor.identity} {self.rule.key} {digest(data)}"
        kept = cached(key, lambda: self._keep(data), cache)
        kept = {name: value.to(self.device) for name, value in kept.items()}
        return Distance(self.extractor, self.rule, kept, self.differentiable)

    def _keep(self, data: Tensor) -> Stored:
        found = features_of(self.extractor, data)
        if not found.isfinite().all():
            raise Refused("data: the features of some images are not finite; leave those images out")
        return {name: value.cpu().contiguous() for name, value in self.rule.keep(found).items()}


@dataclass(frozen=True)
class Distance:
    """A reward of sets: every call sees all the samples that are to be compared."""

    extractor: Extractor
    rule: Rule
    kept: Stored
    differentiable: bool = True
    of_sets: bool = True

    def __call__(self, images: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """(N, C, H, W) in [0, 1] -> (N,) in float64, whose mean is the score of the set."""
        return self.rows(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), each image by itself: these may be computed in parts."""
        return self.extractor(images)

    def rows(self, features: Tensor) -> Tensor:
        """(N, D) of the whole set -> (N,). Features that are not finite give NaN."""
        if len(features) < LEAST:
            raise Refused(f"a distance between sets needs at least {LEAST} samples, not {len(features)}")
        wanted = next(value.shape[1] for value in self.kept.values() if value.ndim == 2)  # every rule keeps one matrix
        if features.shape[1] != wanted:
            raise Refused(
                f"the samples have {features.shape[1]} features and the data {wanted}: "
                "give the data the size and the channels of the samples, or a network for features"
            )
        if not features.isfinite().all():
            return features.double().sum(1) * float("nan")
        return -self.rule.values(features.double(), self.kept)

    def pull(self, features: Tensor) -> Tensor:
        """N times the gradient of the score in every feature, (N, D), for `shares`."""
        import torch

        with torch.enable_grad():
            own = features.detach().double().requires_grad_()
            (grad,) = torch.autograd.grad(self.rows(own).sum(), own)
        return grad

    @staticmethod
    def shares(live: Tensor, rows: Tensor, pull: Tensor) -> Tensor:
        """Scores (n,) of a part of the set: the values of `rows`, with the gradients of the whole in `live` (n, D).

        `rows` and `pull` are those of the whole set, taken at these n samples.
        """
        return rows.detach() + ((live - live.detach()).double() * pull).sum(1)


@dataclass(frozen=True)
class Alone(Distance):
    """A reward of sets that compares with no data; `name` and `least` are for the sentence about too few samples."""

    name: str = "a score of a set"
    least: int = LEAST

    def rows(self, features: Tensor) -> Tensor:
        """(N, D) of the whole set -> (N,), whose mean is the score. Features that are not finite give NaN."""
        if len(features) < self.least:
            raise Refused(f"{self.name} needs at least {self.least} samples, not {len(features)}")
        if not features.isfinite().all():
            return features.double().sum(1) * float("nan")
        return -self.rule.values(features.double(), self.kept)


def features_of(extractor: Extractor, images: Tensor) -> Tensor:
    """Features of many images without gradients, (N, D) in float64; bytes are taken as they are stored."""
    import torch

    with torch.no_grad():
        parts = [extractor(unit(chunk)).double().cpu() for chunk in images.split(AT_ONCE)]
    return torch.cat(parts)


def unit(images: Tensor) -> Tensor:
    """Bytes as numbers in [0, 1]; what is a number already stays."""
    return images if images.is_floating_point() else images.float() / 255


# -- the cache ----------------------------------------------------------------------------------------------


def digest(images: Tensor) -> str:
    """What the images are, in 32 letters."""
    whole = images.detach().cpu().contiguous()
    head = f"{tuple(whole.shape)} {whole.dtype}".encode()
    return hashlib.blake2b(head + whole.numpy().tobytes(), digest_size=16).hexdigest()


def cached(key: str, make: Callable[[], Stored], folder: Path | None = None) -> Stored:
    """What `make` gives, kept in a file; made again where the file is damaged, and not kept where none can be."""
    name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    try:
        file = (folder or cache_folder()) / f"{name}.safetensors"
    except RuntimeError:  # no home
        return make()
    known = _read(file, key)
    if known is None:
        known = make()
        with suppress(OSError):
            _write(file, key, known)
    return known


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/genbo/data`, or `~/.cache/genbo/data`; RuntimeError where there is no home."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "genbo" / "data"


def _read(file: Path, key: str) -> Stored | None:
    """A file of the cache, or None where there is none or where a bit of it is not as it was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            said = opened.metadata() or {}
            stored = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError):
        return None
    return stored if said == _seal(key, stored) else None


def _write(file: Path, key: str, stored: Stored) -> None:
    from safetensors.torch import save

    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(save(stored, metadata=_seal(key, stored)))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _seal(key: str, stored: Stored) -> dict[str, str]:
    hashes = "".join(f"{name} {digest(value)} " for name, value in sorted(stored.items()))
    return {"key": key, "tensors": hashlib.blake2b(hashes.encode(), digest_size=16).hexdigest()}

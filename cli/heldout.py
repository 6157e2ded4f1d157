"""The held-out evaluation of one side, start or tuned, kept a chunk at a time so that a kill loses little."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import Diverged
from genbo.cli.run import fault, read_tensors, sync_folder, words_in, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.problem import Problem
    from genbo.diffusion.seed import Batch

PICTURES = 12  # images kept of each side, the first of each prompt
POINTS = 400  # samples kept of a world without images


@dataclass(frozen=True)
class Side:
    """Scores (K, N) of every sample, what the report shows of them, and what it cost."""

    scores: Tensor
    shown: Tensor  # (n, C, H, W) bytes for images, (n, d) numbers in a world without
    cost: dict[str, int]
    elapsed_s: float


def shown_samples(prompts: Sequence[str], limit: int = PICTURES) -> list[int]:
    """The samples that are shown: the first of every prompt, then the second, ...; none by its looks."""
    turn: dict[str, int] = {}
    order = []
    for index, prompt in enumerate(prompts):
        turn[prompt] = turn.get(prompt, -1) + 1
        order.append((turn[prompt], index))
    return [index for _, index in sorted(order)[:limit]]


def is_picture(images: Tensor) -> bool:
    return images.ndim == 4 and images.shape[1] in (1, 3) and min(images.shape[2:]) > 1


def evaluate_side(
    folder: Path,
    name: str,
    problem: Problem,
    phi: Tensor,
    batch: Batch,
    job: str,
    between: Callable[[], None],
) -> Side:
    """`between` is called after every chunk, and may raise to stop: what was drawn so far is found again."""
    folder.mkdir(exist_ok=True)
    words = {"job": job, "phi": phi.tolist(), "prompts": list(batch.prompts)}
    place = folder / f"{name}.safetensors"
    side = _found(place, words)
    if side is None:
        side = _joined(list(_parts(folder, name, problem, phi, batch, words, between)))
        _write(place, side, words)
        fault("evaluation.side")
    for part in folder.glob(f"{name}-*.safetensors"):
        part.unlink()
    sync_folder(folder)
    return side


def _parts(
    folder: Path,
    name: str,
    problem: Problem,
    phi: Tensor,
    batch: Batch,
    words: dict[str, Any],
    between: Callable[[], None],
) -> Iterator[Side]:
    at = 0
    for number, chunk in enumerate(problem.chunks(batch, members=1)):
        part, own = folder / f"{name}-{number:04d}.safetensors", {**words, "at": at, "samples": len(chunk)}
        yield _found(part, own) or _drawn(part, problem, phi, batch, chunk, own)
        at += len(chunk)
        fault("evaluation.part")
        between()


def _joined(parts: Sequence[Side]) -> Side:
    import torch

    return Side(
        scores=torch.cat([p.scores for p in parts], dim=1),
        shown=torch.cat([p.shown for p in parts]),
        cost={key: sum(p.cost[key] for p in parts) for key in parts[0].cost},
        elapsed_s=sum(p.elapsed_s for p in parts),
    )


def _found(place: Path, words: dict[str, Any]) -> Side | None:
    tensors = read_tensors(place, words)
    if tensors is None:
        return None
    said = words_in(place)
    return Side(tensors["scores"], tensors["shown"], said["cost"], said["elapsed_s"])


def _write(place: Path, side: Side, words: dict[str, Any]) -> None:
    tensors = {"scores": side.scores.contiguous(), "shown": side.shown.contiguous()}
    write_tensors(place, tensors, {**words, "cost": side.cost, "elapsed_s": side.elapsed_s})


def _drawn(place: Path, problem: Problem, phi: Tensor, batch: Batch, chunk: Batch, words: dict[str, Any]) -> Side:
    import torch

    from genbo.bilevel.evaluate import draw

    meter, began = problem.process.meter, time.monotonic()
    before = meter.as_dict()
    drawn = list(draw(problem, phi, chunk))
    scores, images = torch.cat([s for s, _ in drawn], dim=1), torch.cat([i for _, i in drawn])
    if not scores.isfinite().all():
        prompt = chunk.prompts[int((~scores.isfinite()).any(0).nonzero()[0])]
        raise Diverged(f"the reward of a held-out sample is not finite (prompt {prompt!r}); there is no verdict")
    cost = {key: value - before[key] for key, value in meter.as_dict().items()}
    side = Side(scores, _shown(images, batch, words["at"]), cost, time.monotonic() - began)
    _write(place, side, words)
    return side


def _shown(images: Tensor, batch: Batch, at: int) -> Tensor:
    picture = is_picture(images)
    kept = shown_samples(batch.prompts, PICTURES) if picture else range(POINTS)
    rows = [index - at for index in sorted(kept) if at <= index < at + len(images)]
    if picture:
        import torch

        return (images[rows].clamp(0, 1) * 255).round().to(torch.uint8)
    return images[rows].flatten(1).float()

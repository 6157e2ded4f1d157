"""The held-out evaluation of one side, start or tuned, kept a chunk at a time so that a kill loses little."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.cli.errors import Diverged
from genbo.cli.report.held_out_side import Side, shown
from genbo.cli.run.chunk_cache import Kept

if TYPE_CHECKING:
    from torch import Tensor

    from genbo.bilevel.problem import Problem
    from genbo.diffusion.seed import Batch


def evaluate_side(
    folder: Path,
    name: str,
    problem: Problem,
    phi: Tensor,
    batch: Batch,
    job: str,
    between: Callable[[str, int, int], None],
    judges: Mapping[str, Any] | None = None,
) -> Side:
    """`between` is called after every chunk, and may raise to stop: what was drawn so far is found again.

    `judges` says who the problem's judges are: what others have scored is drawn again.
    """
    words = {"job": job, "phi": phi.tolist(), "prompts": list(batch.prompts), **({"judges": judges} if judges else {})}
    kept = Kept(folder, words, problem.process.meter, between)
    chunks = list(problem.chunks(batch, members=1))
    size = len(chunks[0])

    def draw(numbered: tuple[int, Batch]) -> Mapping[str, Tensor]:
        return _drawn(problem, phi, batch, numbered[1], numbered[0] * size)

    tensors = kept(name, list(enumerate(chunks)), draw)
    seen = [tensors[f"seen-{k}"] for k in range(len(problem.scorers))]
    device = problem.device
    scores = problem.judged([x.to(device) for x in seen]).cpu()
    if not scores[: decisive(problem)].isfinite().all():
        raise Diverged("a distance of the held-out samples is not finite; there is no verdict")
    return Side(scores, tensors["shown"], kept.cost, kept.elapsed_s)


def decisive(problem: Problem) -> int:
    """How many rows of the scores the verdict rests on: the judges' stand behind them."""
    return len(problem.scorers) - len(problem.judges)


def _drawn(problem: Problem, phi: Tensor, batch: Batch, chunk: Batch, at: int) -> Mapping[str, Tensor]:
    import torch

    from genbo.bilevel.verdict import draw

    drawn = list(draw(problem, phi, chunk))
    images = torch.cat([i for _, i in drawn])
    seen = {f"seen-{k}": torch.cat(column) for k, column in enumerate(zip(*(s for s, _ in drawn), strict=True))}
    finite = torch.stack([x.isfinite().reshape(len(x), -1).all(1) for x in list(seen.values())[: decisive(problem)]])
    if not finite.all():
        prompt = chunk.prompts[int((~finite).any(0).nonzero()[0])]
        raise Diverged(f"the reward of a held-out sample is not finite (prompt {prompt!r}); there is no verdict")
    return {**seen, "shown": shown(images, batch.prompts, at)}

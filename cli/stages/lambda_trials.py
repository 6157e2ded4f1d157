"""A search over lambda in place of its curve: each candidate's law by reweighting, and the best of them.

With `common: true` all candidates reweight one bank, so the network is called for that alone; else each has a bank of
its own. It is what a user of a search would do, and less than the curve can: no slope, no interval, no samples that
are drawn nearer to lambda.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from genbo.cli.run.chunk_cache import ChunkCache
from genbo.cli.stages.context import Context
from genbo.cli.stages.laws import source_of

if TYPE_CHECKING:
    from genbo.bilevel.regularization.bank import Bank
    from genbo.bilevel.regularization.curve import Optimum, Point
    from genbo.bilevel.regularization.search import After, Round


def tried(context: Context, kept: ChunkCache) -> Iterator[Round]:
    """A round for each candidate; candidates follow from the seed and the banks, so a run that goes on repeats them."""
    from genbo.bilevel.regularization.context import LawContext
    from genbo.bilevel.regularization.curve import point
    from genbo.bilevel.regularization.search import Round
    from genbo.bilevel.trials import Candidate, Space

    a, search, trials = context.assembled, context.job.search, context.job.budget.steps
    assert search is not None
    low, high = map(math.log, a.strength.bounds)
    space = Space(("regularization",), first=Candidate(((math.log(a.strength.start) - low) / (high - low),)))
    asked = search.options.open(space, trials, a.seed.child("search"))
    source, samples = source_of(context, kept, a.prompts, "search"), a.lower.drawing.samples
    curve: tuple[Point, ...] = ()
    banks: tuple[Bank, ...] = ()
    for k in range(trials):
        if not banks or not search.common:
            banks = (source.draw(k, samples, None),)
        lam = math.exp(low + (high - low) * asked.ask().shares[0])
        here = point(a.lower.begin(LawContext(banks=banks)), a.slope, lam)
        asked.tell(here.law.r1.mean if here.law.fit.verdict != "refuse" else math.nan)
        curve = tuple(sorted((*curve, here), key=lambda p: p.lam))
        best = _best(curve, k + 1)
        after: After = "unusable" if best is None and k + 1 == trials else "spent" if k + 1 == trials else "more"
        reason = "no candidate has enough effective samples; raise lower.samples" if best is None else best.reason
        yield Round(banks, curve, best, after, reason)


def _best(curve: tuple[Point, ...], tried: int) -> Optimum | None:
    """The candidate with the highest r1 among those with enough effective samples; it has no interval."""
    from genbo.bilevel.regularization.curve import Optimum

    usable = [p for p in curve if p.law.fit.verdict != "refuse"]
    if not usable:
        return None
    best = max(usable, key=lambda p: p.law.r1.mean)
    reason = f"the best of {tried} candidates is lambda = {best.lam:.3g}"
    return Optimum("interior", best.lam, best.law.r1.mean, best.law.fit.verdict, reason)

"""What a search costs whose candidates differ in cost: by their choices, or because a pruner stops some of them.

a candidate   = the sum over its rungs of what the samples cost that a rung adds, drawn as its choices say
tuning        = the start, which is never stopped, and then as many candidates as the budget allows
most, least   = every count by itself, over all combinations of choices; a stopped candidate ends at the first rung

Teachers, and levels that are relative to the start, are drawn as the job itself says, whatever is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import cached_property
from typing import Any

from genbo.cli.job.choice_misfits import predictions_in
from genbo.cli.job.job import Job
from genbo.cli.plan.ascent_counts import Stepping
from genbo.cli.plan.cost import Cost

Extreme = Callable[[Iterable[int]], int]


def differ(job: Job) -> bool:
    """Whether candidates of this job may differ in cost, or its work is limited."""
    return bool(job.choices) or (job.search is not None and job.search.pruner is not None) or bool(job.budget.work)


class Trying(Stepping):
    """Counts like `Stepping`, of which it has one for each combination of choices and each rung."""

    def __init__(self, job: Job, estimator: Any, batch: int, *, most: bool) -> None:
        super().__init__(job, estimator, batch, most=most)
        assert job.search is not None
        rungs = job.search.rungs(job.budget.samples)
        self.added = [after - before for before, after in zip((0, *rungs), rungs, strict=False)]

        def of(variant: Job, samples: int) -> Stepping:
            budget = variant.budget.model_copy(update={"samples": samples})
            return Stepping(variant.model_copy(update={"budget": budget}), estimator, batch, most=most)

        variants = [job.variant(chosen) for chosen in job.tuning.every()]  # the first of them is the job itself
        self.whole = [of(variant, job.budget.samples) for variant in variants]
        self.climbs = [[of(variant, samples) for samples in self.added] for variant in variants]

    def _extreme(self, costs: Iterable[Cost]) -> Cost:
        """The greatest of every count, or the least."""
        listed, end = list(costs), max if self.most else min
        return Cost(*(end(getattr(cost, f.name) for cost in listed) for f in fields(Cost)))

    # -- tuning --------------------------------------------------------------------------------------------

    def step(self, number: int) -> Cost:
        return self._later if number else self._first

    @cached_property
    def _first(self) -> Cost:
        """The start, on all rungs."""
        looks = self.climbs[0]
        students = sum((look.students(first=True) + look.levels() for look in looks), Cost())
        return students + sum(map(self.taught, self.added), Cost())

    @cached_property
    def _later(self) -> Cost:
        """Any other candidate; where all share their samples, the first has drawn what teachers draw."""
        job = self.job
        assert job.search is not None
        rungs = len(self.added) if self.most or job.search.pruner is None else 1
        beside = [look.levels() for look in self.climbs[0][:rungs]]
        if not job.search.common:
            beside += map(self.taught, self.added[:rungs])
        climbs = (sum((look.students(first=False) for look in looks[:rungs]), Cost()) for looks in self.climbs)
        return self._extreme(climbs) + sum(beside, Cost())

    def tuning(self, steps: int | None = None) -> Cost:
        count = self.tuning_steps() if steps is None else steps
        total = self._first + self._later * (count - 1) if count else Cost()
        work = self.job.budget.work
        if work is None or not count:
            return total
        if self.most:  # no candidate begins once the work is spent
            limit = max(work - 1 + self._later.image_forwards, self._first.image_forwards)
            return replace(total, image_forwards=min(total.image_forwards, limit))
        return total

    def tuning_steps(self) -> int:
        """Candidates until the budget of steps, of network calls or of work is spent."""
        steps, budget, spent = self.job.budget.steps, self.job.budget, Cost()
        if budget.denoiser_calls is None and budget.work is None:
            return steps
        for number in range(steps):
            spent += self.step(number)
            if budget.denoiser_calls is not None and spent.denoiser_calls >= budget.denoiser_calls:
                return number + 1
            if budget.work is not None and spent.image_forwards >= budget.work:
                return number + 1
        return steps

    def training(self) -> Cost:
        return super().training() * predictions_in(self.job)

    # -- evaluation ----------------------------------------------------------------------------------------

    def evaluation(self) -> dict[str, Cost]:
        found = super().evaluation()
        if self.job.budget.steps > 1:
            found["tuned"] = self._extreme(each.evaluation()["tuned"] for each in self.whole)
        return found

    def rows(self) -> int:
        return max(each.rows() for each in self.whole)

    def inexact(self) -> str | None:
        """Why there are a least and a most, if there are."""
        reasons = []
        assert self.job.search is not None
        if self.job.search.pruner is not None:
            reasons.append("a pruner stops candidates after a part of their samples")
        others = [sum((look.students(first=False) for look in looks), Cost()) for looks in self.climbs]
        if any(cost != others[0] for cost in others):
            reasons.append("what a candidate costs depends on its choices")
        elif any(each.evaluation() != self.whole[0].evaluation() for each in self.whole):
            reasons.append("what the evaluation costs depends on what is chosen")
        found = super().inexact()
        return "; ".join([*reasons, *([found] if found else [])]) or None

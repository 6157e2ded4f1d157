"""What else there is, from samples that a search for lambda has drawn anyway: best-of-n, and weighted sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genbo.cli.stages.context import Context
from genbo.cli.stages.lambda_holdout import HeldOutLaws

if TYPE_CHECKING:
    from genbo.bilevel.regularization.bank import Bank
    from genbo.bilevel.regularization.best_of_n import BestOfN
    from genbo.bilevel.regularization.search import Round
    from genbo.cli.report.lambda_untrained import Against, Untrained


def untrained(context: Context, last: Round, plain: Bank | None, held_out: HeldOutLaws) -> Untrained | None:
    """Best-of-n on the search's samples of the pretrained model, and one of them against lambda on held-out samples."""
    from genbo.bilevel.regularization.best_of_n import at_most, line
    from genbo.bilevel.regularization.context import LawContext, LawSolver
    from genbo.bilevel.regularization.weighted_sum import at_kl
    from genbo.cli.report.lambda_untrained import Untrained

    best, solver = last.optimum, context.assembled.lower
    if plain is None or best is None:
        return None
    points = line(plain)
    if not solver.traits.free:
        return Untrained(plain.samples, points, None)
    own: LawSolver = solver
    solve = own.begin(LawContext(banks=last.banks))
    kl = solve(best.lam).kl.mean
    keeping = {one.n for one in points if keeps(context, plain, one.n)}
    chosen = at_most([one for one in points if one.n in keeping], kl)
    against = None if chosen is None else against_lambda(context, chosen, best.lam, held_out)
    return Untrained(plain.samples, points, against, at_kl(solve, plain, kl) if kl > 0 else ())


def keeps(context: Context, bank: Bank, n: int) -> bool:
    """Whether best-of-n keeps every level of the job on these samples."""
    from genbo.bilevel.regularization.best_of_n import best_of_n
    from genbo.bilevel.regularization.constrained import in_place_of_r1
    from genbo.bilevel.regularization.context import LawContext, LawSolver

    a = context.assembled
    solver: LawSolver = a.lower
    for k, constraint in enumerate(a.problem.constraints):
        own, level = in_place_of_r1(bank, k), constraint.at_least
        if constraint.relative_to_start:
            level += solver.begin(LawContext(banks=[own]))(a.strength.start).r1.mean
        if best_of_n(own, n).r1.mean < level:
            return False
    return True


def against_lambda(context: Context, chosen: BestOfN, lam: float, held_out: HeldOutLaws) -> Against | None:
    """Both on held-out samples: on the same ones, unless these know the law at lambda worse than shifted ones do."""
    from genbo.bilevel.regularization.best_of_n import best_of_n, numbers
    from genbo.bilevel.regularization.context import LawContext, LawSolver
    from genbo.cli.report.lambda_untrained import Against

    banks = held_out.banks
    if not banks or chosen.n not in numbers(banks[0].samples):
        return None
    solver: LawSolver = context.assembled.lower
    same, best = (solver.begin(LawContext(banks=of))(lam) for of in (banks[:1], banks))
    shared = same.fit.verdict == best.fit.verdict
    pair = held_out.pair
    tuned = same if shared else best
    return Against(best_of_n(banks[0], chosen.n), tuned, shared, pair.prompts, pair.samples, pair.fresh_prompts)

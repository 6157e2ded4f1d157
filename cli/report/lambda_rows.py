"""Numbers of a search for lambda as records: a point of the curve, a line of `steps.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from genbo.cli.report.records_search import CurvePoint

if TYPE_CHECKING:
    from genbo.bilevel.regularization.curve import Point
    from genbo.bilevel.regularization.search import Round


def point_of(point: Point) -> CurvePoint:
    """Every mean with its standard error."""
    from genbo.bilevel.interval import error

    law, fit = point.law, point.law.fit
    return CurvePoint(
        lam=point.lam,
        r1=law.r1.mean,
        r1_se=error(law.r1),
        r2=law.r2.mean,
        r2_se=error(law.r2),
        kl=law.kl.mean,
        kl_se=error(law.kl),
        grad=point.grad.mean,
        grad_se=error(point.grad),
        verdict=fit.verdict,
        ess=fit.ess,
        max_weight=fit.max_weight,
        khat=fit.khat,
    )


def label(names: Sequence[str]) -> str:
    """The rewards of a level as one name."""
    return " + ".join(names)


def record_of(
    number: int, now: Round, u: list[float], cost: Mapping[str, int], elapsed_s: float, name: str
) -> dict[str, object]:
    """A line of `steps.jsonl`: a round."""
    best, bank = now.optimum, now.banks[-1] if now.banks else None
    at = min(now.curve, key=lambda point: abs(point.lam - best.lam)) if best else None
    return {
        "step": number,
        "phi": {"regularization": best.lam if best else None},
        "value": best.r1 if best else None,
        "value_se": at.law.r1.se if at else None,
        "scores": {name: best.r1 if best else None},
        "gaps": {},
        "multipliers": {},
        "u": u,
        "grad": [at.grad.mean if at else None],
        "grad_se": [at.grad.se if at else None],
        "status": "ok" if best else "unusable",
        "kind": best.kind if best else None,
        "verdict": best.verdict if best else None,
        "log_se": best.log_se if best else None,
        "after": now.after,
        "reason": now.reason,
        "target": now.target,
        "samples": bank.samples if bank else 0,
        "shifted": bool(bank.log_ratio.any()) if bank else False,
        "cost": dict(cost),
        "elapsed_s": round(elapsed_s, 3),
    }

"""The key `search` of `report.json`: what a search for lambda found."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from genbo.cli.report.records import ComparedRow, Number, Record
from genbo.cli.report.records_weights import FitVerdict, WeightsRow


class CurvePoint(Record):
    """Means at a lambda with their standard errors, and whether the samples can be relied on there."""

    lam: Number
    r1: Number | None = None
    r1_se: Number | None = None
    r2: Number | None = None
    r2_se: Number | None = None
    kl: Number | None = None  # nats
    kl_se: Number | None = None
    grad: Number | None = None
    grad_se: Number | None = None
    verdict: FitVerdict = "reliable"
    ess: Number | None = None  # effective size; None is without end
    max_weight: Number | None = None
    khat: Number | None = None  # of the Pareto tail


class PretrainedMeans(Record):
    """Both rewards without any tuning."""

    r1: Number | None = None
    r2: Number | None = None


class OptimumRecord(Record):
    """The lambda that was found."""

    kind: str  # interior | constrained | lower_bound | upper_bound | out_of_reach | unclear | infeasible
    lam: Number
    r1: Number | None = None
    verdict: FitVerdict = "reliable"
    reason: str = ""
    interval: tuple[Number, Number] | None = None
    log_se: Number | None = None
    others: list[Number] = Field(default_factory=list)  # lower maxima
    evaluations: int = 0  # solves of the lower level that it took


class TiltRecord(Record):
    """The tilt of the same E[r2], where the numbers are those of another law."""

    lam: Number
    verdict: FitVerdict = "reliable"


class SteeringRecord(Record):
    """Steered samples at the best lambda, beside the pretrained model's and the law's, of the same held-out prompts."""

    rule: str
    strength: Number  # 1 / lambda
    lam: Number
    r1: Number | None = None
    r1_se: Number | None = None
    r2: Number | None = None
    r2_se: Number | None = None
    kl: Number | None = None  # of the paths, nats; None where it is not known
    kl_se: Number | None = None
    pretrained_r1: Number | None = None
    pretrained_r2: Number | None = None
    law_r1: Number | None = None
    law_r2: Number | None = None
    law_kl: Number | None = None
    law_verdict: FitVerdict = "reliable"
    share: Number | None = None  # of the law's gain in r2
    share_se: Number | None = None
    cost: dict[str, int] = Field(default_factory=dict)  # of an image
    seconds: Number | None = None  # of an image
    plain_seconds: Number | None = None


class BestOfNPoint(Record):
    """The best of n samples of the pretrained model by the lower reward: means with their standard errors."""

    n: int
    r1: Number | None = None
    r1_se: Number | None = None
    r2: Number | None = None
    r2_se: Number | None = None
    kl: Number | None = None  # nats
    kl_se: Number | None = None  # 0 where no sample has the lower reward of another


class BestOfNAgainst(Record):
    """The best of n samples against the tuned lambda, on held-out samples, at no more KL."""

    n: int
    lam: Number
    r1: ComparedRow  # start is at lambda, tuned is best-of-n
    r2: Number | None = None
    lam_r2: Number | None = None
    kl: Number | None = None
    lam_kl: Number | None = None


class WeightedSumPoint(Record):
    """Samples tuned for r1 + weight r2, at the KL of the chosen lambda."""

    weight: Number
    strength: Number  # of the KL term
    r1: Number | None = None
    r1_se: Number | None = None
    r2: Number | None = None
    r2_se: Number | None = None
    kl: Number | None = None  # nats
    verdict: FitVerdict = "reliable"


class BestOfNRecord(Record):
    """What needs no tuning: the best of n samples, from the samples that the search drew."""

    samples: int  # of each prompt
    points: list[BestOfNPoint] = Field(default_factory=list)
    against: BestOfNAgainst | None = None


class SearchRecord(Record):
    """What a search for lambda found."""

    upper: str
    lower: str
    solver: str = ""
    law: str = ""
    curve: list[CurvePoint] = Field(default_factory=list)
    reach: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None  # lambdas between reliable ends
    pretrained: PretrainedMeans | None = None
    pretrained_reason: str | None = None
    optimum: OptimumRecord | None = None
    tilt: TiltRecord | None = None
    after: str | None = None
    samples: list[int] = Field(default_factory=list)  # of each bank
    weights: list[WeightsRow] | None = None
    steering: SteeringRecord | None = None
    best_of_n: BestOfNRecord | None = None
    weighted_sums: list[WeightedSumPoint] = Field(default_factory=list)

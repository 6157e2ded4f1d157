"""What steering at the best lambda does beside the law that it stands in for: on held-out prompts, and at what cost.

    share = (E_steered[r2] - E_0[r2]) / (E_law[r2] - E_0[r2])

E_0 and E_law, the law p0 exp(r2 / lambda), are from one bank of the pretrained model's samples. The steered samples are
others, so the error of the share has two independent parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from genbo.cli.report import number_format
from genbo.cli.report.records_search import SteeringRecord

if TYPE_CHECKING:
    from genbo.bilevel.regularization.tilted import Law
    from genbo.cli.report.records import Remark


@dataclass(frozen=True)
class SteeredLaw:
    """Three laws of the same held-out prompts, and what an image of the first and of the second costs.

    Attributes:
        rule: The kind of the steering rule.
        strength: 1 / lambda.
        steered: What is drawn, at lambda.
        pretrained: Without steering.
        law: p0 exp(r2 / lambda), by the weights of the same samples as `pretrained`.
        cost: Of one steered image: network calls, rows there and back, images that the reward looked at.
        seconds: Of one steered image as it was drawn and scored, with as many in a call as the job has.
        plain_seconds: The same of an image of the pretrained model.
    """

    rule: str
    strength: float
    steered: Law
    pretrained: Law
    law: Law
    cost: Mapping[str, int]
    seconds: float
    plain_seconds: float

    @property
    def share(self) -> tuple[float, float] | None:
        """Of the law's gain in r2, and its standard error; None where the samples do not know that gain."""
        gain, bank = self.law.r2 - self.pretrained.r2, self.pretrained.r2
        if self.law.fit.verdict == "refuse" or not abs(gain.mean) > 2 * gain.se:
            return None
        share = (self.steered.r2.mean - bank.mean) / gain.mean
        rest = bank + gain * share  # of the same samples, so their errors go together
        wider = 2 if self.law.fit.verdict == "doubtful" else 1  # error bars are too short there by that factor
        return share, math.hypot(self.steered.r2.se, wider * rest.se) / abs(gain.mean)

    def document(self) -> SteeringRecord:
        share = self.share
        return SteeringRecord(
            rule=self.rule,
            strength=self.strength,
            lam=self.steered.lam,
            r1=self.steered.r1.mean,
            r1_se=self.steered.r1.se,
            r2=self.steered.r2.mean,
            r2_se=self.steered.r2.se,
            kl=_finite(self.steered.kl.mean),
            kl_se=_finite(self.steered.kl.se),
            pretrained_r1=self.pretrained.r1.mean,
            pretrained_r2=self.pretrained.r2.mean,
            law_r1=self.law.r1.mean,
            law_r2=self.law.r2.mean,
            law_kl=self.law.kl.mean,
            law_verdict=self.law.fit.verdict,
            share=None if share is None else share[0],
            share_se=None if share is None else share[1],
            cost=dict(self.cost),
            seconds=self.seconds,
            plain_seconds=self.plain_seconds,
        )

    def remarks(self, lower: str) -> Iterator[Remark]:
        """Sentences: the share of the law, and what it costs."""
        from genbo.cli.report.trust import remark

        share = self.share
        if share is None:
            text = f"The samples do not tell how far the law at this lambda raises {lower}: raise lower.samples."
        else:
            part = number_format.with_error(100 * share[0], 100 * share[1])
            text = f"Steered samples have {part} % of the gain in {lower} that the law at this lambda has."
        yield remark("note", text)
        calls, back = (number_format.count(self.cost[name]) for name in ("denoiser_calls", "image_backwards"))
        times = number_format.number(self.seconds / self.plain_seconds) if self.plain_seconds > 0 else "more"
        yield remark("note", f"A steered image takes {calls} network calls, {back} rows back, and {times} x the time.")


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None

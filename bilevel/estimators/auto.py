"""Chooses the estimator that was measured to be the most accurate for the job, and gives the reason.

A search takes its place where it was measured to be ahead of every gradient. For a noise schedule of few numbers the
best values lie along a curved ridge that is nearly level and ends at a bound. Gradients reach the ridge in a few steps
and stay there, because the slope along it is less than their noise; candidates on the same samples tell its ends apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from genbo.bilevel.protocols import Facts

SLOPES = {
    "covariance": "lambda moves the mean of r1 by its covariance with r2: no bias, no step",
    "value_gap": "two lower levels, the second with the upper reward let in: what trained weights can be asked",
    "difference": "this lower level does not end in the tilt, so only two of its solves tell its slope",
}
SEARCHED = 3  # numbers of a schedule up to which a search covers their ranges
ENOUGH = 64  # samples that a candidate needs
FEW = 8  # parameters up to which differences beat a backward pass at an equal number of samplings


@dataclass(frozen=True)
class Auto:
    """It takes no options: the number of parameters and the gradients that there are decide."""

    def search(self, facts: Facts) -> tuple[str, str] | None:
        """The kind of a searcher that was ahead of gradients on such a problem, and the reason; None elsewhere."""
        if not facts.schedule or facts.coupled or facts.constrained:
            return None
        if facts.parameters > SEARCHED or facts.candidates < ENOUGH:
            return None
        number = f"{facts.parameters} number{'s' * (facts.parameters > 1)} of a noise schedule"
        return "gp", (
            f"{number}: the best values lie along a level ridge that ends at a bound, and there candidates on "
            "common samples were ahead of gradients"
        )

    def choose(self, facts: Facts) -> tuple[str, dict[str, object], str]:
        """The kind of an estimator, its options, and the reason in a sentence.

        Up to 8 parameters it takes central differences, 2P samplings. Beyond that it takes reverse mode where reward
        and model have gradients. Without, it takes P + 1 samplings up to 20 parameters, and 20 random directions above.

        Raises:
            KeyError: where `facts.slope` is no estimator of a law.
        """
        if facts.slope is not None:
            return facts.slope, {}, SLOPES[facts.slope]
        if facts.coupled:
            return "penalty", {}, "the network is trained for what is tuned: two lower levels tell how it answers"
        number = f"{facts.parameters} parameter{'s' * (facts.parameters > 1)}"
        if facts.parameters <= FEW:
            reason = f"{number}: coordinate differences with common random numbers need no gradients and no memory"
            return "zeroth_order", {}, reason
        if facts.differentiable_reward and facts.differentiable_model and not facts.steered:
            reason = f"{number} and a differentiable reward: one backward pass costs the same for any number of them"
            return "reverse_mode", {}, reason
        what = "samples that are steered" if facts.steered else "a reward without gradients"
        if facts.parameters <= 20:
            reason = f"{number} and {what}: one-sided differences take {facts.parameters + 1} samplings"
            return "zeroth_order", {"points": "forward"}, reason
        reason = f"{number} and {what}: 20 random directions; knots would make it a smaller problem"
        return "zeroth_order", {"directions": "random", "count": 20}, reason

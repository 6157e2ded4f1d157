"""Chooses the estimator that was measured to be the most accurate for the job, and gives the reason."""

from __future__ import annotations

from dataclasses import dataclass

from genbo.bilevel.protocols import Facts

SLOPES = {
    "covariance": "lambda moves the mean of r1 by its covariance with r2: no bias, no step",
    "value_gap": "two lower levels, the second with the upper reward let in: what trained weights can be asked",
    "difference": "this lower level does not end in the tilt, so only two of its solves tell its slope",
}
FEW = 8  # parameters up to which differences beat a backward pass at an equal number of samplings


@dataclass(frozen=True)
class Auto:
    """It takes no options: the number of parameters and the gradients that there are decide."""

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
        if facts.differentiable_reward and facts.differentiable_model:
            reason = f"{number} and a differentiable reward: one backward pass costs the same for any number of them"
            return "reverse_mode", {}, reason
        if facts.parameters <= 20:
            reason = (
                f"{number} and a reward without gradients: one-sided differences take {facts.parameters + 1} samplings"
            )
            return "zeroth_order", {"points": "forward"}, reason
        reason = f"{number} and a reward without gradients: 20 random directions; knots would make it a smaller problem"
        return "zeroth_order", {"directions": "random", "count": 20}, reason

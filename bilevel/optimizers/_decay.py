"""How far a step has shrunk by now: full for the first part of the budget, then a cosine down to `final`."""

from __future__ import annotations

import math

FULL = 0.6  # of the budget


def decay(progress: float, final: float) -> float:
    """`progress` in [0, 1] -> a factor in [final, 1]."""
    late = max(0.0, (progress - FULL) / (1 - FULL))
    return final + (1 - final) * (1 + math.cos(math.pi * min(late, 1.0))) / 2

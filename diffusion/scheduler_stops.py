"""Where diffusers' schedulers of betas stop, by their plain spacings, in numbers alone.

    linspace    even between 0 and T - 1, both told; DPM-Solver leaves 0 out
    leading     multiples of T // N from 0 on, and `steps_offset`; of T // (N + 1) from the first on for DPM-Solver
    trailing    T, T - T / N, ... less one

T is `num_train_timesteps`, N the number of steps. With many steps times fall together, or leave the table that the
network was trained on: there diffusers divides by zero, or fails. `why_not` says so before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

OWN_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
SPACINGS = {"ddim": "leading", "ddpm": "leading", "euler": "linspace", "dpmpp": "linspace"}  # diffusers' defaults


def times(config: Mapping[str, Any], kind: str, steps: int) -> list[float] | None:
    """The times of a scheduler, noisiest first; None where its settings make others of them."""
    train = config.get("num_train_timesteps", 1000)
    if not isinstance(train, int) or _makes_its_own(config, kind):
        return None
    match config.get("timestep_spacing", SPACINGS[kind]):
        case "linspace" if kind == "dpmpp":
            return [float(round(t)) for t in _even(train - 1, steps + 1)][:0:-1]
        case "linspace":
            return [t if kind == "euler" else float(round(t)) for t in reversed(_even(train - 1, steps))]
        case "leading":
            first = 1 if kind == "dpmpp" else 0
            ratio, offset = train // (steps + first), config.get("steps_offset", 0)
            return [float((i + first) * ratio + offset) for i in reversed(range(steps))]
        case "trailing":
            return [float(round(t) - 1) for t in _falling(train, -train / steps)]
    return None


def _makes_its_own(config: Mapping[str, object], kind: str) -> bool:
    if kind not in ("euler", "dpmpp"):
        return False
    clipped = config.get("lambda_min_clipped")
    return any(config.get(name) for name in OWN_SIGMAS) or clipped not in (None, -math.inf)


def _even(last: int, number: int) -> list[float]:
    """numpy's linspace from 0."""
    if number == 1:
        return [0.0]
    return [*(i * (last / (number - 1)) for i in range(number - 1)), float(last)]


def _falling(start: int, step: float) -> list[float]:
    """numpy's arange down to 0, to its last bit: a rounding in it can add a stop at the end."""
    delta = (start + step) - start
    return [start + i * delta for i in range(math.ceil(-start / step))]


def why_not(config: Mapping[str, object], kind: str, steps: int, sampler: str) -> str | None:
    """None, or why the scheduler of this kind cannot stop so often for the sampler, and how often it can."""
    train = config.get("num_train_timesteps", 1000)
    if not isinstance(train, int) or _is_sound(config, kind, steps):
        return None
    spacing = config.get("timestep_spacing", SPACINGS[kind])
    most = next((n for n in range(min(steps - 1, train), 0, -1) if _is_sound(config, kind, n)), 1)
    offset = (
        f" and steps_offset: {config['steps_offset']}" if spacing == "leading" and config.get("steps_offset") else ""
    )
    return (
        f"{sampler} cannot take {steps} steps here: this scheduler has {train} training steps, "
        f"timestep_spacing: {spacing}{offset}, so stops fall together or outside; take {most}, "
        "the largest number below that works"
    )


def _is_sound(config: Mapping[str, Any], kind: str, steps: int) -> bool:
    """Whether every step leads from one level to a cleaner one, in the table of levels."""
    train = config.get("num_train_timesteps", 1000)
    spacing = config.get("timestep_spacing", SPACINGS[kind])
    if steps > train and not (kind == "euler" and (spacing == "linspace" or _makes_its_own(config, kind))):
        return False
    found = times(config, kind, steps)
    if found is None:
        return True  # known once it is loaded
    if len(found) != steps or found[-1] < 0:
        return False
    betas = config.get("trained_betas")
    last = (len(betas) if isinstance(betas, list) else train) - 1
    if kind in ("ddim", "ddpm") and found[0] > last:
        return False
    levels = [min(t, last) for t in found] if kind == "dpmpp" else found  # its solver divides by their distances
    return all(a > b for a, b in pairwise(levels))

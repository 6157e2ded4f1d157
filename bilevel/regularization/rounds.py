"""How much a search for lambda may draw: known before anything is loaded, so without torch."""

from __future__ import annotations

PILOT = 0.25  # samples that choose the shifts, for each that is kept
PILOT_ROUNDS = 3  # of the pilot, each at a smaller lambda than the one before
FIRST = 1024  # samples in all of the first bank, at least, where a search stops at a precision
FIRST_EACH = 64  # of each prompt


def pilot_samples(samples: int) -> int:
    """A prompt, of the pilot for so many samples that are kept."""
    return max(PILOT_ROUNDS, round(PILOT * samples))


def pilot_parts(samples: int) -> list[int]:
    """Samples a prompt in each round of that pilot: in equal parts, the last smaller."""
    whole = pilot_samples(samples)
    each = -(-whole // PILOT_ROUNDS)
    return [min(each, whole - at) for at in range(0, whole, each)]


def banks_at_most(samples: int, rounds: int) -> list[int]:
    """Samples a prompt of the banks after the first, where every round draws another.

    Rounds of either kind, plain or shifted, double by themselves, so the most is drawn where all are of one kind.
    """
    return [samples * 2**k for k in range(rounds - 1)]


def looks(samples: int, rounds: int, prompts: int) -> tuple[int, int]:
    """The first bank's samples a prompt, and the rounds, of a search that stops as soon as it is precise enough.

    The first bank is halved as often as it stays large enough, with another round for each: in all of them together no
    more samples are drawn than in `rounds` rounds that begin with `samples`.
    """
    halvings = 0
    while samples // 2 ** (halvings + 1) >= max(FIRST_EACH, FIRST / prompts):
        halvings += 1
    return samples // 2**halvings, rounds + halvings

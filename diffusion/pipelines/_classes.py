"""Prompts of a network that is told a class: the name of one, or its number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from genbo.diffusion.refused import Refused


def labels(prompts: Sequence[str], names: Mapping[str, int], number: int, none: int) -> Tensor:
    """(rows,): the class of each prompt, of `number` classes; "" is `none`. `Refused` for a stranger."""
    return torch.tensor([none if prompt == "" else _label(prompt, names, number) for prompt in prompts])


def _label(prompt: str, names: Mapping[str, int], number: int) -> int:
    if prompt in names:
        return names[prompt]
    if prompt.isdecimal() and int(prompt) < number:
        return int(prompt)
    known = f", or a name like {next(iter(names))!r}" if names else ""
    raise Refused(f"prompts: this model draws classes and knows none called {prompt!r}; give 0 to {number - 1}{known}")

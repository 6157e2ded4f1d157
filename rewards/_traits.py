"""What a reward declares of itself: one frozen record, read where others would probe.

A file in `rewards/` states what differs from the defaults, under these names: as a class variable
(`reads_prompts: ClassVar[bool] = True`), as an option, or as a property where it depends on the options. A file that
states nothing has the defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.rewards._tokens import TokenReader


def nothing(*given: object) -> tuple[()]:
    """What a method finds that a file does not have."""
    return ()


@dataclass(frozen=True)
class RewardTraits:
    """What the rest of genbo must know of a reward before it is opened; `diffusion.kinds.declared` reads it.

    Attributes:
        differentiable: Whether gradients of the score in the images mean anything.
        of_sets: Whether it scores all samples together, such as a distance to data, and not each by itself.
        needs_data: Whether a reward of sets compares with the images of `data:`; without meaning for any other.
        reads_prompts: Whether the score depends on the prompt.
        lesson: Steps and sampler of the teacher whose samples it compares with, for the plan: those who agree on it
            draw once. None: it scores images alone.
        folder: The folder that its weights are in, if they are in one.
        weights_file: The file that its weights are in, if they are in one.
        pretrained: What the job calls its weights, `""` where it has none.
        model: What the job calls its network beside `pretrained`, `""` where that says it.
        readers: The text encoders of the reward, as `_tokens` counts what they read of a prompt.
    """

    differentiable: bool = True
    of_sets: bool = False
    needs_data: bool = True
    reads_prompts: bool = False
    lesson: tuple[int, str | None] | None = None
    folder: Path | None = None
    weights_file: Path | None = None
    pretrained: str = ""
    model: str = ""
    readers: Callable[[], Sequence[TokenReader]] = nothing


class RewardOptions(Protocol):
    """A file in `rewards/`: a frozen dataclass whose fields are the options, with what `RewardTraits` lists beside.

    The file is imported without torch, which `open` alone may import.
    """

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each, with the remedy; looks at files and loads none.

        A sentence that begins with `option: ` is shown at that option's place in the job.
        """

    def open(self, device: str | torch.device = "cpu") -> Any:
        """The reward itself, as `genbo.bilevel.scoring` has it, with its weights on this device.

        Raises:
            Refused: a sentence, for whatever is wrong with the weights.
        """


@runtime_checkable
class Comparing(Protocol):
    """An opened reward of sets, before it knows the data that it compares with."""

    def against(self, data: Tensor) -> Any:
        """The reward itself, on images (M, C, H, W) in [0, 1] or in bytes.

        Raises:
            Refused: where these images cannot be compared with.
        """


@runtime_checkable
class RunsCode(Protocol):
    """Options that name a file of the user's own code.

    Attributes:
        sha256: of the code that the command line allowed, in hexadecimal; `""` where it allowed none.
    """

    sha256: str

    @property
    def path(self) -> Path:
        """The file."""

"""What a file in `diffusion/models/` must implement; `traits.ModelTraits` lists what it may state beside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from genbo.diffusion.data import Images
    from genbo.diffusion.network import Network
    from genbo.diffusion.process import Model


class ModelOptions(Protocol):
    """A file in `diffusion/models/`: a frozen dataclass whose fields are the options, with what `ModelTraits` lists.

    The file is imported without torch, which `open` alone may import.
    """

    def mistakes(self) -> list[str]:
        """What stops the model from being loaded, a sentence each, with the remedy; looks at files and loads none.

        A sentence that begins with `option: ` is shown at that option's place in the job.
        """

    def open(self) -> Model:
        """The model, with its weights on its device.

        Raises:
            Refused: a sentence, for whatever is wrong with the weights.
        """


class LearningOptions(ModelOptions, Protocol):
    """The same of a network of the user's own, which `learns`: its shape and its classes are those of the data."""

    def open(self, images: Images | None = None) -> Network:
        """The untrained network for these images.

        Raises:
            Refused: a sentence, where these options and the images do not fit.
        """

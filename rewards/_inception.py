"""InceptionV3 as the Fréchet distance has used it since 2017: TensorFlow's network of 2015, 2,048 features.

It is torchvision's network but for its pools: TensorFlow's average leaves the padding out, and the last block takes a
maximum. Tensors have the names of torch-fidelity's and pytorch-fid's weights (`weights-inception-2015-12-05`,
Apache-2.0). Images are resized with antialiasing, as torchmetrics does by default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import inception as blocks

SIZE, CLASSES, FEATURES = 299, 1008, 2048
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


class _Pooled:
    """In front of a block of torchvision's: its last branch once more, with this pool."""

    pool: Callable[[Tensor], Tensor] = staticmethod(_average)

    def _forward(self: Any, x: Tensor) -> list[Tensor]:
        branches: list[Tensor] = super()._forward(x)  # type: ignore[misc]
        return [*branches[:-1], self.branch_pool(self.pool(x))]


class _A(_Pooled, blocks.InceptionA):  # type: ignore[misc]
    pass


class _C(_Pooled, blocks.InceptionC):  # type: ignore[misc]
    pass


class _E(_Pooled, blocks.InceptionE):  # type: ignore[misc]
    pass


class Inception(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, 2048)."""

    def __init__(self) -> None:
        super().__init__()
        parts = [blocks.BasicConv2d, _A, blocks.InceptionB, _C, blocks.InceptionD, _E, blocks.InceptionAux]
        self.network: Any = blocks.Inception3(CLASSES, aux_logits=False, init_weights=False, inception_blocks=parts)
        self.network.Mixed_7c.pool = _maximum

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images * 255, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
        x = (x - 128) / 128
        for name, block in self.network.named_children():
            if name == "avgpool":
                break
            x = block(x)
        return x.mean((-2, -1))

    def logits(self, images: Tensor) -> Tensor:
        """(B, 1008): class scores without the bias, as published inception scores take them."""
        scores: Tensor = self(images) @ self.network.fc.weight.T
        return scores

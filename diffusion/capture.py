"""A function of tensors as one CUDA graph: its kernels are launched together, and Python is not asked again.

Small networks spend more time on launching kernels than on computing. A graph is recorded once for every shape of the
inputs, which are copied into the places it reads from; what it writes, weights included, it writes where it did when it
was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    Inputs = Sequence[Tensor]

MOST = 8  # recordings at a time: each holds the memory of one pass
WARM_UP = 3  # calls before a recording: libraries choose their kernels and allocate then


@dataclass
class _Recorded:
    graph: Any
    inputs: list[Tensor]
    output: Tensor


class Captured:
    """`f` once more; `restore` undoes what it changed while it was warmed up, where it changes anything.

    The output lives in the graph's own memory: it is to be used before the next call.
    """

    def __init__(
        self,
        f: Callable[..., Tensor],
        keep: Callable[[], object] = lambda: None,
        restore: Callable[[Any], None] | None = None,
    ) -> None:
        self.f, self.keep, self.restore = f, keep, restore
        self.known: dict[tuple[Any, ...], _Recorded] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = tuple((x.shape, x.dtype) for x in inputs)
        with torch.cuda.device(inputs[0].device):  # streams and graphs are of the device that is current
            if key not in self.known:
                if len(self.known) == MOST:
                    del self.known[next(iter(self.known))]
                self.known[key] = self._record(inputs)
            recorded = self.known[key]
            for mine, given in zip(recorded.inputs, inputs, strict=True):
                mine.copy_(given)
            recorded.graph.replay()
        return recorded.output

    def _record(self, inputs: Inputs) -> _Recorded:
        static, kept = [x.clone() for x in inputs], self.keep()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    self.f(*static)
            with torch.cuda.graph(graph, stream=aside):  # torch's own is of the device that first recorded anything
                output = self.f(*static)
        except BaseException:
            self.known.clear()  # where there was no room, what larger inputs have left is in the way
            raise
        finally:
            torch.cuda.current_stream().wait_stream(aside)
            if self.restore is not None:
                self.restore(kept)
        return _Recorded(graph, static, output)

"""Denoising training of a network, under one schedule or once for all of them.

    y: AdamW on L(theta; q), with warm-up and a running average of the weights, a few steps an update of q
    z: from y's average, on L + tilt f, the same minibatches for every tilt, y's own preconditioner held fixed

By default the network is told the log-SNR and trained on a broad, fixed range of it. Then L has no q in it: the same
network serves every schedule, no z is needed, and what a schedule does is what it does to sampling. The coupled forms,
`noise_levels: schedule` with `conditioning: log_snr` or `index`, are the paper's; there z is what tells how the network
answers a change of q.

z must move by O(1 / gamma). A fresh Adam would move it by its learning rate whatever the tilt; a fixed preconditioner
makes z - y proportional to it, and what is unfinished in y cancels, because y takes the same steps without a tilt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval

from genbo.bilevel.protocols import Drawing, LowerTraits

if TYPE_CHECKING:
    from genbo.bilevel.training.network_trainer import NetworkContext, NetworkTrainer

COUPLED_STEPS = 10  # of the paper's code
LONG = 10_000  # steps of training that pay for compiling
SMALL = 20_000_000  # weights of a network that takes longer to launch than to compute


@dataclass(frozen=True)
class Denoising:
    """How the network is trained.

    `pretrain` steps of training come before the first of tuning, and `steps` before each (by default 10 where the
    network depends on the schedule, and none where it serves every one). `within` is the range of log-SNR, in nats,
    that the network must know.

    `snr_cap` is min-SNR's, or null for an unweighted loss; `unlabelled` the share of labels that are left out where
    there are classes. z takes `z_steps` steps at `z_lr` times `lr`, and looks at the upper objective again every
    `z_refresh` of them; `z_batches` minibatches measure how L changes with the schedule. `compile: auto` does so on a
    GPU before long training, and `capture: auto` records a step of a small network as one CUDA graph there.
    """

    prediction: Literal["v_prediction", "epsilon", "sample"] = "v_prediction"
    conditioning: Literal["log_snr", "index"] = "log_snr"
    noise_levels: Literal["broad", "schedule"] = "broad"
    within: tuple[float, float] = (-12.0, 12.0)
    snr_cap: Annotated[float, Gt(0)] | None = 5.0
    train_steps: Annotated[int, Gt(1)] = 1000
    batch: Annotated[int, Gt(0)] = 128
    pretrain: Annotated[int, Ge(0)] = 2000
    steps: Annotated[int, Ge(0)] | None = None
    lr: Annotated[float, Gt(0)] = 1e-3
    warmup: Annotated[int, Ge(0)] = 100
    weight_decay: Annotated[float, Ge(0)] = 0.01
    ema: Annotated[float, Interval(ge=0, lt=1)] = 0.999
    unlabelled: Annotated[float, Interval(ge=0, le=1)] = 0.1
    bf16: Literal["auto", "on", "off"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    capture: Literal["auto", "on", "off"] = "auto"
    z_steps: Annotated[int, Gt(0)] = 100
    z_refresh: Annotated[int, Gt(0)] = 25
    z_lr: Annotated[float, Gt(0)] = 0.1
    z_batches: Annotated[int, Gt(0)] = 4
    traits: ClassVar[LowerTraits] = LowerTraits(
        finds="network", estimator="penalty", meaning="a network that is trained under the schedule", free=False
    )

    @property
    def drawing(self) -> Drawing:
        return Drawing()

    @property
    def coupled(self) -> bool:
        """Whether the schedule has a part in what the network is trained for."""
        return self.noise_levels == "schedule"

    def compiles(self, device: str) -> bool:
        """Whether networks are compiled there: it takes minutes, which only long training pays back."""
        return self.compile == "on" or (self.compile == "auto" and device == "cuda" and self.pretrain >= LONG)

    def captures(self, device: str, weights: int) -> bool:
        """Whether steps are recorded as CUDA graphs there, for a network of so many weights."""
        return device == "cuda" and (self.capture == "on" or (self.capture == "auto" and weights <= SMALL))

    @property
    def steps_of_update(self) -> int:
        """Steps of training before each step of tuning."""
        return self.steps if self.steps is not None else COUPLED_STEPS if self.coupled else 0

    def why_not(self, model: Any, *rewards: Any) -> str | None:
        return None

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each."""
        found = []
        if self.conditioning == "index" and self.noise_levels == "broad":
            found.append(
                "conditioning: an index is a step of the schedule, so the network can only be trained on the "
                "schedule's own levels; add noise_levels: schedule, or use conditioning: log_snr"
            )
        low, high = self.within
        if not -20 <= low < high <= 20:
            found.append("within: give a low and a high log-SNR between -20 and 20, as in [-12, 12]")
        if not self.pretrain and not self.steps_of_update:
            found.append("pretrain: 0 here and no steps later leave the network untrained; set one of the two")
        return found

    def shortened(self, samples: int) -> Denoising:
        return self

    def begin(self, context: NetworkContext) -> NetworkTrainer:
        """The network in training, on the device where its data live, starting from the module's weights."""
        from genbo.bilevel.training.network_trainer import NetworkTrainer

        return NetworkTrainer(self, context)

"""One training loop for every model here: a step captured as a CUDA graph, repeated until its time is up.

The learning rate follows the fraction `u` in [0, 1] of the time that is used: a short rise, then a cosine to
zero, so that a run ends well however many steps the machine makes in that time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Step = Callable[[], None]
Wrap = Callable[[Callable], Callable]
WARMUP_STEPS = 4  # before a capture: compilation, kernel choice, the optimiser's state


def rate(u: float, rise: float = 0.02) -> float:
    """The learning rate's factor when the fraction u of the time is used."""
    return u / rise if u < rise else 0.5 * (1 + math.cos(math.pi * min(1.0, (u - rise) / (1 - rise))))


def bf16(device: torch.device) -> torch.autocast:
    """Mixed precision where it is fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class Trained:
    """Parameters, their AdamW and their moving average, all updated by `update(loss)`; safe to capture."""

    def __init__(self, modules: Iterable[torch.nn.Module], device: torch.device, decay: float, weight_decay: float):
        self.modules = list(modules)
        self.params = [p for m in self.modules for p in m.parameters()]
        every = [t for m in self.modules for t in (*m.parameters(), *m.buffers())]
        self.state = [t for t in every if t.is_floating_point() and t.isfinite().all()]  # no masks of -inf
        self.ema = [t.detach().clone() for t in self.state]
        self.decay = decay
        self.lr = torch.zeros((), device=device)
        self.mean_loss = torch.zeros((), device=device)
        groups = [
            {"params": [p for p in self.params if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in self.params if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.opt = torch.optim.AdamW(
            groups, lr=self.lr, betas=(0.9, 0.99), fused=True, capturable=device.type == "cuda"
        )

    def update(self, loss: Tensor) -> None:
        """Backward, clip, step, average."""
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0, foreach=True)
        self.opt.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, [t.detach() for t in self.state], 1 - self.decay)
            self.mean_loss.lerp_(loss.detach().float(), 0.02)

    @torch.no_grad()
    def restart_ema(self) -> None:
        """Forget the average so far."""
        torch._foreach_copy_(self.ema, [t.detach() for t in self.state])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The modules with averaged weights, and afterwards with their own again."""
        own = [t.detach().clone() for t in self.state]
        self.use_ema()
        yield
        with torch.no_grad():
            torch._foreach_copy_([t.detach() for t in self.state], own)

    @torch.no_grad()
    def use_ema(self) -> None:
        """Put the averaged weights into the modules."""
        torch._foreach_copy_([t.detach() for t in self.state], self.ema)

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything a later run needs to go on."""
        moments = [self.opt.state[p] for group in self.opt.param_groups for p in group["params"]]
        named = {f"state.{i}": t for i, t in enumerate(self.state)}
        named |= {f"ema.{i}": t for i, t in enumerate(self.ema)}
        named |= {f"opt.{i}.{k}": t for i, m in enumerate(moments) for k, t in m.items()}
        return {k: t.detach().cpu().contiguous().clone() for k, t in named.items()}

    @torch.no_grad()
    def from_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from `to_tensors`."""
        for i, (t, e) in enumerate(zip(self.state, self.ema, strict=True)):
            t.copy_(tensors[f"state.{i}"])
            e.copy_(tensors[f"ema.{i}"])
        params = [p for group in self.opt.param_groups for p in group["params"]]
        for i, p in enumerate(params):
            prefix = f"opt.{i}."
            moments = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
            self.opt.state[p] = {k: t.to(p.device) for k, t in moments.items()}


def prepare(build: Callable[[Wrap, torch.Generator], Step], device: torch.device, compile_mode: str, seed: int) -> Step:
    """The fastest form of a step that works: compiled and captured, captured, or as it is.

    `build(wrap, generator)` makes the step; it passes its loss function through `wrap` and draws every random
    number from `generator`. Each attempt has a fresh one: a failed capture spoils its own.
    """

    def fresh() -> torch.Generator:
        return torch.Generator(device).manual_seed(seed)

    if device.type != "cuda":
        return build(lambda f: f, fresh())
    wraps: dict[str, Wrap] = {"captured": lambda f: f}
    if compile_mode != "none":
        mode = None if compile_mode == "default" else compile_mode
        wraps = {"compiled and captured": lambda f: torch.compile(f, mode=mode, dynamic=False)} | wraps
    for name, wrap in wraps.items():
        start = time.monotonic()
        try:
            generator = fresh()
            step = _capture(build(wrap, generator), generator)
            print(f"  step {name} in {time.monotonic() - start:.0f} s", flush=True)
            return step
        except Exception as error:  # whatever a compiler or a capture may raise: the next form is slower, not wrong
            print(f"  step not {name}: {type(error).__name__}: {str(error)[:600]}", flush=True)
            torch.cuda.set_stream(torch.cuda.default_stream())
            torch.cuda.synchronize()
    return build(lambda f: f, fresh())


def _capture(step: Step, generator: torch.Generator) -> Step:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUP_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        step()
    torch.cuda.synchronize()
    return graph.replay


def run(
    trained: Trained,
    step: Step,
    total: int,
    minutes: float,
    peak_lr: float,
    name: str,
    every_steps: int = 20,
    keep: Callable[[], None] = lambda: None,
) -> int:
    """Repeat the step `total` times, or for that many minutes if they end first; returns the number of steps.

    `keep` is called at every tenth of the way, to save what there is.
    """
    start, steps, lines, u = time.monotonic(), 0, 0, 0.0
    while u < 1:
        trained.lr.fill_(peak_lr * rate(u))
        step()
        steps += 1
        if steps % every_steps == 0 or trained.lr.device.type == "cpu":
            loss = trained.mean_loss.item()  # waits for the device
            if not math.isfinite(loss):
                raise FloatingPointError(f"{name}: the loss is {loss} after {steps} steps; lower the learning rate")
            if u < 0.1:
                trained.restart_ema()
            if u * 10 >= lines:
                lines = int(u * 10) + 1
                pace = steps / (time.monotonic() - start)
                print(f"  {name} {u:4.0%}  step {steps:6d}  loss {loss:.4f}  {pace:.1f} steps/s", flush=True)
                keep()
        u = max(steps / total, (time.monotonic() - start) / (60 * minutes))
    print(f"  {name} 100%  step {steps:6d}  loss {trained.mean_loss.item():.4f}", flush=True)
    return steps

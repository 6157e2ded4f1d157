"""Train "emoji-style", a linear head that tells a finished drawing from a sample of the diffusion model.

    r(x) = w . f(x) + b = log odds that x is one of the drawings,      f = the mean over the image of layer2's map

and where drawings and samples count the same, e^r is the ratio of their densities, as far as f can tell. Drawings are
the artists' own, in three styles; samples are the model's at guidance 1, one of each concept, a quarter of them asked
for in each style and a quarter in none.

The line is fitted by maximum likelihood with a ridge. Neither it nor emoji-clip was trained on the 200 held-out
concepts: half of them choose the ridge (a part of the training concepts would not do: emoji-clip knows their drawings),
and it is measured on the other half.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.process import process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Batch, Seed
from genbo.rewards._tower import ImageTower, Tower
from training.emoji import data
from training.emoji.card import LICENCES

LAYER = "layer2"
RIDGES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
HIDDEN = 16  # of the small network that the line is compared with
DRAWINGS = Seed(7).child("all")  # of the samples: one a concept

CARD = """\
# emoji-style

How finished a drawing looks, whatever it shows: the log odds that it is one of the artists' and not a sample of the
diffusion model `emoji`. Clean edges and even colours score high, smears score low. It is a line of {width} numbers and
a bias over `{layer}` of `emoji-clip` (the mean of its map over the image), reads no prompt, and is differentiable. In
a job:

```yaml
reward: {{kind: aesthetic, pretrained: emoji-style}}
```

It stands in for an aesthetic score: it has a taste, the taste was learned from real drawings, and it does not care
whether the picture shows what was asked for. Pushed far, it takes a clean hammer for a dolphin.

Values: any number. Of concepts that it never saw:

| | mean | standard deviation |
| --- | --- | --- |
{values}

Drawings and samples counted the same in training, so the score is the log of a ratio of densities, as far as the line
can tell: were it perfect, tilting the model by it at strength 1 would turn its samples into drawings, and anything
stronger would be too much.

## What it can do

200 concepts are held out: neither this head nor `emoji-clip` was trained on them. 100 of them chose the ridge; on the
other 100 ({drawings} drawings and {samples} samples, both kinds counting the same; chance is 0.5, 0.5 and 0.693):

| | accuracy | AUC | log loss |
| --- | --- | --- | --- |
{rows}

`emoji-clip` was trained to see the same in two drawings of a concept, so its embedding says what is drawn and hardly
how; an early layer says how. A sample that came out well *is* like a drawing, so no head can be
right about all of them.

## Training

Maximum likelihood with a ridge of {ridge:g}, on {trained_drawings:,} drawings and {trained_samples:,} samples of the
other concepts. Samples: guidance 1, 10 steps of DPM-Solver++, a quarter of them asked for in each style and a quarter
in none. All of it is on white.

{licences}"""


@dataclass(frozen=True)
class Examples:
    """N images by what a network sees in them; `drawn` is 1 for a drawing and 0 for a sample."""

    seen: Tensor  # (N, C)
    drawn: Tensor  # (N,)
    concept: Tensor  # (N,)

    def of(self, concepts: Tensor) -> "Examples":
        """Those of some concepts, which are given as a mask."""
        mask = concepts[self.concept]
        return Examples(self.seen[mask], self.drawn[mask], self.concept[mask])

    @property
    def share(self) -> Tensor:
        """Weights under which drawings and samples count the same."""
        part = self.drawn.mean()
        return 0.5 * (self.drawn / part + (1 - self.drawn) / (1 - part)) / len(self.drawn)


@torch.no_grad()
def draw(emoji: data.Emoji, device: str) -> Tensor:  # (C, 3, 64, 64) uint8
    """A sample of each concept from the bundled model as it is, without guidance."""
    process = process_of(Diffusers("emoji", device=device).open(), Dpmpp(steps=10), Plain(weight=1.0))
    styles = [*(f"{style} " for style in emoji.styles), ""]
    texts = tuple(styles[i % len(styles)] + label for i, label in enumerate(emoji.labels))
    batch = Batch(texts, tuple(DRAWINGS.child(i).value for i in range(len(texts))))
    images = [process.model.decode(sample(process, chunk)).clamp(0, 1).cpu() for chunk in batch.chunks(64)]
    return (torch.cat(images) * 255).round().to(torch.uint8)


@torch.no_grad()
def seen_by(tower: ImageTower, images: Tensor) -> dict[str, Tensor]:  # (N, C) each
    """What the layer and the embedding say of uint8 images (N, 3, 64, 64)."""
    chunks = [chunk.float() / 255 for chunk in images.split(128)]
    ways: dict[str, Callable[[Tensor], Tensor]] = {LAYER: lambda x: tower.map_mean(x, LAYER), "embedding": tower.embed}
    return {name: torch.cat([way(chunk).cpu() for chunk in chunks]) for name, way in ways.items()}


def fit(model: nn.Module, examples: Examples, ridge: float) -> nn.Module:
    """Weighted logistic regression by L-BFGS; the ridge does not touch biases."""
    weight = examples.share
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-7)

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = model(examples.seen)[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, examples.drawn, weight, reduction="sum")
        loss = loss + ridge * sum(p.square().sum() for p in model.parameters() if p.ndim > 1)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.requires_grad_(False)


def measured(model: nn.Module, examples: Examples) -> dict[str, float]:
    """Accuracy, area under the ROC curve, and log loss, with both kinds counting the same."""
    logits, weight, drawn = model(examples.seen)[:, 0], examples.share, examples.drawn
    right = ((logits > 0) == (drawn > 0)).double()
    pairs = logits[drawn > 0][:, None] - logits[drawn == 0]
    loss = F.binary_cross_entropy_with_logits(logits, drawn, weight, reduction="sum")
    auc = (pairs > 0).double().mean() + 0.5 * (pairs == 0).double().mean()
    return {"accuracy": (weight * right).sum().item(), "auc": auc.item(), "log_loss": loss.item()}


def best(build: Callable[[int], nn.Module], task: "Task") -> tuple[nn.Module, float]:
    """Of the models that the ridges give, the one that does best on the concepts that choose; and its ridge."""
    fitted = {ridge: fit(build(task.training.seen.shape[1]), task.training, ridge) for ridge in RIDGES}
    ridge = min(RIDGES, key=lambda ridge: measured(fitted[ridge], task.choosing)["log_loss"])
    return fitted[ridge], ridge


def line(width: int) -> nn.Module:
    return nn.Linear(width, 1).double()


def small_network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)).double()


def folded(model: nn.Module, mean: Tensor, sd: Tensor) -> dict[str, Tensor]:
    """The line on features as they are, in place of standardised ones."""
    weight = model.weight / sd
    return {"weight": weight.float(), "bias": (model.bias - weight @ mean).float()}


def spread(name: str, values: Tensor) -> str:
    """A line of the table: mean and standard deviation of scores (N, 1)."""
    return f"| {name} | {values.mean():.2f} | {values.std():.2f} |"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=data.PACKED)
    parser.add_argument("--samples", type=Path, default=data.CACHE / "samples.safetensors", help="drawn if not there")
    parser.add_argument("--out", type=Path, default=data.STYLE, help="folder of the finished head")
    return parser.parse_args()


@dataclass(frozen=True)
class Task:
    """Drawings against samples, by one way of seeing them, standardised."""

    training: Examples
    choosing: Examples
    test: Examples
    mean: Tensor
    sd: Tensor


def task(seen: Tensor, emoji: data.Emoji) -> Task:
    """`seen` holds the drawings, then a sample of each concept."""
    drawn = (torch.arange(len(seen)) < len(emoji.images)).double()
    concept = torch.cat([torch.from_numpy(emoji.concept), torch.arange(len(emoji.labels))])
    held_out = torch.from_numpy(emoji.held_out)
    known = seen[~held_out[concept]].double()
    mean, sd = known.mean(0), known.std(0)
    every = Examples((seen - mean) / sd, drawn, concept)
    even = held_out.cumsum(0) % 2 == 0
    training, choosing, test = (every.of(mask) for mask in (~held_out, held_out & even, held_out & ~even))
    return Task(training, choosing, test, mean, sd)


def card(model: nn.Linear, ridge: float, task: Task, rows: list[str]) -> str:
    """What it is and what was measured."""
    test, training = task.test, task.training
    values = [
        spread("drawings", model(test.seen[test.drawn == 1])),
        spread("samples at guidance 1", model(test.seen[test.drawn == 0])),
    ]
    return CARD.format(
        width=model.in_features,
        layer=LAYER,
        values="\n".join(values),
        rows="\n".join(rows),
        drawings=int(test.drawn.sum()),
        samples=int((1 - test.drawn).sum()),
        trained_drawings=int(training.drawn.sum()),
        trained_samples=int((1 - training.drawn).sum()),
        ridge=ridge,
        licences=LICENCES,
    )


def main() -> None:
    """Draw, fit, measure, save, and write the card."""
    args, device = parse(), "cuda" if torch.cuda.is_available() else "cpu"
    emoji = data.load(args.data)
    if not args.samples.is_file():
        save_file({"images": draw(emoji, device)}, args.samples)
    drawings = torch.from_numpy(emoji.images).permute(0, 3, 1, 2)
    images = torch.cat([drawings, load_file(args.samples)["images"]])
    seen = seen_by(ImageTower(Tower("emoji-clip").load(), device), images)
    tasks = {name: task(values, emoji) for name, values in seen.items()}
    heads = {
        f"a line over `{LAYER}`: this head": (LAYER, line),
        f"a network of {HIDDEN} over `{LAYER}`": (LAYER, small_network),
        "a line over the embedding": ("embedding", line),
    }
    rows, found = [], []
    for name, (features, build) in heads.items():
        found.append(best(build, tasks[features]))
        figures = measured(found[-1][0], tasks[features].test)
        print(f"  {name}: ridge {found[-1][1]:g}, {json.dumps(figures)}", flush=True)
        rows.append(f"| {name} | {figures['accuracy']:.3f} | {figures['auc']:.3f} | {figures['log_loss']:.3f} |")
    (model, ridge), ours = found[0], tasks[LAYER]
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(folded(model, ours.mean, ours.sd), args.out / "head.safetensors")
    (args.out / "config.json").write_text(json.dumps({"clip": "emoji-clip", "features": LAYER}, indent=2) + "\n")
    (args.out / "README.md").write_text(card(model, ridge, ours, rows))
    print(f"  wrote {args.out}", flush=True)


if __name__ == "__main__":
    main()

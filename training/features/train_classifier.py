"""Train a small classifier of Fashion-MNIST or of the digits, and write its folder and its card.

    python -m training.features.train_classifier --data /usr/share/datasets/fashion-mnist
    python -m training.features.train_classifier --data digits

The idx files are those of the Debian package `dataset-fashion-mnist`. The digits are scikit-learn's own.
On one core they take 90 and 13 seconds.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from genbo.diffusion.data import Data, Images, Splits
from genbo.diffusion.seed import Seed
from genbo.rewards import bundled
from genbo.rewards._convolutions import KIND, TwoConvolutions
from genbo.rewards._extractors import open_extractor
from genbo.rewards._sets import Rule, features_of
from genbo.rewards.fid import Frechet
from genbo.rewards.kid import Polynomial
from training.features.card import card

FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
NOISE = (0.05, 0.1, 0.3)


def train(
    network: TwoConvolutions, images: Images, epochs: int, batch: int, rate: float, shift: int, seed: Seed
) -> None:
    """Cross-entropy with label smoothing, AdamW, one cycle of the learning rate."""
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    network.train()
    for step, (x, labels) in enumerate(_batches(images, epochs, batch, shift, seed)):
        loss = F.cross_entropy(network(x), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            print(f"  step {step} of {steps}, loss {loss.item():.3f}", flush=True)


def _batches(images: Images, epochs: int, batch: int, shift: int, seed: Seed) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once an epoch, moved by up to `shift` pixels."""
    for epoch in range(epochs):
        generator = seed.child("epoch", epoch).generator()
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: len(order) // batch * batch].split(batch):
            chosen = images.rows(rows)
            assert chosen.labels is not None
            down, right = torch.randint(-shift, shift + 1, (2,), generator=generator).tolist()
            yield torch.roll(chosen.unit(), (down, right), (-2, -1)), chosen.labels


def accuracy(network: TwoConvolutions, images: Images) -> float:
    network.eval()
    assert images.labels is not None
    with torch.no_grad():
        found = torch.cat([network(batch.unit()).argmax(1) for batch in images.batches(1000)])
    return (found == images.labels).double().mean().item()


def save(network: TwoConvolutions, images: Images, classes: tuple[str, ...], folder: Path) -> None:
    channels, size, _ = images.shape
    config = {
        "kind": KIND,
        "channels": channels,
        "size": size,
        "classes": list(classes),
        "mean": network.mean.flatten().tolist(),
        "std": network.std.flatten().tolist(),
        "features": network.head.in_features,
        "width": network.first.out_channels,
        "strides": [network.first.stride[0], network.second.stride[0]],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)


def figures(folder: Path, images: Images, seed: Seed) -> dict[str, dict[str, float]]:
    """Distances of one half of the images, as they are and with noise, from the other half."""
    extractor = open_extractor(str(folder))
    order = torch.randperm(len(images), generator=seed.child("halves").generator())
    data, samples = (images.rows(half).unit() for half in order.chunk(2))
    generator = seed.child("noise").generator()
    noisy = {f"noise of {s:g}": (samples + s * torch.randn(samples.shape, generator=generator)) for s in NOISE}
    rules: dict[str, Rule] = {"fid": Frechet(), "kid": Polynomial()}
    found: dict[str, dict[str, float]] = {}
    kept = {name: rule.keep(features_of(extractor, data)) for name, rule in rules.items()}
    for what, x in {"as they are": samples, **noisy}.items():
        features = features_of(extractor, x.clamp(0, 1))
        found[what] = {name: rule.values(features, kept[name]).mean().item() for name, rule in rules.items()}
    return found


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="digits, or the folder of Fashion-MNIST's idx files")
    parser.add_argument("--out", type=Path, help="folder of the finished network")
    parser.add_argument("--epochs", type=int, help="60 of the digits, 5 of the clothes")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--shift", type=int, default=1, help="pixels; digits fill their frame and stay")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    name = "digits-features" if args.data == "digits" else "fashion-features"
    args.out = args.out or bundled.HERE / name
    args.epochs = args.epochs or (60 if args.data == "digits" else 5)
    args.shift = 0 if args.data == "digits" else args.shift
    return args


def main() -> None:
    """Train, save, measure, write the card."""
    args, start = parse(), time.process_time()
    torch.manual_seed(args.seed)
    seed = Seed(args.seed)
    splits: Splits = Data(args.data).open()
    images = splits.train
    classes = images.classes if args.data == "digits" else FASHION
    x = images.unit()
    strides = (1, 2) if images.shape[1] < 16 else (2, 2)
    network = TwoConvolutions(1, images.shape[1], len(classes), [x.mean().item()], [x.std().item()], strides)
    train(network, images, args.epochs, args.batch, args.lr, args.shift, seed)
    seconds = time.process_time() - start
    correct = {name: accuracy(network, getattr(splits, name)) for name in ("train", "validation", "test")}
    save(network, images, classes, args.out)
    measured = figures(args.out, splits.test, seed)
    counts = {name: len(getattr(splits, name)) for name in correct}
    print(f"  {seconds:.0f} s of processor time, accuracy {correct}, {counts}\n  {measured}", flush=True)
    (args.out / "README.md").write_text(
        card(args.out.name, counts, correct, measured, args.epochs, args.shift, seconds), encoding="utf-8"
    )


if __name__ == "__main__":
    main()

"""genbo doctor: what is installed, whether it works together, and what genbo itself brought along."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """A line: what was looked at, what was seen, and, where it is wrong, what to do."""

    name: str
    seen: str
    remedy: str | None = None


def run() -> int:
    """Print the findings; 1 where something is wrong."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    found = [finding for look in (packages, torchvision, devices, cache, bundled) for finding in safely(look)]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for f in found:
        mark = "[red]wrong[/red]" if f.remedy else "[green]ok[/green]"
        table.add_row(mark, escape(f.name), escape(f.seen + (f"; {f.remedy}" if f.remedy else "")))
    Console(highlight=False).print(table)
    return 1 if any(f.remedy for f in found) else 0


def safely(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A doctor survives what it finds."""
    try:
        yield from look()
    except Exception as error:
        yield Finding(look.__name__, f"{type(error).__name__}: {_first_line(error)}", "this could not be looked at")


def packages() -> Iterator[Finding]:
    """Python, genbo, and everything that genbo needs."""
    yield Finding("python", f"{platform.python_version()} at {sys.executable}")
    yield Finding("genbo", f"{version('genbo')} at {Path(__file__).parents[2]}")
    for line in requires("genbo") or []:
        if "extra ==" in line:
            continue
        name = _name(line)
        try:
            yield Finding(name, version(name), _too_old(line, version(name)))
        except PackageNotFoundError:
            yield Finding(name, "not installed", f"pip install '{line}'")


def _name(requirement: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else " " for c in requirement).split()[0]


def _too_old(requirement: str, installed: str) -> str | None:
    from packaging.requirements import Requirement

    wanted = Requirement(requirement).specifier
    return (
        None if wanted.contains(installed, prereleases=True) else f"genbo needs {wanted}: pip install '{requirement}'"
    )


def torchvision() -> Iterator[Finding]:
    """torch and torchvision are built for each other; a wrong pair breaks open_clip and diffusers too."""
    import torch

    try:
        import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        yield Finding("torch + torchvision", _first_line(error), mismatch(error, torch.__version__))
        return
    yield Finding("torch + torchvision", "they fit each other")


def mismatch(error: BaseException, torch_version: str) -> str:
    """What is wrong with the pair, in a sentence."""
    if "torchvision::nms" in str(error):
        build = "CPU" if "+cpu" in torch_version else "other"
        return (
            f"torchvision was built for another torch than this {build} build ({torch_version}); "
            "install both again from one place: pip install --force-reinstall torch torchvision"
        )
    return "torchvision cannot be imported, and the reward clip needs it: pip install torchvision"


def devices() -> Iterator[Finding]:
    """What a network can run on."""
    import torch

    yield Finding("cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(i)
            yield Finding(f"cuda:{i}", f"{found.name}, {found.total_memory / 1e9:.0f} GB")
        return
    from genbo.cli.job.job import likely_gpu

    remedy = "torch cannot use it: install a CUDA build of torch that fits the driver" if likely_gpu() else None
    yield Finding("cuda", "a GPU is there" if remedy else "no GPU: everything runs on the CPU", remedy)


def cache() -> Iterator[Finding]:
    """Whether the speed of runs can be remembered."""
    from genbo.cli.plan.throughput import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Finding("cache", f"{folder}: {error.strerror}", "make it writable, or set XDG_CACHE_HOME")
        return
    yield Finding("cache", str(folder))


def bundled() -> Iterator[Finding]:
    """The models, reward networks and prompts that ship with genbo."""
    from genbo.diffusion import bundled as models
    from genbo.diffusion.models.diffusers import Diffusers
    from genbo.rewards import bundled as rewards
    from genbo.rewards.aesthetic import Aesthetic
    from genbo.rewards.clip import Clip

    if not models.model_names() or not rewards.names():
        yield Finding("bundled models", "missing", "install genbo again: pip install --force-reinstall genbo")
    for name in models.model_names():
        model = Diffusers(pretrained=name)
        yield _weights(name, model.folder, model.mistakes() or model.damages())
    for name in rewards.names():
        yield _weights(name, rewards.folder(name), Clip(pretrained=name).mistakes())
    for name in rewards.heads():
        yield _weights(name, rewards.folder(name), Aesthetic(name).mistakes())
    for name in models.prompt_lists():
        path = models.prompts_file(name)
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()] if path else []
        yield Finding(name, f"{len(lines)} prompts", None if lines else "the list is empty: install genbo again")


def _weights(name: str, folder: Path | None, mistakes: list[str]) -> Finding:
    files = sorted(folder.rglob("*.safetensors")) if folder else []
    size = sum(file.stat().st_size for file in files)
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    remedy = mistakes[0] if mistakes else _pointer(files)
    return Finding(name, f"{size / 1e6:.1f} MB, sha256 {digest.hexdigest()[:16]}", remedy)


def _pointer(files: list[Path]) -> str | None:
    """A large file that was checked out as its pointer only."""
    small = [file.name for file in files if file.stat().st_size < 1000]
    return f"{small[0]} is not the weights themselves; fetch the large files" if small else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0]

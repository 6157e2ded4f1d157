"""A diffusers pipeline: a bundled model, a local folder, or a hub id.

The folder is untrusted data: its pipeline class must be one that genbo knows, its weights safetensors, its tensors
complete and finite, and no code in it is ever run.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genbo.diffusion import bundled

if TYPE_CHECKING:
    import torch

    from genbo.diffusion.process import Model

PIPELINES = Path(__file__).parent.parent / "pipelines"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
COMPONENT_MODULES = {"diffusers", "transformers"}


@dataclass(frozen=True)
class Diffusers:
    """`revision` and `variant` as in `from_pretrained`; `dtype: auto` is bf16 on a GPU and fp32 on a CPU."""

    pretrained: str = "emoji"
    revision: str | None = None
    variant: str | None = None
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    negative_prompt: str = ""

    @property
    def folder(self) -> Path | None:
        """The local folder that `pretrained` names, or None for a hub id."""
        folder = bundled.model_folder(self.pretrained) or Path(self.pretrained).expanduser()
        return folder if folder.exists() else None

    @property
    def time_range(self) -> tuple[float, float] | None:
        """What the network may be told, noisiest first: its training steps; None where they are not known yet."""
        if self.folder is None:
            return None
        try:
            config = json.loads((self.folder / "scheduler" / "scheduler_config.json").read_text())
            return float(config["num_train_timesteps"]) - 1, 0.0
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def mistakes(self) -> list[str]:
        """What stops this model from being loaded, a sentence each; looks at the folder, loads nothing."""
        if self.folder is None:
            return self._no_folder()
        return folder_mistakes(self.folder, self.variant)

    def _no_folder(self) -> list[str]:
        names = ", ".join(bundled.model_names())
        if not HUB_ID.fullmatch(self.pretrained) or self.pretrained.startswith((".", "/", "~")):
            return [
                f"pretrained: there is no folder {self.pretrained!r}; give a diffusers folder, a hub id (owner/name), "
                f"or a bundled model ({names})"
            ]
        return []

    def open(self) -> Model:
        """Load it. Raises `Refused` with a sentence for whatever is wrong with the folder."""
        from genbo.diffusion.load import load_pipeline

        return load_pipeline(self)

    def torch_device(self) -> torch.device:
        import torch

        if self.device != "auto":
            return torch.device(self.device)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def families() -> dict[str, str]:
    """Pipeline class -> the file in `diffusion/pipelines/` that knows it, which opens with the class's name."""
    found = {}
    for file in sorted(PIPELINES.glob("[!_]*.py")):
        name = file.read_text().split('"""', 2)[1].split(":", 1)[0].strip()
        found[name] = file.stem
    return found


def read_index(folder: Path) -> dict[str, Any]:
    """`model_index.json` as a dict; ValueError where it is not JSON or not one."""
    index = json.loads((folder / "model_index.json").read_text())
    if not isinstance(index, dict):
        raise ValueError("not a mapping")
    return index


def folder_mistakes(folder: Path, variant: str | None = None) -> list[str]:
    """What is wrong with a pipeline's folder, from its file names and JSON alone."""
    if not (folder / "model_index.json").is_file():
        hint = (
            " (it looks like a single component: give the folder above it)" if (folder / "config.json").exists() else ""
        )
        return [f"pretrained: {folder} has no model_index.json, so it is not a diffusers pipeline{hint}"]
    try:
        index = read_index(folder)
    except ValueError as error:
        return [f"pretrained: {folder / 'model_index.json'} cannot be read as JSON: {error}"]
    kind = index.get("_class_name")
    if not isinstance(kind, str) or kind not in families():
        known = ", ".join(sorted(families()))
        return [f"pretrained: {folder.name} is a {kind!r}; genbo knows {known}"]
    found = []
    for name, entry in index.items():
        if not name.startswith("_") and isinstance(entry, list) and entry[0] is not None:
            found += _component_mistakes(folder, name, entry, variant)
    return found


def _component_mistakes(folder: Path, name: str, entry: list[Any], variant: str | None) -> list[str]:
    if not re.fullmatch(r"\w+", name) or len(entry) != 2 or entry[0] not in COMPONENT_MODULES:
        return [
            f"pretrained: component {name!r} comes from {entry[0]!r}; genbo loads components of diffusers and "
            "transformers only, and never runs code from a model's folder"
        ]
    part = folder / name
    if not part.is_dir():
        return [
            f"pretrained: {folder.name} has no {name}/ folder, which its model_index.json names; fetch the model again"
        ]
    if list(part.glob("*.py")):
        return [f"pretrained: {part} holds Python code, which genbo does not run; remove it or take a model without"]
    is_network = (part / "config.json").exists()
    if is_network and not list(part.glob(f"*{variant}*.safetensors" if variant else "*.safetensors")):
        pickles = [p.name for p in (*part.glob("*.bin"), *part.glob("*.pt"), *part.glob("*.ckpt"))]
        if pickles:
            return [
                f"pretrained: {name} has only {pickles[0]}, which could run code when read; save it again with "
                "save_pretrained(..., safe_serialization=True)"
            ]
        what = f"safetensors of variant {variant!r}" if variant else "safetensors"
        return [
            f"pretrained: {part} has no {what}; fetch the weights (a repository's large files may be mere pointers)"
        ]
    return []

"""The device that an option names: auto takes a GPU if there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from genbo.diffusion.refused import Refused

if TYPE_CHECKING:
    import torch


def torch_device(name: str) -> torch.device:
    """`auto`, or torch's own name."""
    import torch

    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def lacking(device: torch.device) -> str | None:
    """None, or in words that this machine has no such GPU."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type != "cuda" or (device.index or 0) < count:
        return None
    if not count:
        return "this machine has no CUDA device that torch can use"
    return f"this machine has no {device}, only cuda:0 to cuda:{count - 1}"


def present(device: torch.device) -> torch.device:
    """The device again; `Refused` where this machine has no such GPU."""
    if said := lacking(device):
        raise Refused(f"device: {said}; set model.device: auto")
    return device

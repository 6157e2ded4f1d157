"""The components of a diffusers pipeline that have weights."""

from __future__ import annotations

from typing import Any

import torch


def encoders(pipeline: object) -> dict[str, torch.nn.Module]:
    """The components that read prompts, by name."""
    return {name: network for name, network in networks(pipeline).items() if name.startswith("text_encoder")}


def networks(pipeline: Any) -> dict[str, torch.nn.Module]:
    """The components that have weights, by name."""
    found = pipeline.components.items()
    return {name: component for name, component in found if isinstance(component, torch.nn.Module)}

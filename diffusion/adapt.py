"""Trainable models: the pretrained network once more, with weights of its own on top of the ones it shares.

    lora    W + B A in every chosen layer, A and B trained, W shared        (Hu et al. 2106.09685)
    full    every weight trained, from a copy in float32

An adapted model is a new value. It is built on a twin of the network, the same modules over the very same tensors, so
any number of them hold the pretrained weights once, and the pretrained model never notices: there is no switch to
forget. What is trained is float32 or better whatever the network computes in, since a step of training is often less
than half precision can add to a weight.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.func import functional_call

from genbo.diffusion.process import Model
from genbo.diffusion.refused import Refused
from genbo.diffusion.seed import Seed

if TYPE_CHECKING:
    from torch.nn import Module

LAYERS = {"attention": r".*\.(to_q|to_k|to_v|to_out\.0)", "all": r".*"}  # of those that are linear or convolutions

How = Literal["lora", "full"]
Layers = Literal["attention", "all"]


@dataclass(frozen=True)
class Adapter:
    """How a network is made trainable. `rank` and `layers` are LoRA's: its width, and where it stands."""

    how: How = "lora"
    rank: int = 16
    layers: Layers = "attention"


@runtime_checkable
class Trainable(Model, Protocol):
    """A model with weights of its own, which `__call__` is differentiable in."""

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The leaves to train, by name."""


@runtime_checkable
class Adaptable(Model, Protocol):
    """A model that can be adapted; one that is adapted gives a new one from the same pretrained weights."""

    def adapted(self, adapter: Adapter, seed: Seed) -> Trainable:
        """A trainable model that says what this one says, until it is trained."""


def adapt(model: Model, adapter: Adapter, seed: Seed) -> Trainable:
    """A new trainable model on the frozen weights of this one; its outputs are the same at first.

    ValueError, with a sentence, where the model has nothing that could be trained so.
    """
    if not isinstance(model, Adaptable):
        raise ValueError("this model cannot be fine-tuned: it has no weights that genbo knows how to train")
    return model.adapted(adapter, seed)


def tensors(model: Trainable) -> dict[str, Tensor]:
    """The trained weights by name, to be kept: copies on the CPU."""
    return {name: weight.detach().cpu().clone() for name, weight in model.weights.items()}


def restore(model: Trainable, kept: Mapping[str, Tensor]) -> None:
    """Put kept weights back into a model adapted in the same way. Raises `Refused` where they are another's."""
    own = model.weights
    wrong = set(own) ^ set(kept) or {name for name in own if own[name].shape != kept[name].shape}
    if wrong:
        raise Refused(f"the kept weights are those of another adapter: {sorted(wrong)[0]} does not fit")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(kept[name])


def leaves(numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies to train, in float32 at least."""
    precise = {n: t.detach().to(torch.promote_types(t.dtype, torch.float32), copy=True) for n, t in numbers.items()}
    return {name: value.requires_grad_() for name, value in precise.items()}


# -- networks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdaptedNetwork:
    """A network with weights of its own; called as the network itself is."""

    module: Module
    weights: Mapping[str, Tensor]
    adapter: Adapter

    def __call__(self, *args: object, **kwargs: object) -> object:
        if self.adapter.how == "lora":
            return self.module(*args, **kwargs)
        computed_in = {name: p.dtype for name, p in self.module.named_parameters()}
        cast = {name: weight.to(computed_in[name]) for name, weight in self.weights.items()}
        return functional_call(self.module, cast, args, kwargs)

    def merged(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that differ from the stored ones, under the network's own names, in float32."""
        if self.adapter.how == "full":
            return tensors_of(self.weights)
        found = {}
        for name, layer in _lora_layers(self.module).items():
            delta = layer.get_delta_weight("default").detach().float().cpu()
            found[f"{name}.weight"] = stored[f"{name}.weight"].float() + delta.reshape(stored[f"{name}.weight"].shape)
        return found

    def lora(self) -> dict[str, Tensor] | None:
        """A and B by peft's names, in which diffusers saves and loads them; None where all weights were trained."""
        if self.adapter.how == "full":
            return None
        from peft import get_peft_model_state_dict

        return tensors_of(get_peft_model_state_dict(self.module))


def tensors_of(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in named.items()}


def network_with(module: Module, adapter: Adapter, seed: Seed) -> AdaptedNetwork:
    """The network once more, ready to be trained; `module` itself is left as it is."""
    again = twin(module)
    if adapter.how == "full":
        return AdaptedNetwork(again, leaves(dict(again.named_parameters())), adapter)
    _add_lora(again, adapter, seed)
    weights = {name: p for name, p in again.named_parameters() if p.requires_grad}
    return AdaptedNetwork(again, weights, adapter)


def twin(module: Module) -> Module:
    """The same modules over the very same tensors."""
    shared = {id(t): t for t in (*module.parameters(), *module.buffers())}
    again: Module = copy.deepcopy(module, dict(shared))
    return again.requires_grad_(False)


def _add_lora(module: Module, adapter: Adapter, seed: Seed) -> None:
    """peft's layers in place of the chosen ones, B = 0, and A from the seed: uniform within 1 / sqrt(inputs)."""
    from peft import LoraConfig, inject_adapter_in_model

    chosen = [name for name, layer in module.named_modules() if _takes_lora(layer) and _is_chosen(name, adapter)]
    if not chosen:
        raise ValueError(f"this network has no {adapter.layers} layers for LoRA; use adapter: full")
    config = LoraConfig(r=adapter.rank, lora_alpha=adapter.rank, target_modules=chosen)
    inject_adapter_in_model(config, module, "default")
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
                if ".lora_A." in name:
                    bound = 1 / math.sqrt(weight[0].numel())
                    generator = seed.child(name).generator()
                    weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))


def _takes_lora(layer: Module) -> bool:
    return isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)


def _is_chosen(name: str, adapter: Adapter) -> bool:
    return re.fullmatch(LAYERS[adapter.layers], name) is not None


def _lora_layers(module: Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in module.named_modules() if isinstance(layer, LoraLayer)}

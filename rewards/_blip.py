"""BLIP as a reader: a text read word by word while looking at an image; the names of tensors are BLIP's own.

    image  -> a vision transformer, which norms before each step        (timm's, with 16 x 16 patches)
    text   -> BERT, which norms after each step, and between words and thoughts looks at the image

    attention(q, k, v) = softmax(q k^T / sqrt(64)) v,      every head is of 64 numbers

Plain functions of tensors by name, so that a published file is read as it stands. After Li et al. 2201.12086.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

HEAD = 64
SEEN_EPS, READ_EPS = 1e-6, 1e-12  # of the two towers' norms

Weights = Mapping[str, Tensor]


def see(weights: Weights, images: Tensor, prefix: str, blocks: int) -> Tensor:
    """Prepared images (B, 3, S, S) -> (B, 1 + patches, W): what the reader looks at."""
    patch, bias = weights[f"{prefix}patch_embed.proj.weight"], weights[f"{prefix}patch_embed.proj.bias"]
    x = F.conv2d(images, patch, bias, stride=patch.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([weights[f"{prefix}cls_token"].expand(len(x), -1, -1), x], dim=1) + weights[f"{prefix}pos_embed"]
    for n in range(blocks):
        name = f"{prefix}blocks.{n}."
        q, k, v = _linear(weights, f"{name}attn.qkv", _norm(weights, f"{name}norm1", x, SEEN_EPS)).chunk(3, dim=-1)
        x = x + _linear(weights, f"{name}attn.proj", _attention(q, k, v))
        thought = F.gelu(_linear(weights, f"{name}mlp.fc1", _norm(weights, f"{name}norm2", x, SEEN_EPS)))
        x = x + _linear(weights, f"{name}mlp.fc2", thought)
    return _norm(weights, f"{prefix}norm", x, SEEN_EPS)


def read(weights: Weights, words: Tensor, there: Tensor, seen: Tensor, prefix: str, layers: int) -> Tensor:
    """Words (B, T), which of them are there (B, T), and an image seen (B, P, W) -> (B, T, D)."""
    places = weights[f"{prefix}embeddings.position_embeddings.weight"][: words.shape[1]]
    x = F.embedding(words, weights[f"{prefix}embeddings.word_embeddings.weight"]) + places
    x = _norm(weights, f"{prefix}embeddings.LayerNorm", x, READ_EPS)
    mask = there.bool()[:, None, None, :]
    for n in range(layers):
        name = f"{prefix}encoder.layer.{n}."
        x = _look(weights, f"{name}attention.", x, x, mask)
        x = _look(weights, f"{name}crossattention.", x, seen, None)
        thought = F.gelu(_linear(weights, f"{name}intermediate.dense", x))
        x = _norm(weights, f"{name}output.LayerNorm", x + _linear(weights, f"{name}output.dense", thought), READ_EPS)
    return x


def _look(weights: Weights, name: str, x: Tensor, at: Tensor, mask: Tensor | None) -> Tensor:
    """x (B, T, D) after looking at (B, P, W), with what was there before and a norm after."""
    q = _linear(weights, f"{name}self.query", x)
    k, v = (_linear(weights, f"{name}self.{part}", at) for part in ("key", "value"))
    found = _linear(weights, f"{name}output.dense", _attention(q, k, v, mask))
    return _norm(weights, f"{name}output.LayerNorm", x + found, READ_EPS)


def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = (part.unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    weight = weights[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, weights[f"{name}.bias"], eps)

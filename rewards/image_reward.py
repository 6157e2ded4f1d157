"""ImageReward: predicts human ratings of an image for its prompt, with a BLIP that reads both.

    r(x, c) = (h(BLIP(c | prepare(x))_0) - m) / s,      m = 0.1672, s = 1.0333

with h five linear layers on what stands at the first word, and m, s such that its training data have mean 0 and spread
1. `prepare` is ImageReward's own: the shortest side to 224 pixels, then the middle.

Values: any number, in practice -2.3 to 2. The weights are the user's own: genbo fetches none. ImageReward v1.0 (Xu et
al. 2304.05977) is under Apache-2.0, and published as a pickled file. To convert it, once and where you trust it:

    import torch, safetensors.torch
    state = torch.load("ImageReward.pt", weights_only=True)
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, "ImageReward.safetensors")

The names of its tensors and its steps are those of its published code. The package `image-reward` does not import
beside a transformers of today, so genbo's network is held in its tests against timm's vision transformer and
transformers' BLIP instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from genbo.rewards import Refused
from genbo.rewards._prepare import prepare
from genbo.rewards._tokens import TokenReader, reader
from genbo.rewards._tower import FAMILIES
from genbo.rewards._weights import PICKLED, Shape, differences, read, shapes, without_counts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHTS, VOCABULARY = "ImageReward.safetensors", "vocab.txt"
IMAGE, TEXT, HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
UNREAD = ("blip.vision_proj.", "blip.text_proj.")  # BLIP's own ends, which ImageReward has and does not read
WORDS = 35  # to which every prompt is cut or filled up
MEAN, SPREAD = 0.16717362830052426, 1.0333394966054072
PLACES, WIDTHS = (0, 2, 4, 6, 7), (1024, 128, 64, 16, 1)  # of the head's layers among its dropouts
DEPTHS = {1024: 24, 768: 12}  # of towers of a published width
CONVERT = (
    "convert it: safetensors.torch.save_file({k: v.contiguous() for k, v in "
    'torch.load("%s", weights_only=True).items()}, "ImageReward.safetensors")'
)
ADDED = 2  # tokens of BLIP's after the vocabulary, which ImageReward does not read


@dataclass(frozen=True)
class ImageReward:
    """`pretrained` is a folder with ImageReward.safetensors and bert-base-uncased's vocab.txt."""

    pretrained: str
    differentiable: ClassVar[bool] = True
    reads_prompts: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with `pretrained`, a sentence each; reads the file's header alone."""
        if not self.pretrained:
            return [f"pretrained: it is empty; give a folder with {WEIGHTS} and {VOCABULARY}"]
        if wrong := self._file_mistake():
            return [wrong]
        found = []
        if not self.vocabulary.is_file():
            found.append(f"pretrained: {self.vocabulary} is missing; put the {VOCABULARY} of bert-base-uncased there")
        try:
            held = held_in(self.weights_file)
            return found + differences(self.weights_file, held, wanted(held), "ImageReward")
        except Refused as error:
            return [*found, str(error)]

    def open(self, device: str | torch.device = "cpu") -> _TextAndImage:
        """Load the weights. Raises `Refused` with a sentence for whatever is wrong with them."""
        if wrong := self.mistakes():
            raise Refused("; ".join(wrong))
        return _TextAndImage(self.weights_file, self.vocabulary, device)

    def readers(self) -> list[TokenReader]:
        """Of its text tower."""
        return [reader("image_reward", WORDS, self.folder)]

    @property
    def folder(self) -> Path:
        """Where weights and vocabulary lie."""
        return Path(self.pretrained).expanduser()

    @property
    def weights_file(self) -> Path:
        return self.folder / WEIGHTS

    @property
    def vocabulary(self) -> Path:
        return self.folder / VOCABULARY

    def _file_mistake(self) -> str | None:
        if self.folder.suffix in PICKLED:
            return f"pretrained: {self.folder} is a pickled file, which can run code; {CONVERT % self.folder.name}"
        if not self.folder.is_dir():
            return f"pretrained: there is no folder {self.folder}; give one with {WEIGHTS} and {VOCABULARY}"
        if self.weights_file.is_file():
            return None
        pickled = sorted(path.name for path in self.folder.iterdir() if path.suffix in PICKLED)
        remedy = CONVERT % pickled[0] if pickled else "put the weights there"
        return f"pretrained: there is no file {self.weights_file}; {remedy}"


class _TextAndImage:
    """The opened reward, in float32."""

    differentiable: bool = True

    def __init__(self, file: Path, vocabulary: Path, device: str | torch.device) -> None:
        held = held_in(file)
        self.folder, self.device = file.parent, device
        self.weights = {name: tensor.to(device) for name, tensor in read(file, wanted(held)).items()}
        (known, depth), width = held[f"{TEXT}embeddings.word_embeddings.weight"], held[f"{IMAGE}pos_embed"][2]
        self.blocks, self.layers = (
            _layers(held, f"{IMAGE}blocks.", width),
            _layers(held, f"{TEXT}encoder.layer.", depth),
        )
        self.size = _size(held)
        self.tokenize = _tokenizer(vocabulary, known)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        from torch.nn.functional import linear

        from genbo.rewards import _blip

        seen = _blip.see(self.weights, self.prepare(images), IMAGE, self.blocks)
        x = _blip.read(self.weights, *self.words(prompts), seen, TEXT, self.layers)[:, 0]
        for place in PLACES:
            x = linear(x, self.weights[f"{HEAD}{place}.weight"], self.weights[f"{HEAD}{place}.bias"])
        return (x[:, 0] - MEAN) / SPREAD

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, S, S)."""
        usual = FAMILIES["openai"]
        return prepare(images.to(self.device).float(), size=self.size, mean=usual["mean"], std=usual["std"])

    def words(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Numbers of words (B, 35), and which of them are there."""
        import torch

        found = self.tokenize.encode_batch(list(prompts))
        words, there = ([getattr(one, part) for one in found] for part in ("ids", "attention_mask"))
        return torch.tensor(words, device=self.device), torch.tensor(there, device=self.device)


def _tokenizer(vocabulary: Path, known: int) -> Any:
    """BERT's, without capitals; a line of its vocabulary a word."""
    from tokenizers import BertWordPieceTokenizer

    try:
        tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
        padding = tokenizer.token_to_id("[PAD]")
        if padding is None or not known - ADDED <= tokenizer.get_vocab_size() <= known:
            raise ValueError(f"{tokenizer.get_vocab_size()} words, for a network that knows {known}")
    except Exception as error:  # its own exception types
        said = f"pretrained: {vocabulary} is not the vocabulary of this network ({error})"
        raise Refused(f"{said}; put the {VOCABULARY} of bert-base-uncased there") from error
    tokenizer.enable_truncation(WORDS)
    tokenizer.enable_padding(pad_id=padding, length=WORDS)
    return tokenizer


# -- what the file must hold -------------------------------------------------------------------------------------------


def held_in(file: Path) -> dict[str, Shape]:
    """The shapes in a file, without what is never read."""
    return {k: shape for k, shape in without_counts(shapes(file)).items() if not k.startswith(UNREAD)}


def wanted(held: Mapping[str, Shape]) -> dict[str, Shape]:
    """Every tensor of ImageReward at the width, patches and vocabulary of the file; of published widths all layers."""
    patch = held.get(f"{IMAGE}patch_embed.proj.weight", (1024, 3, 16, 16))
    places = held.get(f"{IMAGE}pos_embed", (1, 197, 1024))
    words = held.get(f"{TEXT}embeddings.word_embeddings.weight", (30524, 768))
    texts = held.get(f"{TEXT}embeddings.position_embeddings.weight", (512, 768))
    if (len(patch), len(places), len(words), len(texts)) != (4, 3, 2, 2) or patch[0] % 64 or words[1] % 64:
        raise Refused("pretrained: the embeddings in this file are not shaped as ImageReward's; give another file")
    width, depth = patch[0], words[1]
    found: dict[str, Shape] = {
        f"{IMAGE}cls_token": (1, 1, width),
        f"{IMAGE}pos_embed": (1, places[1], width),
        f"{IMAGE}patch_embed.proj.weight": (width, 3, *patch[2:]),
        f"{IMAGE}patch_embed.proj.bias": (width,),
        **_norm(f"{IMAGE}norm", width),
        f"{TEXT}embeddings.word_embeddings.weight": words,
        f"{TEXT}embeddings.position_embeddings.weight": (texts[0], depth),
        **_norm(f"{TEXT}embeddings.LayerNorm", depth),
    }
    for n in range(_layers(held, f"{IMAGE}blocks.", width)):
        found |= _block(f"{IMAGE}blocks.{n}.", width, held)
    for n in range(_layers(held, f"{TEXT}encoder.layer.", depth)):
        found |= _layer(f"{TEXT}encoder.layer.{n}.", depth, width, held)
    for place, before, after in zip(PLACES, (depth, *WIDTHS), WIDTHS, strict=False):
        found |= _linear(f"{HEAD}{place}", before, after)
    return found


def _layers(held: Mapping[str, Shape], prefix: str, width: int) -> int:
    """How many layers a tower has: as its width was published, or as many as the file speaks of."""
    pattern = re.compile(re.escape(prefix) + r"(\d{1,3})\.")
    found = [int(match[1]) for name in held if (match := pattern.match(name))]
    return max(DEPTHS.get(width, 0), 1 + max(found, default=0))


def _size(held: Mapping[str, Shape]) -> int:
    """The side of the image, in pixels, that the places of the patches were learned for."""
    patches, patch = held[f"{IMAGE}pos_embed"][1] - 1, held[f"{IMAGE}patch_embed.proj.weight"][-1]
    return round(math.sqrt(patches)) * patch


def _block(name: str, width: int, held: Mapping[str, Shape]) -> dict[str, Shape]:
    wide = held.get(f"{name}mlp.fc1.bias", (4 * width,))[0]
    found = {**_norm(f"{name}norm1", width), **_norm(f"{name}norm2", width)}
    found |= {**_linear(f"{name}attn.qkv", width, 3 * width), **_linear(f"{name}attn.proj", width, width)}
    return found | _linear(f"{name}mlp.fc1", width, wide) | _linear(f"{name}mlp.fc2", wide, width)


def _layer(name: str, depth: int, width: int, held: Mapping[str, Shape]) -> dict[str, Shape]:
    wide = held.get(f"{name}intermediate.dense.bias", (4 * depth,))[0]
    found: dict[str, Shape] = {}
    for kind, sees in (("attention.", depth), ("crossattention.", width)):
        found |= _linear(f"{name}{kind}self.query", depth, depth)
        found |= _linear(f"{name}{kind}self.key", sees, depth) | _linear(f"{name}{kind}self.value", sees, depth)
        found |= _linear(f"{name}{kind}output.dense", depth, depth) | _norm(f"{name}{kind}output.LayerNorm", depth)
    found |= _linear(f"{name}intermediate.dense", depth, wide) | _linear(f"{name}output.dense", wide, depth)
    return found | _norm(f"{name}output.LayerNorm", depth)


def _linear(name: str, before: int, after: int) -> dict[str, Shape]:
    return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}


def _norm(name: str, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

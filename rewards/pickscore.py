"""PickScore: predicts which image people prefer for a prompt, with a CLIP trained on their choices.

    r(x, c) = s <f(prepare(x)), g(c)> / (|f| |g|),      s = exp(logit_scale), about 100

Values: [-100, 100], in practice 15 to 26; a difference d between two images says that people pick the better one with
probability 1 / (1 + e^-d). The weights are the user's own: genbo fetches none. Those of PickScore v1 (Kirstain et al.
2305.01569) are on the hub as yuvalkirstain/PickScore_v1, whose page has to be asked for their licence; the CLIP-H that
they began from (LAION's) is under MIT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from genbo.rewards import Refused
from genbo.rewards._extractors import read_config
from genbo.rewards._prepare import prepare
from genbo.rewards._tokens import CLIP, TokenReader, reader
from genbo.rewards._tower import FAMILIES
from genbo.rewards._weights import PICKLED, filled
from genbo.rewards._words import knows_words

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONFIG, WEIGHTS, PREPARATION = "config.json", "model.safetensors", "preprocessor_config.json"
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # whose tokenizer and preprocessing it was trained with

# What of a config makes the network; a file of an older transformers says much else.
EACH = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps")
TEXT = (*EACH, "vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
VISION = (*EACH, "image_size", "patch_size", "num_channels")
BICUBIC, BILINEAR = 3, 2  # Pillow's numbers


@dataclass(frozen=True)
class Pickscore:
    """`pretrained` is a folder as transformers saves a CLIPModel: config.json, model.safetensors and the tokenizer.

    Where the folder has preprocessor_config.json, images are prepared as it says, else as CLIP's always are.
    """

    pretrained: str
    differentiable: ClassVar[bool] = True
    reads_prompts: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with the folder, a sentence each; reads configs and loads nothing."""
        if not self.pretrained:
            return ["pretrained: it is empty; give a folder with config.json, model.safetensors and the tokenizer"]
        if not self.folder.is_dir():
            return [f"pretrained: there is no folder {self.folder}; give one as transformers saves a CLIPModel"]
        return [*self._config_mistakes(), *self._weights_mistakes(), *self._tokenizer_mistakes()]

    def open(self, device: str | torch.device = "cpu") -> _Picks:
        """Load the weights. Raises `Refused` with a sentence for whatever is wrong with them."""
        if wrong := self.mistakes():
            raise Refused("; ".join(wrong))
        return _Picks(self.folder, device)

    def readers(self) -> list[TokenReader]:
        """Of its text tower."""
        text = read_config(self.folder / CONFIG).get("text_config")
        limit = text.get("max_position_embeddings", CLIP) if isinstance(text, dict) else None
        return [reader("pickscore", limit, self.folder)] if isinstance(limit, int) else []

    @property
    def folder(self) -> Path:
        """Where the weights lie."""
        return Path(self.pretrained).expanduser()

    def _config_mistakes(self) -> list[str]:
        try:
            config = read_config(self.folder / CONFIG)
        except (OSError, ValueError) as error:
            return [f"pretrained: {self.folder / CONFIG} cannot be read ({error}); put the model's own there"]
        parts = [config.get(f"{name}_config") for name in ("text", "vision")]
        if config.get("model_type", "clip") != "clip" or not all(isinstance(part, dict) for part in parts):
            return [
                f"pretrained: {self.folder / CONFIG} is of no CLIPModel; give a folder of PickScore or another CLIP"
            ]
        return []

    def _weights_mistakes(self) -> list[str]:
        if (self.folder / WEIGHTS).is_file():
            return []
        pickled = sorted(path.name for path in self.folder.iterdir() if path.suffix in PICKLED)
        put = f"convert {pickled[0]}, which is pickled and can run code" if pickled else "put the weights there"
        return [f"pretrained: {self.folder / WEIGHTS} is missing; {put}"]

    def _tokenizer_mistakes(self) -> list[str]:
        whole = [("tokenizer.json",), ("vocab.json", "merges.txt")]
        if any(all((self.folder / name).is_file() for name in names) for names in whole):
            return []
        return [f"pretrained: {self.folder} has no tokenizer; put tokenizer.json of {TOKENIZER} there"]


class _Picks:
    """The opened reward, in float32. The text tower sees each prompt once."""

    differentiable: bool = True

    def __init__(self, folder: Path, device: str | torch.device) -> None:
        self.folder, self.device = folder, device
        self.network: Any = _network(folder).to(device)
        text = self.network.config.text_config
        self.tokenize, self.longest = _tokenizer(folder, text.vocab_size), text.max_position_embeddings
        self.preparation = _preparation(folder, self.network.config.vision_config.image_size)
        self.scale = self.network.logit_scale.exp()
        self.known: dict[str, Tensor] = {}

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        score: Tensor = self.scale * (self.embed(images) * self.text(prompts)).sum(-1)
        return score

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> what the image tower takes."""
        return prepare(images.to(self.device).float(), **self.preparation)

    def embed(self, images: Tensor) -> Tensor:
        """(B, D), of length 1."""
        from torch.nn.functional import normalize

        seen = self.network.vision_model(pixel_values=self.prepare(images)).pooler_output
        return normalize(self.network.visual_projection(seen), dim=-1)

    def text(self, prompts: Sequence[str]) -> Tensor:
        """(B, D), of length 1."""
        import torch

        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if new:
            given = {"padding": True, "truncation": True, "max_length": self.longest, "return_tensors": "pt"}
            with torch.no_grad():
                read = self.network.text_model(**self.tokenize(new, **given).to(self.device)).pooler_output
                found = torch.nn.functional.normalize(self.network.text_projection(read), dim=-1)
            self.known.update(zip(new, found, strict=True))
        return torch.stack([self.known[prompt] for prompt in prompts])


def _tokenizer(folder: Path, known: int) -> Any:
    """CLIP's, from the folder alone."""
    from transformers import CLIPTokenizer

    remedy = f"put tokenizer.json of {TOKENIZER} there"
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        if not knows_words(tokenizer):
            raise ValueError("it knows no word")
    except Exception as error:  # transformers raises whatever the file leads it to
        reason = " ".join(str(error).split())[:200]
        raise Refused(f"pretrained: the tokenizer in {folder} cannot be read ({reason}); {remedy}") from error
    if len(tokenizer) > known:
        raise Refused(
            f"pretrained: the tokenizer in {folder} has {len(tokenizer)} tokens, but the network {known}; {remedy}"
        )
    return tokenizer


def _network(folder: Path) -> Any:
    """transformers' CLIPModel with the weights of the folder, on the CPU."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    said = read_config(folder / CONFIG)
    parts = {"text": TEXT, "vision": VISION}
    try:
        given = {f"{k}_config": {n: v for n, v in said[f"{k}_config"].items() if n in parts[k]} for k in parts}
        with torch.device("meta"):
            network = CLIPModel(CLIPConfig(**given, projection_dim=said.get("projection_dim", 512)))
    except Exception as error:  # transformers raises whatever an impossible number leads it to
        reason = " ".join(str(error).split())[:200]
        raise Refused(
            f"pretrained: {folder / CONFIG} makes no CLIPModel ({reason}); put the model's own there"
        ) from error
    network = filled(network, folder / WEIGHTS, "this CLIPModel")
    for module in network.modules():  # the places of words and patches are counted, and no weights
        if "position_ids" in dict(module.named_buffers(recurse=False)):
            module.position_ids = torch.arange(module.position_embedding.num_embeddings)[None]
    return network


def _preparation(folder: Path, size: int) -> dict[str, Any]:
    """transformers' CLIPImageProcessor, as `prepare` is told: the shortest side, then the middle."""
    usual = FAMILIES["openai"]
    file = folder / PREPARATION
    try:
        said = read_config(file) if file.is_file() else {}
        shortest, crop = (_side(said.get(name, size)) for name in ("size", "crop_size"))
        numbers = {k: tuple(map(float, said.get(f"image_{k}", usual[k]))) for k in ("mean", "std")}
        kernels = {BICUBIC: "bicubic", BILINEAR: "bilinear"}
        kernel = kernels[said.get("resample", BICUBIC)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        said_of = f"pretrained: {file} cannot be understood ({type(error).__name__}: {error})"
        raise Refused(f"{said_of}; put the one of {TOKENIZER} there, or delete it for CLIP's usual way") from error
    if shortest != crop or crop != size:
        raise Refused(
            f"pretrained: {file} makes images of {shortest} and {crop} pixels, but the network takes {size}; "
            f"put the one of {TOKENIZER} there"
        )
    return {"size": size, "interpolation": kernel, "resize_mode": "shortest", "whole": int, **numbers}


def _side(said: Any) -> int:
    """A size as preprocessors write it: a number, {shortest_edge: n} or {height: n, width: n}."""
    sides = set(said.values()) if isinstance(said, dict) else {said}
    (side,) = sides
    return int(side)

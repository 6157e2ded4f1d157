"""A CLIP, as a job names it: found, checked without the import of torch, and loaded by open_clip.

Weights are the user's own, a bundled name, or fetched by open_clip. Missing weights are an error, never drawn at
random. Pickled files are refused; what a tag or the hub gives, open_clip fetches as safetensors where it can, and else
reads by torch's restricted unpickler, which runs no code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from genbo.rewards import Refused, bundled
from genbo.rewards._json import not_finite
from genbo.rewards._prepare import prepare
from genbo.rewards._tokens import CLIP, TokenReader, reader, reader_of_open_clip
from genbo.rewards._weights import PICKLED, shapes, spoken
from genbo.rewards._words import knows_words

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"

TOKENIZER = "tokenizer_config.json"
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json")
TOKENIZER_OPTIONS = ("clean", "strip_sep_token", "language", "reduction_mask", "additional_special_tokens")

ANOTHER = "set clip to the one that the head was trained on"

Family = Literal["openai", "siglip", "mobileclip"]

# How the families of published models prepare an image; a bare weights file does not say which it is of.
FAMILIES: dict[str, dict[str, Any]] = {
    "openai": {
        "mean": (0.48145466, 0.4578275, 0.40821073),
        "std": (0.26862954, 0.26130258, 0.27577711),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
    "siglip": {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "squash"},
    "mobileclip": {"mean": (0,) * 3, "std": (1,) * 3, "interpolation": "bilinear", "resize_mode": "shortest"},
}


@dataclass(frozen=True)
class Tower:
    """Which CLIP; `option` is what a job calls `pretrained`, for the sentences that speak of it.

    `pretrained` is a bundled name, a folder (with open_clip's `local-dir:` in front, or without), `hf-hub:org/repo`, or
    beside `model` a tag of open_clip's or a safetensors file, which also wants `preprocess`.
    """

    pretrained: str
    model: str = ""
    preprocess: Family | None = None
    option: str = "pretrained"

    def mistakes(self) -> list[str]:
        """What is wrong, a sentence each; looks at files and loads none."""
        if self.model:
            return self._name_mistakes() + self._weights_mistakes()
        found = ["preprocess: a folder's own config says it, so leave it out"] if self.preprocess else []
        if not self.pretrained:
            found.append(f"{self.option}: it is empty; give a bundled name, a folder, or a tag beside model")
        elif not self._on_hub:
            found += self._folder_mistakes()
        return found

    def load(self) -> torch.nn.Module:
        """The network, on the CPU in float32 and evaluation mode, without gradients of its own.

        Raises `Refused` with a sentence for whatever is wrong with its weights.
        """
        import open_clip

        tag = self.pretrained if self.model else None
        if tag and (wrong := self._tag_mistake(tag)):
            raise Refused(wrong)
        try:
            network: torch.nn.Module = open_clip.create_model(
                self.identifier,
                pretrained=tag,
                force_preprocess_cfg=FAMILIES[self.preprocess] if self.preprocess else None,
                require_pretrained=True,  # open_clip's default is random weights and a line in the log
            )
        except Exception as error:
            said = f"{self.option}: {self.pretrained} could not be loaded ({_reason(error)}); fetch or export it again"
            raise Refused(said) from error
        if wrong := self._places_mistake(network):
            raise Refused(wrong)
        for name, tensor in network.state_dict().items():
            if not tensor.isfinite().all():
                said = f"{self.option}: {name} of {self.pretrained} holds a NaN or an infinity"
                raise Refused(f"{said}; fetch or export it again")
        return network.eval().requires_grad_(False)

    def _places_mistake(self, network: torch.nn.Module) -> str | None:
        """Embeddings of places, which open_clip stretches to another size without a word."""
        file = Path(self.pretrained) if self.model else self.folder / WEIGHTS
        if self._on_hub or file.suffix != ".safetensors" or not file.is_file():
            return None
        own = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        for name, shape in shapes(file).items():
            if name.endswith(("positional_embedding", "pos_embed")) and own.get(name, shape) != shape:
                sizes = f"{spoken(shape)} in {file}, but {spoken(own[name])} by its config"
                return f"{self.option}: {name} is {sizes}; give the config of these weights"
        return None

    def tokenizer_mistakes(self) -> list[str]:
        """What is wrong with the tokenizer, for those who read prompts; looks at files and loads none."""
        if self._on_hub or (self.model and not Path(self.pretrained).is_file()):
            return []  # open_clip fetches it with the weights
        text = self._config.get("text_cfg") or {}
        given, named = text.get("tokenizer_kwargs") or {}, text.get("hf_tokenizer_name")
        if self.model:
            remedy = f"put both into a folder with {CONFIG}, and name that without model"
            said = f"{self.option}: the tokenizer of {self.model} lies on the hub ({named}), beside no weights file"
            return [f"{said}; {remedy}"] if named else []
        if other := [key for key in given if key not in TOKENIZER_OPTIONS]:
            said = f"{self.option}: {self.folder / CONFIG} hands {other[0]} to the tokenizer"
            return [f"{said}, which could run code by it; delete it"]
        return self._tokenizer_file_mistakes(named) if named else []

    def readers(self, name: str, template: str = "{}") -> list[TokenReader]:
        """Of its text tower, where its config is here and the limit known."""
        text = self._config.get("text_cfg")
        if self._on_hub or not isinstance(text, dict) or not isinstance(limit := text.get("context_length", CLIP), int):
            return []
        if text.get("hf_tokenizer_name"):
            return [] if self.model else [reader(name, limit, self.folder, template)]
        return [reader_of_open_clip(name, limit, template)]

    def tokenizer(self) -> Any:
        """Texts -> numbers of words. Raises `Refused` with a sentence where it cannot be loaded."""
        import open_clip

        remedy = "put its files into the folder of the weights"
        try:
            found = open_clip.get_tokenizer(self.identifier)
            theirs = getattr(found, "tokenizer", None)  # of transformers
            known = theirs is None or knows_words(theirs)
        except Exception as error:
            said = f"{self.option}: the tokenizer of {self.pretrained} could not be loaded ({_reason(error)})"
            raise Refused(f"{said}; {remedy}") from error
        if not known:
            raise Refused(f"{self.option}: the tokenizer of {self.pretrained} knows no word; {remedy}")
        return found

    @property
    def folder(self) -> Path:
        """Where the weights lie, when `pretrained` is a bundled name or a folder."""
        written = self.pretrained.removeprefix("local-dir:")
        return bundled.folder(written) or Path(written).expanduser()

    @property
    def identifier(self) -> str:
        """What open_clip calls the model."""
        return self.model or (self.pretrained if self._on_hub else f"local-dir:{self.folder}")

    @property
    def width(self) -> int | None:
        """How many numbers its embedding has; None where only loading it can tell."""
        found: int | None = self._config.get("embed_dim")
        return found

    @property
    def _config(self) -> dict[str, Any]:
        """open_clip's `model_cfg`, where it lies on this machine."""
        if self.model:
            files = [path for path in _architectures() if path.stem == self.model.replace("/", "-")]
        else:
            files = [] if self._on_hub else [self.folder / CONFIG]
        for path in files:
            config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return dict(config.get("model_cfg", config))
        return {}

    @property
    def _on_hub(self) -> bool:
        return self.pretrained.startswith("hf-hub:")

    def _name_mistakes(self) -> list[str]:
        """An architecture that open_clip does not have; found by its file, without the import."""
        names = [path.stem for path in _architectures()]
        if not names or self.model.replace("/", "-") in names:
            return []
        near = get_close_matches(self.model, names, n=1, cutoff=0.4)
        return [f"model: open_clip has no architecture {self.model!r}{_did_you_mean(near)}"]

    def _weights_mistakes(self) -> list[str]:
        """Of `pretrained` beside `model`: a tag, which open_clip knows, or a file."""
        path, option = Path(self.pretrained), self.option
        if not self.pretrained:
            return [f"{option}: give the weights for {self.model}, a tag or a safetensors file"]
        if path.suffix in PICKLED:
            return [f"{option}: {path} is a pickled file, which can run code; convert it to safetensors"]
        if path.suffix == ".safetensors" and not path.is_file():
            return [f"{option}: there is no file {path}; correct the path, or give a tag of open_clip's"]
        if path.is_dir():
            return [f"model: {path} is a folder, whose config names the architecture; leave model out"]
        if path.is_file() and not self.preprocess:
            families = ", ".join(FAMILIES)
            return [f"preprocess: a weights file does not say how it wants its images; give one of {families}"]
        if path.is_file() and path.suffix != ".safetensors":
            return [f"{option}: {path} is no safetensors file; convert it, or save it again as one"]
        if self.preprocess and not path.is_file():
            return [f"preprocess: open_clip knows how the tag {self.pretrained!r} wants its images; leave it out"]
        return []

    def _folder_mistakes(self) -> list[str]:
        folder, option = self.folder, self.option
        clips = ", ".join(bundled.names())
        if self.pretrained in bundled.heads():
            return [f"{option}: {self.pretrained} is a head, for kind: aesthetic; give a CLIP ({clips})"]
        if not folder.is_dir():
            known = f" ({clips})" if clips else ""
            neither = f"{option}: {self.pretrained!r} is neither a bundled name{known} nor a folder"
            return [f"{neither}; correct it, or for a tag of open_clip's set model as well"]
        found = []
        if wrong := _config_mistake(folder / CONFIG):
            found.append(f"{option}: {wrong}")
        if not (folder / WEIGHTS).is_file():
            pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
            unsafe = f"convert {pickled[0]}, which is pickled and can run code" if pickled else "put the weights there"
            found.append(f"{option}: {folder / WEIGHTS} is missing; {unsafe}")
        return found

    def _tokenizer_file_mistakes(self, named: str) -> list[str]:
        """Of a folder whose config names a tokenizer of transformers', which then lies in the folder."""
        if not any((self.folder / name).is_file() for name in VOCABULARIES):
            said = f"{self.option}: {self.folder} has no tokenizer ({' or '.join(VOCABULARIES[:2])})"
            return [f"{said}, which its config names; put that of {named} there"]
        file = self.folder / TOKENIZER
        try:
            said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (OSError, ValueError) as error:
            return [f"{self.option}: {file} cannot be read ({error}); put that of {named} there"]
        if not isinstance(said, dict) or "auto_map" in said:
            return [f"{self.option}: {file} names code of its own, which is not run; delete its auto_map"]
        return []

    def _tag_mistake(self, tag: str) -> str | None:
        """A tag that open_clip does not have, or whose activation is another than the architecture's."""
        from open_clip import get_model_config, get_pretrained_cfg, list_pretrained_tags_by_model

        model = self.model
        if Path(tag).is_file():
            return None
        if not (published := get_pretrained_cfg(model, tag)):
            tags = list_pretrained_tags_by_model(model)
            near = get_close_matches(tag, tags, n=1, cutoff=0.0)
            return f"{self.option}: {model} has no tag {tag!r}{_did_you_mean(near)}"
        if published.get("quick_gelu", False) != get_model_config(model).get("quick_gelu", False):
            other = model.removesuffix("-quickgelu") if model.endswith("-quickgelu") else f"{model}-quickgelu"
            return f"model: {tag!r} was trained with another activation than {model} has; set model: {other}"
        return None


def _architectures() -> list[Path]:
    """open_clip's own configs, a file an architecture."""
    spec = find_spec("open_clip")
    places = spec.submodule_search_locations if spec else None
    return [path for place in places or [] for path in Path(place).glob("model_configs/*.json")]


def _reason(error: Exception) -> str:
    """What an error says, in one line; of weights that do not fit, the first names."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return reason if len(reason) <= 300 else f"{reason[:297]}..."


def _did_you_mean(near: list[str]) -> str:
    return f"; did you mean {near[0]!r}?" if near else ""


def _config_mistake(path: Path) -> str | None:
    if not path.is_file():
        return f"{path} is missing; it holds open_clip's model_cfg and preprocess_cfg"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return f"{path} is not JSON ({error}); write it again"
    if not isinstance(config, dict) or not isinstance(config.get("model_cfg"), dict):
        return f"{path} has no model_cfg; it must be an open_clip config"
    for where, value in not_finite(config):
        return f"{path} says {where}: {value}, which is no finite number; write it again"
    spread = (config.get("preprocess_cfg") or {}).get("std")
    if isinstance(spread, list) and not all(isinstance(s, (int, float)) and s > 0 for s in spread):
        return f"{path} says std: {spread}, by which images are divided; each must be greater than 0"
    return None


# -- what it sees in an image ------------------------------------------------------------------------------------------


class ImageTower:
    """An opened CLIP: what it sees in images, in float32, with gradients that reach them and a forward mode."""

    def __init__(self, network: torch.nn.Module, device: str | torch.device) -> None:
        import open_clip

        self.network: Any = network.to(device)
        self.device = device
        self.preprocess: dict[str, Any] = open_clip.get_model_preprocess_cfg(network)

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> what the image tower takes."""
        return prepare(images.to(self.device).float(), **self.preprocess)

    def embed(self, images: Tensor) -> Tensor:
        """(B, D), of length 1."""
        with plain_attention():
            embedding: Tensor = self.network.encode_image(self.prepare(images), normalize=True)
        return embedding

    def map_mean(self, images: Tensor, layer: str) -> Tensor:
        """(B, C): the mean over the image of what a layer of the image tower gives, which is a map (B, C, h, w)."""
        import torch

        heard: list[Tensor] = []
        try:
            module = self.network.visual.get_submodule(layer)
        except AttributeError as error:
            raise Refused(f"clip: its image tower has no layer {layer!r}, which the head reads; {ANOTHER}") from error
        handle = module.register_forward_hook(lambda module, given, out: heard.append(out))
        try:
            self.embed(images)
        finally:
            handle.remove()
        if not isinstance(heard[0], torch.Tensor) or heard[0].ndim != 4:
            raise Refused(f"clip: the layer {layer!r}, which the head reads, gives no map of the image; {ANOTHER}")
        return heard[0].mean((2, 3))


@contextmanager
def plain_attention() -> Iterator[None]:
    """Without torch's fused attention layer, taken where no gradients are wanted: it has no forward mode."""
    from torch.backends import mha

    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(before)

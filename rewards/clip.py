"""CLIP similarity: the cosine between an image and its prompt, as an open_clip model sees them.

    r(x, c) = <f(prepare(x)), g(c)> / (|f| |g|)

Values: [-1, 1], in practice 0.1 to 0.4 for the large published models. The weights are the user's own,
a bundled name, or fetched by open_clip under the licence of their publisher (OpenAI's and LAION's: MIT).

`prepare` is the model's own preprocessing, done on the tensor and on its device so that gradients reach the
image. Its resize is antialiased, as Pillow's is: without that a shrunk image is another image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from genbo.rewards import Refused, bundled

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")

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
class Clip:
    """`pretrained` is one of

    - a bundled name;
    - a folder with open_clip_config.json and open_clip_model.safetensors (open_clip's `local-dir:`, which may
      be written in front), or `hf-hub:org/repo`;
    - with `model`, the name of an architecture (ViT-B-32): a tag of open_clip's (laion2b_s34b_b79k), or a
      safetensors file, which also wants `preprocess`, the family whose way of preparing images it learned.

    `template` surrounds every prompt: "a photo of {}". Missing weights are an error, never drawn at random.
    Pickled files are refused; what a tag or the hub gives, open_clip fetches as safetensors where it can, and
    else reads by torch's restricted unpickler, which runs no code.
    """

    pretrained: str
    model: str = ""
    preprocess: Literal["openai", "siglip", "mobileclip"] | None = None
    template: str = "{}"
    differentiable: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each; looks at files and loads none."""
        found = []
        if "{}" not in self.template:
            found.append(f"template: {self.template!r} has no {{}}; put it where the prompt goes")
        if self.model:
            return found + _name_mistakes(self.model) + self._weights_mistakes()
        if self.preprocess:
            found.append("preprocess: a folder's own config says it, so leave it out")
        if not self.pretrained:
            found.append("pretrained: it is empty; give a bundled name, a folder, or a tag beside model")
        elif not self._on_hub:
            found += _folder_mistakes(self.pretrained, self.folder)
        return found

    def open(self, device: str | torch.device = "cpu") -> _Similarity:
        """Load the weights. Raises `Refused` with a sentence for whatever is wrong with them."""
        if wrong := self.mistakes():
            raise Refused("; ".join(wrong))
        return _Similarity(_load(self), self, device)

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
    def _on_hub(self) -> bool:
        return self.pretrained.startswith("hf-hub:")

    def _weights_mistakes(self) -> list[str]:
        """Of `pretrained` beside `model`: a tag, which open_clip knows, or a file."""
        path = Path(self.pretrained)
        if not self.pretrained:
            return [f"pretrained: give the weights for {self.model}, a tag or a safetensors file"]
        if path.suffix in PICKLED:
            return [f"pretrained: {path} is a pickled file, which can run code; convert it to safetensors"]
        if path.suffix == ".safetensors" and not path.is_file():
            return [f"pretrained: there is no file {path}; correct the path, or give a tag of open_clip's"]
        if path.is_dir():
            return [f"model: {path} is a folder, whose config names the architecture; leave model out"]
        if path.is_file() and not self.preprocess:
            families = ", ".join(FAMILIES)
            return [f"preprocess: a weights file does not say how it wants its images; give one of {families}"]
        if self.preprocess and not path.is_file():
            return [f"preprocess: open_clip knows how the tag {self.pretrained!r} wants its images; leave it out"]
        return []


def _name_mistakes(model: str) -> list[str]:
    """An architecture that open_clip does not have; found by its file, without the import."""
    spec = find_spec("open_clip")
    places = spec.submodule_search_locations if spec else None
    names = [path.stem for place in places or [] for path in Path(place).glob("model_configs/*.json")]
    if not names or model.replace("/", "-") in names:
        return []
    near = get_close_matches(model, names, n=1, cutoff=0.4)
    return [f"model: open_clip has no architecture {model!r}{_did_you_mean(near)}"]


def _did_you_mean(near: list[str]) -> str:
    return f"; did you mean {near[0]!r}?" if near else ""


def _folder_mistakes(name: str, folder: Path) -> list[str]:
    if not folder.is_dir():
        known = f" ({', '.join(bundled.names())})" if bundled.names() else ""
        neither = f"pretrained: {name!r} is neither a bundled name{known} nor a folder"
        return [f"{neither}; correct it, or for a tag of open_clip's set model as well"]
    found = []
    if wrong := _config_mistake(folder / CONFIG):
        found.append(wrong)
    if not (folder / WEIGHTS).is_file():
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        unsafe = f"convert {pickled[0]}, which is pickled and can run code" if pickled else "put the weights there"
        found.append(f"pretrained: {folder / WEIGHTS} is missing; {unsafe}")
    return found


def _config_mistake(path: Path) -> str | None:
    if not path.is_file():
        return f"pretrained: {path} is missing; it holds open_clip's model_cfg and preprocess_cfg"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"pretrained: {path} is not JSON ({error}); write it again"
    if not isinstance(config, dict) or "model_cfg" not in config:
        return f"pretrained: {path} has no model_cfg; it must be an open_clip config"
    return None


def _load(options: Clip) -> torch.nn.Module:
    """The network, on the CPU in float32 and evaluation mode, without gradients of its own."""
    import open_clip

    tag = options.pretrained if options.model else None
    if tag and (wrong := _tag_mistake(options.model, tag)):
        raise Refused(wrong)
    try:
        network: torch.nn.Module = open_clip.create_model(
            options.identifier,
            pretrained=tag,
            force_preprocess_cfg=FAMILIES[options.preprocess] if options.preprocess else None,
            require_pretrained=True,  # open_clip's default is random weights and a line in the log
        )
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        said = f"pretrained: {options.pretrained} could not be loaded ({reason}); fetch or export it again"
        raise Refused(said) from error
    return network.eval().requires_grad_(False)


def _tag_mistake(model: str, tag: str) -> str | None:
    """A tag that open_clip does not have, or whose activation is another than the architecture's."""
    from open_clip import get_model_config, get_pretrained_cfg, list_pretrained_tags_by_model

    if Path(tag).is_file():
        return None
    if not (published := get_pretrained_cfg(model, tag)):
        tags = list_pretrained_tags_by_model(model)
        near = get_close_matches(tag, tags, n=1, cutoff=0.0)
        return f"pretrained: {model} has no tag {tag!r}{_did_you_mean(near)}"
    if published.get("quick_gelu", False) != get_model_config(model).get("quick_gelu", False):
        other = model.removesuffix("-quickgelu") if model.endswith("-quickgelu") else f"{model}-quickgelu"
        return f"model: {tag!r} was trained with another activation than {model} has; set model: {other}"
    return None


class _Similarity:
    """The opened reward. The text tower sees each prompt once; the score is in float32."""

    differentiable: bool = True

    def __init__(self, network: torch.nn.Module, options: Clip, device: str | torch.device) -> None:
        import open_clip

        self.network: Any = network.to(device)
        self.folder = options.folder
        self.device, self.template = device, options.template
        self.tokenize = open_clip.get_tokenizer(options.identifier)
        self.preprocess: dict[str, Any] = open_clip.get_model_preprocess_cfg(network)
        self.known: dict[str, Tensor] = {}

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        with _plain_attention():
            image = self.network.encode_image(self.prepare(images), normalize=True)
        score: Tensor = (image * self.text(prompts)).sum(-1)
        return score

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> what the image tower takes."""
        return prepare(images.to(self.device).float(), **self.preprocess)

    def text(self, prompts: Sequence[str]) -> Tensor:
        """(B, D), of length 1."""
        import torch

        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if new:
            tokens = self.tokenize([self.template.replace("{}", prompt) for prompt in new]).to(self.device)
            with torch.no_grad():
                self.known.update(zip(new, self.network.encode_text(tokens, normalize=True), strict=True))
        return torch.stack([self.known[prompt] for prompt in prompts])


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Without torch's fused attention layer, taken where no gradients are wanted: it has no forward mode."""
    from torch.backends import mha

    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(before)


def prepare(
    images: Tensor,
    *,
    size: int | tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    resize_mode: str = "shortest",
    fill_color: int = 0,
    mode: str = "RGB",
) -> Tensor:
    """Resize, crop and normalise, (B, 3, H, W) -> (B, 3, *size): open_clip's `image_transform_v2` on tensors.

    Pillow resizes along the width, then along the height, and after each clips what a bicubic kernel throws
    beyond black and white; in one go, sharp edges would be off by up to 18/255. (Since version 13 it begins
    with the height where that shrinks much more. What the models learned from did not, and nor does this.)
    """
    from torch.nn.functional import interpolate

    height, width = (size, size) if isinstance(size, int) else size
    resized = _resized(images.shape[-2], images.shape[-1], height, width, resize_mode)
    if resized != tuple(images.shape[-2:]):
        # open_clip drops the interpolation where the shortest side meets a size that is not square
        dropped = resize_mode == "shortest" and height != width
        kernel = "bilinear" if interpolation == "bilinear" and not dropped else "bicubic"
        for shape in ((images.shape[-2], resized[1]), resized):
            images = interpolate(images, shape, mode=kernel, antialias=True).clamp(0, 1)
    images = _centre(images, height, width, fill_color / 255)
    return (images - _channels(mean, images)) / _channels(std, images)


def _resized(h: int, w: int, height: int, width: int, resize_mode: str) -> tuple[int, int]:
    """The size to resize (h, w) to before cropping, rounded as torchvision and open_clip round it."""
    if resize_mode == "squash":
        return height, width
    if resize_mode == "shortest" and height == width:
        long = int(height * max(h, w) / min(h, w))
        return (height, long) if h <= w else (long, height)
    ratios = h / height, w / width
    ratio = max(ratios) if resize_mode == "longest" else min(ratios)
    return round(h / ratio), round(w / ratio)


def _centre(images: Tensor, height: int, width: int, fill: float) -> Tensor:
    """Padded to at least (height, width), then cropped to it."""
    from torch.nn.functional import pad

    down, right = max(height - images.shape[-2], 0), max(width - images.shape[-1], 0)
    if down or right:
        images = pad(images, (right // 2, (right + 1) // 2, down // 2, (down + 1) // 2), value=fill)
    top, left = round((images.shape[-2] - height) / 2), round((images.shape[-1] - width) / 2)
    return images[..., top : top + height, left : left + width]


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    return like.new_tensor(values).reshape(-1, 1, 1)

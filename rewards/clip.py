"""CLIP similarity: the cosine between image and prompt in an open_clip model.

    r(x, c) = <f(prepare(x)), g(c)> / (|f| |g|)

Values: [-1, 1], in practice 0.1 to 0.4 for the large published models. The weights are the user's own,
a bundled name, or fetched by open_clip under the licence of their publisher (OpenAI's and LAION's: MIT;
Google's SigLIP: Apache-2.0).

`prepare` is the model's own preprocessing, done on the tensor and on its device so that gradients reach the
image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from genbo.rewards import Refused
from genbo.rewards._tokens import TokenReader
from genbo.rewards._tower import Family, ImageTower, Tower

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Clip:
    """`pretrained` names the weights, which are never drawn at random.

    It is one of

    - a bundled name;
    - a folder with open_clip_config.json and open_clip_model.safetensors (open_clip's `local-dir:`, which may
      be written in front), or `hf-hub:org/repo`;
    - with `model`, the name of an architecture (ViT-B-32): a tag of open_clip's (laion2b_s34b_b79k), or a
      safetensors file, which also wants `preprocess`, the family whose way of preparing images it learned.

    SigLIP is a CLIP too; its tokenizer lies on the hub, so a folder must hold it beside the weights.
    `template` surrounds every prompt: "a photo of {}". Missing weights are an error.
    """

    pretrained: str
    model: str = ""
    preprocess: Family | None = None
    template: str = "{}"
    differentiable: ClassVar[bool] = True
    reads_prompts: ClassVar[bool] = True

    def mistakes(self) -> list[str]:
        """What is wrong with these options, a sentence each; looks at files and loads none."""
        found = []
        if "{}" not in self.template:
            found.append(f"template: {self.template!r} has no {{}}; put it where the prompt goes")
        wrong = self.tower.mistakes()
        return found + (wrong or self.tower.tokenizer_mistakes())

    def open(self, device: str | torch.device = "cpu") -> Similarity:
        """Load the weights. Raises `Refused` with a sentence for whatever is wrong with them."""
        if wrong := self.mistakes():
            raise Refused("; ".join(wrong))
        return Similarity(self.tower, self.template, device)

    def readers(self) -> list[TokenReader]:
        """Of its text tower."""
        return self.tower.readers("clip", self.template)

    @property
    def tower(self) -> Tower:
        return Tower(self.pretrained, self.model, self.preprocess)

    @property
    def folder(self) -> Path:
        """Where the weights lie, when `pretrained` is a bundled name or a folder."""
        return self.tower.folder


class Similarity(ImageTower):
    """The opened reward. The text tower sees each prompt once; the score is in float32."""

    differentiable: bool = True

    def __init__(self, tower: Tower, template: str, device: str | torch.device) -> None:
        super().__init__(tower.load(), device)
        self.folder = tower.folder
        self.template = template
        self.tokenize = tower.tokenizer()
        self.known: dict[str, Tensor] = {}

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        score: Tensor = (self.embed(images) * self.text(prompts)).sum(-1)
        return score

    def text(self, prompts: Sequence[str]) -> Tensor:
        """(B, D), of length 1."""
        import torch

        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if new:
            tokens = self.tokenize([self.template.replace("{}", prompt) for prompt in new]).to(self.device)
            with torch.no_grad():
                self.known.update(zip(new, self.network.encode_text(tokens, normalize=True), strict=True))
        return torch.stack([self.known[prompt] for prompt in prompts])

"""A reward of the user's own: what it gives is checked, and it runs only what was allowed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from genbo.rewards import Refused
from genbo.rewards.external import External

PROMPTS = ["a red apple", "a dog", "a hen"]


@pytest.fixture
def own(tmp_path):
    """A file with that text, and the options that allow it."""

    def write(text: str, **options) -> External:
        file = tmp_path / "my_reward.py"
        file.write_text(text)
        return External(str(file), sha256=hashlib.sha256(file.read_bytes()).hexdigest(), **options)

    return write


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_function_scores_images_and_prompts(own, images):
    reward = own("def score(images, prompts):\n    return images.mean((1, 2, 3)) * len(prompts[1])\n").open()
    assert torch.equal(reward(images, PROMPTS), images.mean((1, 2, 3)) * 5)
    assert not reward.differentiable and not reward(images.requires_grad_(), PROMPTS).requires_grad


def test_a_class_is_made_once_with_the_device(own, images):
    text = """
from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Redness:
    device: str
    calls: int = 0

    def __call__(self, images, prompts):
        self.calls += 1
        return images[:, 0].mean((1, 2)).to(self.device)
"""
    reward = own(text, name="Redness", differentiable=True).open("cpu")
    live = images.requires_grad_()
    (grad,) = torch.autograd.grad(reward(live, PROMPTS).sum(), live)
    assert torch.equal(grad[:, 0], torch.full((3, 8, 8), 1 / 64)) and not grad[:, 1:].any()
    reward(images, PROMPTS)
    assert reward.score.calls == 2 and reward.score.device == "cpu"


def test_half_precision_becomes_single(own, images):
    reward = own("def score(images, prompts):\n    return images.mean((1, 2, 3)).bfloat16()\n").open()
    assert reward(images, PROMPTS).dtype == torch.float32


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0.5", "gave float for 3 images; return a tensor of 3 numbers"),
        ("images.mean()", r"gave a tensor of shape \(\) for 3 images"),
        ("images.mean((2, 3))", r"gave a tensor of shape \(3, 3\) for 3 images"),
        ("images.mean((1, 2, 3)).int()", "gave int32; return float32 or float64"),
        ("images.mean((1, 2, 3)).log() * torch.tensor([1, float('nan'), 1])", "gave nan for the prompt 'a dog'"),
        ("images.mean((1, 2, 3)) / torch.tensor([1, 1, 0])", "gave inf for the prompt 'a hen'; return a finite"),
        ("nothing", r"my_reward.py, line 3 fails with NameError: name 'nothing' is not defined; correct the file"),
        ("sys.exit(0)", "my_reward.py, line 3 fails with SystemExit: 0; correct"),
    ],
)
def test_what_it_gives_is_checked(own, images, line, said):
    reward = own(f"import sys, torch\ndef score(images, prompts):\n    return {line}\n").open()
    with pytest.raises(Refused, match=said):
        reward(images, PROMPTS)


def test_a_gradient_that_is_promised_must_be_there(own, images):
    reward = own(
        "def score(images, prompts):\n    return images.detach().mean((1, 2, 3))\n", differentiable=True
    ).open()
    assert reward(images, PROMPTS).isfinite().all()
    with pytest.raises(Refused, match="without a gradient; set differentiable: false, or keep the gradient"):
        reward(images.requires_grad_(), PROMPTS)


def test_memory_that_is_short_is_no_fault_of_the_file(own, images):
    reward = own("import torch\ndef score(images, prompts):\n    raise torch.OutOfMemoryError('short')\n").open()
    with pytest.raises(torch.OutOfMemoryError):
        reward(images, PROMPTS)


# -- what is run -------------------------------------------------------------------------------------------------------


def _marking(tmp_path: Path) -> str:
    return f"open({str(tmp_path / 'was-run')!r}, 'w')\ndef score(images, prompts):\n    return images\n"


def test_nothing_is_run_that_was_not_allowed(own, tmp_path):
    options = External(own(_marking(tmp_path)).file)
    with pytest.raises(Refused, match="is code, which runs only where it is allowed; add --allow-code"):
        options.open()
    assert options.mistakes() == [] and not (tmp_path / "was-run").exists()


def test_nothing_is_run_that_has_changed_since(own, tmp_path):
    options = own("def score(images, prompts):\n    return images.mean((1, 2, 3))\n")
    Path(options.file).write_text(_marking(tmp_path))
    with pytest.raises(Refused, match="is not what was allowed, since it has changed"):
        options.open()
    assert not (tmp_path / "was-run").exists()


def test_a_file_that_was_not_allowed_is_not_even_parsed(own, monkeypatch):
    options = own("def skore(images, prompts): ...\n")
    assert options.mistakes() != []
    monkeypatch.setattr("ast.parse", lambda text: pytest.fail("it was parsed"))
    assert External(options.file).mistakes() == []


def test_mistakes_are_told_by_reading(own, tmp_path):
    assert own(_marking(tmp_path)).mistakes() == []
    assert not (tmp_path / "was-run").exists()


def test_a_file_beside_it_cannot_be_imported(own, tmp_path):
    (tmp_path / "beside_my_reward.py").write_text("x = 1\n")
    with pytest.raises(Refused, match="line 1 fails with ModuleNotFoundError: No module named 'beside_my_reward'"):
        own("import beside_my_reward\ndef score(images, prompts):\n    return 0\n").open()


def test_a_file_that_fails_while_it_is_read_is_a_sentence(own):
    with pytest.raises(Refused, match=r"my_reward.py, line 2 fails with ZeroDivisionError: .*; correct the file"):
        own("x = 1\ny = x / 0\ndef score(images, prompts):\n    return 0\n").open()


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("def score(images, prompts\n", "score", r"my_reward.py, line 1 is not Python \('\(' was never closed\)"),
        ("def skore(images, prompts): ...\n", "score", "has no 'score' at its top; it has skore"),
        ("\n", "score", "has no 'score' at its top; write def score(images, prompts)"),
        ("x = 1\0\n", "score", "is not Python"),
    ],
)
def test_mistakes_of_the_file(own, text, name, said):
    import re

    (mistake,) = own(text, name=name).mistakes()
    assert re.search(said.replace("score(images", r"score\(images").replace("prompts)", r"prompts\)"), mistake)


@pytest.mark.parametrize(
    ("file", "said"),
    [("", "it is no Python file"), ("x.txt", "x.txt is no Python file"), ("x.py", "there is no file x.py")],
)
def test_mistakes_of_the_path(file, said):
    (mistake,) = External(file).mistakes()
    assert mistake.startswith(f"file: {said}; ")


def test_what_is_named_must_be_a_function(own):
    with pytest.raises(Refused, match=r"name: score in .* is no function of images and prompts; write def score"):
        own("score = 3\n").open()


GRAD = """
import torch

network = torch.nn.Linear(3 * 8 * 8, 1)

def kept(images, prompts):
    with torch.enable_grad():
        return network(images.flatten(1))[:, 0]

def leaf(images, prompts):
    with torch.enable_grad():
        return images.flatten(1).sum(1).requires_grad_()

def parameter(images, prompts):
    return torch.nn.Parameter(images.flatten(1).sum(1))

def inference(images, prompts):
    with torch.inference_mode():
        return images.flatten(1).sum(1)

def half(images, prompts):
    with torch.enable_grad():
        return network(images.flatten(1))[:, 0].half()
"""


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("name", ["kept", "leaf", "parameter", "inference", "half"])
def test_scores_come_without_a_gradient_that_nobody_asked_for(own, images, name, differentiable):
    reward = own(GRAD, name=name, differentiable=differentiable).open()
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            found = reward(images, PROMPTS)
        assert not found.requires_grad and not found.is_inference() and found.dtype == torch.float32
        found.numpy()
        assert (torch.ones(3, requires_grad=True) * found).sum().requires_grad
    if differentiable and name == "kept":  # and with one where it is wanted
        live = images.clone().requires_grad_()
        assert reward(live, PROMPTS).requires_grad


def test_a_derivative_along_a_direction_passes_as_well(own, images):
    """Forward mode runs without gradients: what the file gives keeps its tangent."""
    from torch.autograd import forward_ad

    reward = own(
        "def score(images, prompts):\n    return images.square().mean((1, 2, 3))\n", differentiable=True
    ).open()
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(reward(forward_ad.make_dual(images, direction), PROMPTS)).tangent
    torch.testing.assert_close(tangent, (2 * images * direction).mean((1, 2, 3)))

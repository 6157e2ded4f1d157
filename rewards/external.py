"""A Python function of your own that scores images and prompts; it runs only with --allow-code.

    # my_reward.py
    def score(images, prompts):             # (B, 3, H, W) in [0, 1] and B texts -> (B,), higher is better
        return images.mean((1, 2, 3))

    genbo tune job.yaml --allow-code my_reward.py

A job is data and can never run code by itself: the file is named a second time by whoever starts the command, and only
what it held at that moment is run. It is one file by itself; what lies beside it cannot be imported. Values: whatever
the function gives, which must be finite numbers in float32 or float64, one an image. It carries the licence that you
give it.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from genbo.rewards import Refused

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOST_BYTES = 1_000_000
EXAMPLE = "def score(images, prompts): return images.mean((1, 2, 3))"


@dataclass(frozen=True)
class External:
    """`file` is a Python file; `name` is the function in it, or a class that is made with the device and then called.

    `differentiable` says whether its gradient in the images may be used. `sha256` is that of the code that was allowed:
    no job can write it.
    """

    file: str
    name: str = "score"
    differentiable: bool = False
    sha256: str = ""

    def mistakes(self) -> list[str]:
        """What is wrong with the file, a sentence each; runs nothing, and reads only what was allowed."""
        if not self.file or self.path.suffix != ".py":
            return [f"file: {self.file or 'it'} is no Python file; give one with {EXAMPLE}"]
        if not self.path.is_file():
            return [f"file: there is no file {self.path}; correct the path"]
        if self.path.stat().st_size > MOST_BYTES:
            return [f"file: {self.path} has more than {MOST_BYTES} bytes; a reward is a short file"]
        return self._code_mistakes() if self.sha256 else []

    def _code_mistakes(self) -> list[str]:
        """Python's own parser can be brought down by what is written to do so, so it sees no file of a stranger's."""
        try:
            known = _names(ast.parse(self.path.read_bytes()))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            return [f"file: {self.path}{line} is not Python ({str(error).partition(' (')[0]}); correct it"]
        if self.name in known:
            return []
        near = f"it has {', '.join(known[:5])}" if known else f"write {EXAMPLE}"
        return [f"name: {self.path} has no {self.name!r} at its top; {near}"]

    def open(self, device: str | torch.device = "cpu") -> _Own:
        """Run the file. Raises `Refused` where it was not allowed, has changed since, or fails."""
        if wrong := self.mistakes():
            raise Refused("; ".join(wrong))
        code = self.path.read_bytes()
        if not self.sha256:
            raise Refused(
                f"file: {self.path} is code, which runs only where it is allowed; add --allow-code {self.path}"
            )
        if hashlib.sha256(code).hexdigest() != self.sha256:
            raise Refused(f"file: {self.path} is not what was allowed, since it has changed; read it, and begin again")
        return _Own(self, _loaded(self.path, code), device)

    @property
    def path(self) -> Path:
        return Path(self.file).expanduser()


def _names(tree: ast.Module) -> list[str]:
    """What a file defines at its top."""
    found: list[str] = []
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.append(name)
            case ast.Assign(targets=targets):
                found += [target.id for target in targets if isinstance(target, ast.Name)]
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found += [alias.asname or alias.name for alias in names]
    return found


def _loaded(path: Path, code: bytes) -> ModuleType:
    """The file as a module: these bytes, whatever the file holds by now."""
    module = ModuleType(f"genbo_external_{hashlib.sha256(code).hexdigest()[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look there for their own file
    try:
        exec(compile(code, str(path), "exec"), module.__dict__)  # noqa: S102 - the command line allowed it
    except (Exception, SystemExit) as error:
        raise Refused(f"file: {_where(path, error)}; correct the file") from error
    return module


class _Own:
    """The opened reward. What it gives is checked: a finite number an image."""

    def __init__(self, options: External, module: ModuleType, device: str | torch.device) -> None:
        self.file, self.name, self.differentiable = options.path, options.name, options.differentiable
        made: Any = vars(module).get(options.name)
        if isinstance(made, type):
            made = self._run(made, device)
        if not callable(made):
            raise Refused(f"name: {self.name} in {self.file} is no function of images and prompts; write {EXAMPLE}")
        self.score: Callable[..., Any] = made

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        import torch

        if self.differentiable:
            return self._checked(self._run(self.score, images, list(prompts)), images, prompts)
        with torch.no_grad():
            return self._checked(self._run(self.score, images.detach(), list(prompts)), images, prompts)

    def _run(self, function: Callable[..., object], *given: object) -> Any:
        import torch

        try:
            return function(*given)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except (Exception, SystemExit) as error:
            raise Refused(f"file: {_where(self.file, error)}; correct the file, or try again if this passes") from error

    def _checked(self, found: object, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The scores, in float32 or float64."""
        import torch

        what, wanted = f"file: {self.name} in {self.file}", f"return a tensor of {len(images)} numbers"
        if not isinstance(found, torch.Tensor):
            raise Refused(f"{what} gave {type(found).__name__} for {len(images)} images; {wanted}")
        if found.shape != (len(images),):
            raise Refused(f"{what} gave a tensor of shape {tuple(found.shape)} for {len(images)} images; {wanted}")
        if not found.is_floating_point():
            raise Refused(f"{what} gave {str(found.dtype).removeprefix('torch.')}; return float32 or float64")
        if not (finite := found.isfinite()).all():
            n = int(finite.int().argmin())
            raise Refused(f"{what} gave {found[n].item()} for the prompt {prompts[n]!r}; return a finite number")
        if self.differentiable and images.requires_grad and torch.is_grad_enabled() and not found.requires_grad:
            raise Refused(f"{what} gave scores without a gradient; set differentiable: false, or keep the gradient")
        if found.requires_grad and not (self.differentiable and images.requires_grad and torch.is_grad_enabled()):
            found = found.detach()  # what the file keeps for a gradient of its own is nobody's business here
        if found.is_inference():
            found = found.clone()  # one made under inference_mode could enter no graph
        single: Tensor = found if found.dtype.itemsize >= 4 else found.float()
        return single.to(images.device)


def _where(path: Path, error: BaseException) -> str:
    """An error of the file's own, with the last line of the file that it came through."""
    line, trace = error.lineno if isinstance(error, SyntaxError) else None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    said = str(error).strip().partition("\n")[0]
    return f"{path}{f', line {line}' if line else ''} fails with {type(error).__name__}{f': {said}' if said else ''}"

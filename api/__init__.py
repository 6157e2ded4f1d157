"""genbo tunes a diffusion model's hyperparameters by first-order bilevel optimization.

import genbo
run = genbo.tune("job.yaml")                 # or a dict; the same as `genbo tune job.yaml`
for step in run:                             # if you like to see them as they are made
    print(step["phi"], step["value"])
result = run.result()                        # runs what is left of it
pipeline = genbo.load(result.folder / "tuned")    # a pipeline that applies every tuned value by itself
images = pipeline(["a red apple"], samples=4, seed=0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genbo.cli.commands.tune import tune as tune
    from genbo.diffusion.tuned import load as load

    __version__: str

__all__ = ["__version__", "load", "tune"]


def __getattr__(name: str) -> Any:
    """`tune` and `load` import torch and diffusers, which takes seconds: only when asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("genbo")
    if name == "tune":
        from genbo.cli.commands.tune import tune

        return tune
    if name == "load":
        from genbo.diffusion.tuned import load

        return load
    raise AttributeError(f"module 'genbo' has no attribute {name!r}")

"""Finds every file of every room: a test that takes `reward_class` runs for each file in `rewards/`.

A new file is picked up by itself. One whose options have no defaults has an example: in `EXAMPLES`, in the class itself
(`example: ClassVar[Mapping[str, Any]]`), or that of the class that it inherits from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

import pytest

from genbo.diffusion.kinds import class_of, kinds

ROOMS = {
    "model": "genbo.diffusion.models",
    "rule": "genbo.diffusion.guidance",
    "steering_rule": "genbo.diffusion.steering",
    "sampler": "genbo.diffusion.samplers",
    "reward": "genbo.rewards",
    "tunable": "genbo.bilevel.tunables",
    "lower_solver": "genbo.bilevel.lower",
    "searcher": "genbo.bilevel.searchers",
    "pruner": "genbo.bilevel.pruners",
    "estimator": "genbo.bilevel.estimators",
    "optimizer": "genbo.bilevel.optimizers",
}

# Options for the kinds that cannot do without; a fixture's name stands for what it made.
FIXTURES = (
    "tiny_clip",
    "random_resnet18",
    "tiny_image_reward",
    "tiny_pickscore",
    "tiny_timm",
    "own_reward",
    "own_reward_sha256",
)
EXAMPLES: dict[str, dict[str, Any]] = {
    "Aesthetic": {"pretrained": "emoji-style"},
    "Classifier": {"pretrained": "tiny_timm", "label": "dog"},
    "Clip": {"pretrained": "tiny_clip"},
    "Cmmd": {"features": "emoji-clip"},
    "Diversity": {"features": "pixels"},
    "Fid": {"features": "pixels"},
    "Kid": {"features": "pixels"},
    "Mmd": {"features": "pixels"},
    "External": {"file": "own_reward", "sha256": "own_reward_sha256"},
    "Guidance": {"start": 5.0},
    "Hps": {"pretrained": "tiny_clip"},
    "ImageReward": {"pretrained": "tiny_image_reward"},
    "InceptionScore": {"features": "fashion-features"},
    "PrecisionRecall": {"features": "fashion-features"},
    "Penalty": {"h": 0.05},  # the wide default of both smooths on purpose
    "ZerothOrder": {"h": 0.05},
    "Pickscore": {"pretrained": "tiny_pickscore"},
    "Resnet18": {"pretrained": "random_resnet18"},
}


def files(room: str) -> list[str]:
    """The kinds in a room."""
    return list(kinds(ROOMS[room]))


def options_class(room: str, kind: str) -> type[Any]:
    return class_of(ROOMS[room], kind)


def example_of(cls: type[Any]) -> dict[str, Any]:
    """Options for the tests of a kind: its own, or those of the nearest class that it inherits from."""
    for base in cls.__mro__:
        if base.__name__ in EXAMPLES or "example" in vars(base):
            return EXAMPLES.get(base.__name__) or dict(vars(base)["example"])
    return {}


def required(cls: type[Any]) -> list[str]:
    """The options that have no default."""
    return [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for room in ROOMS:
        if f"{room}_class" in metafunc.fixturenames:
            classes = [options_class(room, kind) for kind in files(room)]
            metafunc.parametrize(f"{room}_class", classes, ids=lambda cls: cls.__name__)
    if "component" in metafunc.fixturenames:
        found = [(room, kind) for room in ROOMS for kind in files(room)]
        metafunc.parametrize("component", found, ids=lambda pair: "/".join(pair))


@pytest.fixture
def example(request: pytest.FixtureRequest) -> Callable[[type[Any]], Any]:
    """An instance of a room's dataclass: its defaults, and the example's options where it has none."""

    def build(cls: type[Any]) -> Any:
        options = example_of(cls)
        missing = sorted(set(required(cls)) - set(options))
        assert not missing, f"{cls.__name__} needs {missing}: give it an `example` of them"
        return cls(**{k: str(request.getfixturevalue(v)) if v in FIXTURES else v for k, v in options.items()})

    return build

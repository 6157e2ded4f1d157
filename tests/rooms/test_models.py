"""What every model declares before it is opened, and that a file which states nothing has the defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, get_type_hints

import pytest

from genbo.cli.job import catalog
from genbo.diffusion.kinds import declared
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.traits import ModelTraits
from genbo.rewards._tokens import TokenReader
from genbo.rewards._traits import RewardTraits

CALLED = ("misfits", "undrawable", "remarks", "damages", "readers")
PLAIN = {
    "folder": Path | None,
    "hub_id": str | None,
    "dtype": str | None,
    "time_range": tuple | None,
    "known_prompts": Sequence | None,
    "device": str,
    "negative_prompt": str,
    "height": int | None,
    "width": int | None,
}


def test_what_options_declare_is_of_the_type_that_the_record_says(model_class, example):
    options = example(model_class)
    traits = declared(ModelTraits, options)
    for field in fields(ModelTraits):
        value = getattr(traits, field.name)
        if field.name in CALLED:
            assert callable(value), field.name
        elif field.name == "compiled_for":
            assert value is None or isinstance(value(1), model_class)
        else:
            assert isinstance(value, PLAIN.get(field.name, bool)), field.name
    assert all(isinstance(reader, TokenReader) for reader in traits.readers())
    assert list(traits.damages()) == [] and list(traits.undrawable(Ddim())) == []


def test_a_model_with_a_folder_or_a_training_has_a_network(model_class, example):
    traits = declared(ModelTraits, example(model_class))
    assert traits.has_network or not (traits.learns or traits.folder or traits.hub_id)


@pytest.mark.parametrize("record", [ModelTraits, RewardTraits])
def test_a_part_that_states_nothing_has_the_defaults(record):
    assert declared(record, object()) == record()


def test_a_part_states_by_class_variable_option_or_property():
    @dataclass(frozen=True)
    class Part:
        height: int = 8
        learns: ClassVar[bool] = True

        @property
        def hub_id(self) -> str:
            return "org/name"

    assert declared(ModelTraits, Part()) == ModelTraits(height=8, learns=True, hub_id="org/name")
    of_class = declared(ModelTraits, Part)
    assert of_class.learns and of_class.hub_id is None, "a property depends on the options"


@pytest.mark.parametrize(("record", "room"), [(ModelTraits, "models"), (RewardTraits, "rewards")])
def test_every_trait_is_stated_by_some_file(record, room):
    stated = {name for kind in catalog.kinds(room) for name in dir(catalog.options_of(room, kind))}
    stated |= {name for kind in catalog.kinds(room) for name in get_type_hints(catalog.options_of(room, kind))}
    assert {field.name for field in fields(record)} <= stated

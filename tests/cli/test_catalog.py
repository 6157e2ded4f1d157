"""Rooms, and the options in them, as the job sees them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt
from pydantic import ValidationError

from genbo.cli.job import catalog

KINDS = [(room, kind) for room in catalog.ROOMS for kind in catalog.kinds(room)]


@pytest.mark.parametrize(("room", "kind"), KINDS, ids=lambda value: str(value))
def test_every_file_is_a_kind(room: str, kind: str) -> None:
    """A frozen dataclass of the file's name in CamelCase, a line of help, options that pydantic can hold."""
    cls = catalog.options_of(room, kind)
    assert cls.__dataclass_params__.frozen
    assert cls.__name__.lower() == kind.replace("_", "")
    assert (
        catalog.help_line(room, kind).endswith((".", "]", ").", "s", "e")) and len(catalog.help_line(room, kind)) > 20
    )
    names = [option.name for option in catalog.options(room, kind)]
    assert list(catalog.model_of(room, kind).model_fields) == names
    assert set(names) == {f.name for f in fields(cls)} - set(catalog.HIDDEN.get(room, ()))


@pytest.mark.parametrize(("room", "kind"), KINDS, ids=lambda value: str(value))
def test_defaults_survive_the_way_there_and_back(room: str, kind: str) -> None:
    required = {
        o.name: {"start": 1.0, "value": 1.0}.get(o.name, "name") for o in catalog.options(room, kind) if o.required
    }
    first = catalog.build(room, kind, catalog.model_of(room, kind).model_validate(required))
    again = catalog.build(room, kind, catalog.model_of(room, kind).model_validate(catalog.document_of(room, first)))
    assert again == first == catalog.options_of(room, kind)(**required)


def test_defaults_exist() -> None:
    assert all(kind in catalog.kinds(room) for room, kind in catalog.DEFAULTS.items())


def test_nearest() -> None:
    assert catalog.nearest("quadratik", ["clip", "quadratic"]) == "; did you mean 'quadratic'?"
    assert catalog.nearest("zzz", ["clip", "quadratic"]) == "; choose from clip, quadratic"


# -- options as a model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    depth: Annotated[int, Ge(2)]


@dataclass(frozen=True)
class Outer:
    """Everything that an option may be."""

    number: Annotated[float, Gt(0)] = 1.0
    pair: tuple[float, float] = (0.0, 1.0)
    many: float | list[float] = 1.0
    choice: Literal["a", "b"] | Inner = "a"
    perhaps: Annotated[int, Gt(0)] | None = None
    table: dict[str, list[float]] | None = None


@pytest.fixture
def outer(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.setattr(catalog, "options_of", lambda room, kind: Outer)
    monkeypatch.setattr(catalog, "help_line", lambda room, kind: "help")
    return catalog.model_of.__wrapped__("rewards", "outer")


def test_nested_options_become_objects(outer) -> None:  # type: ignore[no-untyped-def]
    written = {"pair": [1, 2], "many": [1, 2], "choice": {"depth": 3}, "perhaps": 2, "table": {"x": [1]}}
    found = catalog.build("rewards", "outer", outer.model_validate(written))
    assert found == Outer(1.0, (1.0, 2.0), [1.0, 2.0], Inner(3), 2, {"x": [1.0]})
    assert catalog.document_of("rewards", found) == {"number": 1.0, **written}


@pytest.mark.parametrize(
    ("written", "place", "error"),
    [
        ({"number": 0}, ("number",), "greater_than"),
        ({"number": True}, ("number",), "float_type"),
        ({"number": float("nan")}, ("number",), "finite_number"),
        ({"number": "1"}, ("number",), "float_type"),
        ({"pair": [1]}, ("pair",), "too_short"),
        ({"many": [1, "x"]}, ("many", "<list of number>", 1), "float_type"),
        ({"many": "x"}, ("many", "<number>"), "float_type"),
        ({"choice": {"depth": 1}}, ("choice", "<Inner>", "depth"), "greater_than_equal"),
        ({"choice": "c"}, ("choice", "<a | b>"), "literal_error"),
        ({"perhaps": 1.5}, ("perhaps", "<whole number > 0>"), "int_type"),
        ({"other": 1}, ("other",), "extra_forbidden"),
    ],
)
def test_one_error_of_one_branch(outer, written, place, error) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValidationError) as caught:
        outer.model_validate(written)
    assert [(e["loc"], e["type"]) for e in caught.value.errors()] == [(place, error)]


def test_words() -> None:
    hints = catalog.hints_of(Outer)
    assert catalog.words(hints["number"]) == "number > 0"
    assert catalog.words(hints["pair"]) == "[number, number]"
    assert catalog.words(hints["choice"]) == "a | b | {depth: whole number >= 2}"
    assert catalog.limits(Annotated[float, Ge(-1), Gt(0)]) == (0, None)

"""What every tunable promises: a link that cannot leave its domain, and a place of its own in the process."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genbo.bilevel.tunables.guidance import Guidance, Knots
from genbo.bilevel.tunables.regularization import Regularization
from genbo.diffusion.guidance.interval import Interval
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.process import process_of
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.steer import Climbed
from genbo.diffusion.steering.tilt import Tilt
from genbo.rewards.linear import Linear
from tests.rooms.conftest import example_of, files, options_class

STEPS = 6
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "Guidance": [
        {},
        {"shape": "per_step"},
        {"shape": Knots(3)},
        {"start": [0.0, 1.0, 2.0, 3.0, 4.0, 20.0], "shape": "per_step"},
        {"start": 0.3, "bounds": (0.0, 0.5), "option": "start"},
        {"start": -1.0, "bounds": (-3.0, -0.1)},
    ],
    "SteerStrength": [{}, {"shape": "per_step"}, {"start": 0.5, "bounds": (0.0, 2.0), "shape": Knots(3)}],
    "Regularization": [{}, {"start": 0.02, "bounds": (0.02, 0.5)}],
    "NoiseSchedule": [
        {},
        {"parameters": ["tau", "end"], "start": {"end": 0.6}, "normalised": False},
        {"family": "sigmoid", "zero_terminal": True},
        {"family": "piecewise", "inner": 3, "parameters": ["inner", "log_snr_min"]},
    ],
    "Timesteps": [{"start": name} for name in ("own", "uniform", "trailing", "karras", "ays")]
    + [{"start": [-7.0, -3.0, 0.0, 1.0, 1.5, 7.0]}],
}


def opened(options: Any) -> Any:
    """The tunable, where its options must see the process first."""
    return options.of(process()) if hasattr(options, "of") else options


@pytest.fixture
def tunables(tunable_class, example) -> list[Any]:
    variants = VARIANTS.get(tunable_class.__name__, [{}])
    return [opened(replace(example(tunable_class), **options)) for options in variants]


@pytest.fixture
def options_of_the_rule(tunables) -> list[Any]:
    """Those that stand in the guidance rule; lambda acts through the lower level instead."""
    found = [tunable for tunable in tunables if tunable.rule_option is not None]
    return found or pytest.skip("has no place in the guidance rule")


def start_of(tunable: Any, phi: torch.Tensor) -> Any:
    """phi as the job would write it under `start`."""
    return tunable.named(phi) if hasattr(tunable, "named") else tunable.spoken(phi)


def process():
    plain = process_of(Gaussian().open(), Ddim(steps=STEPS), Interval(weight=3.0))
    return plain.steered([Climbed(1.0, Linear().open())], 1.0, Tilt())


def at_random(tunable, spread: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(5, tunable.size(STEPS), generator=generator, dtype=torch.float64)


def test_the_start_is_what_was_written(tunables):
    for tunable in tunables:
        first = tunable.first(STEPS)
        assert first.shape == (tunable.size(STEPS),) and first.dtype == torch.float64
        spoken = torch.as_tensor(tunable.spoken(first), dtype=torch.float64)
        written = tunable.numbers(STEPS) if hasattr(tunable, "named") else tunable.start
        assert torch.equal(spoken, torch.as_tensor(written, dtype=torch.float64).expand_as(spoken))
        assert tunable.mistakes(STEPS) == []


def test_coordinates_are_the_inverse_of_the_link(tunables):
    for tunable in tunables:
        u = at_random(tunable, 1.0 if hasattr(tunable, "named") else 2.0)  # inside what a start on a bound is held to
        phi = tunable.value(u)
        torch.testing.assert_close(tunable.coordinates(phi), u, atol=1e-8, rtol=1e-8)
        torch.testing.assert_close(tunable.value(tunable.coordinates(phi)), phi, atol=1e-10, rtol=1e-10)


def test_a_start_on_a_bound_can_still_move(tunables):
    for tunable in tunables:
        u = tunable.coordinates(tunable.first(STEPS)).requires_grad_()
        assert u.isfinite().all()
        inside = 0.1 if hasattr(tunable, "stops") else 0.01
        torch.testing.assert_close(tunable.value(u).detach(), tunable.first(STEPS), atol=inside, rtol=0)
        (slope,) = torch.autograd.grad(tunable.value(u).sum(), u)
        assert (slope.abs() > 1e-6).all()


@settings(deadline=None)
@given(u=st.floats(allow_nan=False))
def test_no_coordinate_leaves_the_domain(tunables_of_the_room, u):
    """Infinities included: what the link gives may be written into a job as a start."""
    for tunable in tunables_of_the_room:
        phi = tunable.value(torch.full((tunable.size(STEPS),), u, dtype=torch.float64))
        assert phi.isfinite().all()
        assert replace(tunable, start=start_of(tunable, phi)).mistakes(STEPS) == []


@pytest.fixture(scope="module")
def tunables_of_the_room() -> list[Any]:
    """All variants of all kinds: hypothesis wants a fixture that does not change."""
    kinds = [options_class("tunable", kind) for kind in files("tunable")]
    plain = {kind.__name__: kind(**example_of(kind)) for kind in kinds}
    return [opened(replace(tunable, **o)) for name, tunable in plain.items() for o in VARIANTS.get(name, [{}])]


@settings(deadline=None)
@given(low=st.floats(-1e3, 1e3), width=st.floats(1e-3, 1e3), u=st.floats(allow_nan=False))
def test_guidance_stays_inside_any_bounds(low, width, u):
    tunable = Guidance(start=low, bounds=(low, low + width))
    phi = tunable.value(torch.tensor([u], dtype=torch.float64)).item()
    assert low <= phi <= low + width


def test_the_link_rises(tunables):
    """Where every number has a coordinate of its own."""
    for tunable in (t for t in tunables if not hasattr(t, "stops") and "inner" not in getattr(t, "tuned", ())):
        u = torch.linspace(-8, 8, 50, dtype=torch.float64)[:, None].expand(-1, tunable.size(STEPS))
        assert (tunable.value(u).diff(dim=0) > 0).all()


def test_embedding_touches_nothing_but_its_own_place(options_of_the_rule):
    for tunable in options_of_the_rule:
        before = process()
        kept = {name: value.clone() for name, value in before.options.items()}
        after = tunable.embed(before, tunable.value(at_random(tunable, 1.0)))
        assert after is not before and after.members == 5
        changed = [name for name, value in after.options.items() if value is not before.options[name]]
        assert changed == [tunable.rule_option]
        assert after.options[tunable.rule_option].shape == (5, STEPS)
        assert all(torch.equal(before.options[name], value) for name, value in kept.items())
        assert after.grid is before.grid and after.rule is before.rule and after.meter is before.meter


def test_every_parameter_reaches_the_process(options_of_the_rule):
    for tunable in options_of_the_rule:
        phi = tunable.value(at_random(tunable, 1.0)).requires_grad_()
        (grad,) = torch.autograd.grad(tunable.embed(process(), phi).options[tunable.rule_option].sum(), phi)
        assert (grad > 0).all()


def test_the_plan_sees_without_torch_what_the_process_holds(options_of_the_rule):
    """At the start, and where all numbers differ."""
    for tunable in options_of_the_rule:
        assert tunable.numbers(STEPS) == tunable.first(STEPS).tolist()
        for phi in (tunable.first(STEPS), tunable.value(at_random(tunable, 1.0))[0]):
            table = tunable.embed(process(), phi[None]).options[tunable.rule_option][0]
            assert tunable.spread(phi.tolist(), STEPS) == pytest.approx(table.tolist(), rel=1e-12)


def test_its_name_is_that_of_its_file(tunable_class, tunables):
    """Its key under `tune:`; what acts on one of several options says which after a full stop."""
    assert {tunable.name.partition(".")[0] for tunable in tunables} == {tunable_class.__module__.rpartition(".")[2]}


def test_every_number_has_a_label_or_none_has(tunables):
    for tunable in tunables:
        assert len(tunable.labels) in (0, tunable.size(STEPS))


def test_what_is_spoken_is_a_start(tunables):
    for tunable in tunables:
        phi = tunable.value(at_random(tunable, 1.0))[0]
        written = json.loads(json.dumps(start_of(tunable, phi)))
        torch.testing.assert_close(replace(tunable, start=written).first(STEPS), phi, atol=0, rtol=0)


def test_lambda_leaves_the_sampler_as_it_is():
    before = process()
    assert Regularization().embed(before, Regularization().first(STEPS)[None]) is before


def test_names_tell_tunables_apart():
    """The weight is `guidance:` in the job, another option of the rule `guidance.<option>:`."""
    assert Guidance(start=5.0).name == "guidance"
    assert Guidance(start=0.3, option="rescale").name == "guidance.rescale"


def test_knots_are_joined_by_straight_lines():
    table = Guidance(start=1.0, shape=Knots(3)).over_steps(torch.tensor([[0.0, 4.0, 0.0]], dtype=torch.float64), 5)
    assert table.tolist() == [[0, 2, 4, 2, 0]]


def test_shapes_share_a_constant(tunables):
    """A number repeated is the same schedule in every shape: straight lines between equal knots."""
    for tunable in (t for t in tunables if type(t) is Guidance):
        table = tunable.over_steps(torch.full((1, tunable.size(STEPS)), 3.0, dtype=torch.float64), STEPS)
        torch.testing.assert_close(table, torch.full((1, STEPS), 3.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": 25.0}, "start: 25 is outside the bounds [0, 20]"),
        ({"start": [1.0, 2.0]}, "start: 2 numbers, but this shape has 1"),
        ({"start": [1.0, 2.0], "shape": "per_step"}, "start: 2 numbers, but this shape has 6"),
        ({"start": 1.0, "bounds": (3.0, 3.0)}, "bounds: the lower bound 3 must be less"),
        ({"start": 1.0, "shape": Knots(7)}, "shape: 7 knots over 6 steps"),
    ],
)
def test_mistakes_of_guidance(options, said):
    (mistake,) = Guidance(**options).mistakes(STEPS)
    assert mistake.startswith(said)

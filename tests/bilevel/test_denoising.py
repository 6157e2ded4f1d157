"""Training a network under a schedule: the loss, y, and that z is really trained, and which way."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from genbo.bilevel.lower.denoising import Denoising
from genbo.bilevel.training.network_trainer import NetworkContext, NetworkTrainer, TrainingDiverged
from genbo.bilevel.training.penalty import implicit, penalty
from genbo.bilevel.training.schedule_response import ScheduleLevels
from genbo.bilevel.tunables.noise_schedule import NoiseSchedule
from genbo.diffusion.denoising import DenoisingLoss, Minibatch, minibatch
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.unet import Unet
from genbo.diffusion.network import log_snr_of_told
from genbo.diffusion.prediction import Prediction
from genbo.diffusion.process import Condition, process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Batch, Seed
from genbo.schedules.cosine import Cosine
from genbo.schedules.schedule import Schedule, schedule_of
from genbo.schedules.sigmoid import Sigmoid
from tests.bilevel.linear_world import STEPS, Held, LinearWorld, data, quantiles

COSINE = schedule_of(Cosine())
DATA = data(512)[:, None].float()


class Small(torch.nn.Module):
    """A network of (x_t, log-SNR) with two hidden layers."""

    def __init__(self, dtype: torch.dtype = torch.float32, width: int = 32) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [torch.nn.Linear(4, width), torch.nn.SiLU(), torch.nn.Linear(width, width), torch.nn.SiLU()]
            self.body = torch.nn.Sequential(*layers, torch.nn.Linear(width, 1)).to(dtype)

    def forward(self, x_t: Tensor, told: Tensor) -> Tensor:
        at = log_snr_of_told(told)[:, None] / 10
        return self.body(torch.cat([x_t, at, at**2, (3 * at).tanh()], dim=1))  # type: ignore[no-any-return]


def options(**changed: Any) -> Denoising:
    return replace(Denoising(noise_levels="schedule", batch=128, lr=3e-3, warmup=20, ema=0.95), **changed)


def trainer(**changed: Any) -> NetworkTrainer:
    return options(**changed).begin(NetworkContext(Small(), DATA))


def distance(schedule: Schedule, module: torch.nn.Module, of: NetworkTrainer, steps: int = 6, n: int = 64) -> Tensor:
    """Squared Wasserstein distance of samples from the data, from noise that is always the same."""
    process = process_of(of.network(schedule, module), Ddim(steps=steps), Plain(weight=1.0))
    noise = torch.special.ndtri(quantiles(n))[:, None].to(of.data.dtype)
    x = sample(process, Batch(("",) * n, tuple(range(n))), start=noise).flatten()
    return (x.sort().values - data(n).to(x.dtype)).square().mean()


# -- the loss ----------------------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """The posterior mean of N(0, s^2), as whatever prediction is wanted."""

    def __init__(self, prediction: str, std: float = 0.5) -> None:
        super().__init__()
        self.prediction, self.std = prediction, std

    def forward(self, x_t: Tensor, told: Tensor) -> Tensor:
        log_snr = log_snr_of_told(told)[:, None]
        alpha, sigma = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
        x_0 = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * x_t
        return Prediction(self.prediction, x_t, alpha, sigma).output(x_0)


@pytest.mark.parametrize("snr_cap", [None, 5.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("noise_levels", ["broad", "schedule"])
def test_the_loss_of_the_exact_denoiser_is_known(noise_levels, prediction, snr_cap):
    """E |x - E[x | x_t]|^2 = s^2 sigma^2 / (alpha^2 s^2 + sigma^2), in the units of each prediction, by quadrature."""
    n, s = 60_000, 0.5
    generator = torch.Generator().manual_seed(0)
    x = s * torch.randn(n, 1, dtype=torch.float64, generator=generator)
    draws = minibatch(x, n, generator)
    loss = DenoisingLoss(prediction, "log_snr", noise_levels, snr_cap=snr_cap)
    found = loss(Oracle(prediction, s), COSINE, draws).item()

    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    log_snr = 12 - 24 * u if noise_levels == "broad" else COSINE.log_snr(u)[0]
    snr = log_snr.exp()
    of_x = s**2 / (1 + snr * s**2)
    unit = {"sample": 1.0, "epsilon": snr, "v_prediction": 1 + snr}[prediction]
    weight = 1.0 if snr_cap is None else snr.clamp(max=snr_cap) / unit
    assert found == pytest.approx((weight * unit * of_x).mean().item(), rel=0.02)


def test_min_snr_is_the_same_loss_for_every_prediction():
    draws = minibatch(DATA.double(), 64, torch.Generator().manual_seed(0))
    found = []
    for prediction in ("epsilon", "v_prediction", "sample"):
        loss = DenoisingLoss(prediction, noise_levels="schedule")  # type: ignore[arg-type]
        found.append(loss(Oracle(prediction), COSINE, draws).item())
    assert found == pytest.approx([found[0]] * 3, rel=1e-9)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("conditioning", ["log_snr", "index"])
def test_its_derivative_in_the_schedule_is_pathwise(prediction, conditioning):
    draws = minibatch(DATA.double(), 64, torch.Generator().manual_seed(0))
    loss = DenoisingLoss(prediction, conditioning, "schedule", train_steps=50)
    module, tunable = Small(torch.float64), NoiseSchedule(start={"end": 0.9, "start": 0.1, "eps": 0.1})
    first = tunable.first(0).requires_grad_()
    assert torch.autograd.gradcheck(lambda phi: loss(module, tunable.schedule(phi), draws), first, atol=1e-6)


def test_an_index_names_an_entry_of_the_table():
    """The levels that the network is trained on are those at which a sampler of as many steps stops."""
    told = []

    class Telling(torch.nn.Module):
        def forward(self, x_t: Tensor, told_: Tensor) -> Tensor:
            told.append(told_)
            return x_t

    loss = DenoisingLoss("v_prediction", "index", "schedule", train_steps=8)
    at = torch.tensor([1e-9, 0.124, 0.125, 0.126, 0.5, 0.99, 1.0], dtype=torch.float64)
    x = torch.zeros(7, 1, dtype=torch.float64)
    loss(Telling(), COSINE, Minibatch(x, x, at))
    assert told[0].tolist() == [0, 0, 0, 1, 3, 7, 7]
    alpha, sigma, _, index = loss.levels(COSINE, at)
    grid = COSINE.grid(8, told="index", train_steps=8)
    row = 7 - index.long()
    torch.testing.assert_close(grid.time[0][row], index)
    torch.testing.assert_close((grid.alpha_t[0][row], grid.sigma_t[0][row]), (alpha, sigma))


def test_noise_levels_of_a_minibatch_are_spread_evenly():
    for size in (1, 7, 64):
        at = minibatch(DATA, size, torch.Generator().manual_seed(size)).at
        assert ((at > 0) & (at <= 1)).all()
        assert (at * size).ceil().sort().values.tolist() == list(range(1, size + 1))


def test_left_out_labels_become_that_of_no_class():
    labels = torch.arange(512) % 3
    draws = minibatch(DATA, 3000, torch.Generator().manual_seed(0), labels, unlabelled=0.2, none=3)
    assert draws.labels is not None
    counts = draws.labels.bincount(minlength=4) / 3000
    torch.testing.assert_close(counts, torch.tensor([0.8 / 3] * 3 + [0.2]), atol=0.03, rtol=0)
    kept = minibatch(DATA, 3000, torch.Generator().manual_seed(0), labels, unlabelled=0.0).labels
    assert kept is not None and set(kept.tolist()) == {0, 1, 2}


# -- y -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"noise_levels": "broad"},
        pytest.param({"prediction": "epsilon"}, marks=pytest.mark.slow),
        pytest.param({"prediction": "sample", "snr_cap": None}, marks=pytest.mark.slow),
        {"bf16": "on"},
    ],
    ids=repr,
)
def test_training_learns_to_sample(changed):
    """From noise to within a quarter of what an untrained network makes of it."""
    trained = trainer(**changed)
    before = distance(COSINE, trained.average, trained, steps=20).item()
    losses = [trained.train(COSINE, 50, Seed(0).child(k)) for k in range(8)]
    assert losses[-1] < losses[0] and trained.steps == 400
    assert distance(COSINE, trained.average, trained, steps=20).item() < before / 4


def test_a_run_that_was_stopped_is_the_run_that_was_not():
    one, two = trainer(), trainer()
    for k in range(4):
        one.train(COSINE, 5, Seed(0).child(k))
    for k in range(2):
        two.train(COSINE, 5, Seed(0).child(k))
    three = trainer()
    three.load(two.state())
    for k in range(2, 4):
        three.train(COSINE, 5, Seed(0).child(k))
    assert one.steps == three.steps == 20
    for name, value in one.state().items():
        assert torch.equal(value, three.state()[name]), name


@pytest.mark.parametrize("trained", [0, 5])
def test_what_diverges_stops_with_the_weights_from_before(trained):
    one = trainer()
    if trained:
        one.train(COSINE, trained, Seed(0))
    before = one.state()
    one.data = torch.full_like(DATA, float("nan"))
    with pytest.raises(TrainingDiverged, match=r"the training loss is nan after \d+ steps; lower lr \(0.003\)"):
        one.train(COSINE, 3, Seed(1))
    after = one.state()
    assert before.keys() == after.keys() and one.steps == trained
    assert all(torch.equal(before[name], after[name]) for name in before)
    one.data = DATA
    assert math.isfinite(one.train(COSINE, 3, Seed(1)))


def test_weights_warm_up_and_are_averaged():
    one = trainer(warmup=10, ema=0.5)
    start = {k: v.clone() for k, v in one.module.named_parameters()}
    one.train(COSINE, 1, Seed(0))
    moved = max((p - start[name]).abs().max().item() for name, p in one.module.named_parameters())
    assert moved == pytest.approx(one.options.lr / 10, rel=0.05), "Adam's first step is the learning rate"
    for (_, mine), (name, now) in zip(one.average.named_parameters(), one.module.named_parameters(), strict=True):
        torch.testing.assert_close(mine, 0.1 * start[name] + 0.9 * now)
    assert not any(p.requires_grad for p in one.average.parameters()) and not one.average.training


class NothingRead(TorchDispatchMode):
    """Explodes where a tensor is read back from the device, which would stop it and cannot be captured."""

    READS = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.is_nonzero)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket not in self.READS, f"{func} reads from the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("zero_terminal", [False, True])
def test_a_step_reads_nothing_back(zero_terminal):
    one, schedule = trainer(), schedule_of(Cosine(), zero_terminal=zero_terminal)
    with pytest.raises(AssertionError, match="reads"), NothingRead():
        torch.ones(1).item()
    one.train(schedule, 1, Seed(0))
    draws = one.draw(Seed(1))
    with NothingRead():
        one.loss(one.module, schedule, draws).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(one.params, 1.0, foreach=True)
        one.draw(Seed(2))


@pytest.mark.parametrize("noise_levels", ["broad", "schedule"])
def test_the_loss_is_one_graph_for_the_compiler(noise_levels):
    one = trainer(noise_levels=noise_levels)
    compiled = torch.compile(one.loss.__call__, backend="eager", fullgraph=True)
    draws = one.draw(Seed(0))
    torch.testing.assert_close(compiled(one.module, COSINE, draws), one.loss(one.module, COSINE, draws))


def test_mistakes_are_sentences():
    assert Denoising().mistakes() == [] and options(conditioning="index").mistakes() == []
    (mistake,) = Denoising(conditioning="index").mistakes()
    assert "; add noise_levels: schedule" in mistake
    (mistake,) = Denoising(within=(3.0, -3.0)).mistakes()
    assert mistake.startswith("within: ")


# -- z -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> NetworkTrainer:
    """Far from done, in float64: its samples leave something to be wished for."""
    one = options().begin(NetworkContext(Small(torch.float64), DATA.double()))
    one.train(COSINE, 150, Seed(0))
    return one


def flat(module: torch.nn.Module) -> Tensor:
    return torch.nn.utils.parameters_to_vector(module.parameters()).detach()


def answers(trained: NetworkTrainer, **changed: Any) -> ScheduleLevels:
    one = copy.copy(trained)
    one.options = replace(trained.options, **changed)
    tunable = NoiseSchedule(parameters=["start", "tau"])
    return ScheduleLevels(one, tunable.schedule, wanted(tunable, one), Seed(7))


def wanted(tunable: NoiseSchedule, of: NetworkTrainer) -> Callable[[Tensor, torch.nn.Module], Tensor]:
    return lambda q, module: distance(tunable.schedule(q), module, of)


Q = NoiseSchedule(parameters=["start", "tau"]).value(torch.tensor([-1.0, 0.0], dtype=torch.float64))


def test_z_moves_the_way_that_the_upper_objective_wants(trained):
    """Down with a tilt, up with its opposite, against y on the same minibatches; y itself does not move."""
    two, before = answers(trained, z_steps=30, z_refresh=5), trained.state()
    down, y, up = (two.solve(Q, tilt) for tilt in (0.01, 0.0, -0.01))
    value = [two.upper(Q, theta).item() for theta in (down, y, up)]
    assert value[0] < value[1] < value[2]
    module = copy.deepcopy(y).requires_grad_(True)
    slope = torch.autograd.grad(two.upper(Q, module), list(module.parameters()))
    slope = torch.nn.utils.parameters_to_vector(slope)
    assert (flat(down) - flat(y)) @ slope < 0 < (flat(up) - flat(y)) @ slope
    lower = [two.lower(Q, theta).item() for theta in (down, y)]
    assert lower[0] != lower[1]
    assert all(torch.equal(value, trained.state()[name]) for name, value in before.items())


def test_z_moves_by_one_over_gamma(trained):
    two = answers(trained, z_steps=30)
    y = flat(two.solve(Q, 0.0))
    moved = [(flat(two.solve(Q, 1 / gamma)) - y) * gamma for gamma in (1e3, 1e4)]
    assert moved[0].norm() > 0
    torch.testing.assert_close(moved[0], moved[1], rtol=0.05, atol=0.02 * moved[0].abs().max().item())


def test_without_a_tilt_z_is_y_to_the_last_bit(trained):
    two = answers(trained, z_steps=30)
    assert torch.equal(flat(two.solve(Q, 0.0)), flat(two.solve(Q, 0.0)))
    assert not torch.equal(flat(two.solve(Q, 0.0)), flat(trained.average)), "y goes on, too"
    other = replace(two, seed=Seed(8))
    assert not torch.equal(flat(two.solve(Q, 0.0)), flat(other.solve(Q, 0.0)))


def test_gradients_agree_from_one_gamma_to_another(trained):
    """What y and z share cancels: at gamma = 1e2 and 1e4 the indirect part is the same, and not noise times gamma."""
    two = answers(trained, z_steps=20, z_refresh=1)
    near, far = (penalty(two, Q, gamma, symmetric=True) for gamma in (1e2, 1e4))
    assert far.indirect.abs().min() > 0
    assert near.distance(far) < 0.02


def test_broad_training_needs_no_z(trained):
    one = options(noise_levels="broad").begin(NetworkContext(Small(), DATA))
    one.train(COSINE, 20, Seed(0))
    two = replace(answers(trained), trainer=one, wanted=wanted(NoiseSchedule(parameters=["start", "tau"]), one))
    assert two.solve(Q, 0.0) is one.average and not two.coupled
    found = penalty(two, Q, 100.0)
    assert found.indirect.tolist() == [0, 0] and found.direct.abs().min() > 0


def test_enough_steps_of_z_end_at_the_exact_gradient():
    """On the linear world, from the lower level's own minimum and on all of its data at once."""
    world = LinearWorld("log_snr")
    q, draws = world.tunable.first(STEPS), world.draws
    exact = implicit(world, q)

    class OnAllData(NetworkTrainer):
        def draw(self, seed: Seed) -> Minibatch:
            return draws

    def error(steps: int) -> float:
        o = Denoising(noise_levels="schedule", lr=1.0, z_lr=1.0, z_steps=steps, z_refresh=1000, weight_decay=1e-3)
        one = OnAllData(o, NetworkContext(Held(world.solve(q, 0.0)), draws.x))
        one.loss = world.loss

        def of_samples(q: Tensor, module: torch.nn.Module) -> Tensor:
            return distance(world.tunable.schedule(q), module, one, STEPS, 128)

        return penalty(
            ScheduleLevels(one, world.tunable.schedule, of_samples, Seed(0)), q, 1e5, symmetric=True
        ).distance(exact)

    assert error(1) > 0.3, "a few steps say little, however large gamma is"
    assert error(100) < 0.15
    assert error(400) < 0.01


# -- one launch --------------------------------------------------------------------------------------------------------


class Recorded:
    """In place of a CUDA graph: warmed up as that is, then from the same buffers into the same one, tangents lost."""

    def __init__(self, f: Any, keep: Any = lambda: None, restore: Any = None) -> None:
        self.f, self.keep, self.restore = f, keep, restore
        self.known: dict[Any, tuple[list[Tensor], Tensor]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        key = tuple(x.shape for x in inputs)
        if key not in self.known:
            static, kept = [x.detach().clone() for x in inputs], self.keep()
            for _ in range(3):
                output = self.f(*static)
            if self.restore:
                self.restore(kept)
            self.known[key] = static, output.clone()
        static, output = self.known[key]
        for mine, given in zip(static, inputs, strict=True):
            mine.copy_(forward_ad.unpack_dual(given).primal.detach())
        return output.copy_(self.f(*static))


@pytest.mark.parametrize("noise_levels", ["broad", "schedule"])
def test_a_recorded_step_trains_as_one_that_is_not(monkeypatch, noise_levels):
    """Warming up changes nothing, another schedule reaches the recording, and a state that is loaded goes on in it."""
    monkeypatch.setattr("genbo.bilevel.training.network_trainer.Captured", Recorded)
    plain, recorded = trainer(noise_levels=noise_levels), trainer(noise_levels=noise_levels)
    recorded.captures = True
    others = [Cosine(tau=2.0), Cosine(end=0.6, normalised=False), Sigmoid()]
    for one in (plain, recorded):
        one.train(COSINE, 4, Seed(0))
        kept = one.state()
        one.train(schedule_of(others[0]), 3, Seed(1))
        one.load(kept)
        for other in others:
            one.train(schedule_of(other), 3, Seed(2))
        one.train(schedule_of(others[0], zero_terminal=True), 3, Seed(2))
    for (name, mine), theirs in zip(plain.state().items(), recorded.state().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8, msg=name)


def test_a_network_that_is_recorded_is_the_average_as_it_stands(monkeypatch):
    monkeypatch.setattr("genbo.bilevel.training.network_trainer.Captured", Recorded)
    one = trainer()
    one.replayed = Recorded(one._called)
    batch = Batch(("",) * 3, (1, 2, 3))
    for _ in range(2):
        one.train(COSINE, 2, Seed(0).child(one.steps))
        process = process_of(one.network(COSINE), Ddim(steps=4), Plain(weight=1.0))
        assert process.model.replay is one.replayed  # type: ignore[attr-defined]
        with torch.no_grad():
            mine = sample(process, batch)
        theirs = sample(process_of(one.network(COSINE, one.average), Ddim(steps=4), Plain(weight=1.0)), batch)
        torch.testing.assert_close(mine, theirs)


def test_a_state_is_a_copy_of_the_moment_and_made_once():
    one = trainer()
    one.train(COSINE, 2, Seed(0))
    kept = one.state()
    assert all(mine is theirs for mine, theirs in zip(kept.values(), one.state().values(), strict=True))
    as_it_was = {name: x.clone() for name, x in kept.items()}
    one.train(COSINE, 2, Seed(1))
    assert all(x.equal(as_it_was[name]) for name, x in kept.items())
    moved = [name for name, x in one.state().items() if not x.equal(kept[name])]
    assert {name.split(".")[0] for name in moved} == {"module", "average", "adamw", "steps"}
    one.load(kept)
    assert all(x.equal(kept[name]) for name, x in one.state().items())


def test_moments_that_were_stored_plainly_go_on_in_the_order_of_the_weights():
    """A file has no channels-last: the fused step would pair each weight with another's moment."""
    pixels = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    one, other = (options().begin(NetworkContext(Unet(channels=[8]).open().module, pixels)) for _ in range(2))
    one.train(COSINE, 2, Seed(0))
    other.load({name: x.contiguous() for name, x in one.state().items()})
    moments = [(p, other.optimizer.state[p]["exp_avg"]) for p in other.params]
    assert any(not p.is_contiguous() for p, _ in moments)
    assert all(moment.stride() == p.stride() for p, moment in moments)
    one.train(COSINE, 2, Seed(1))
    other.train(COSINE, 2, Seed(1))
    for name, x in one.state().items():
        torch.testing.assert_close(other.state()[name], x, msg=name)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_a_sampler_that_remembers_is_not_shown_the_next_call(monkeypatch, prediction):
    """DPM-Solver++ keeps x_0, which for `sample` is the network's output itself."""
    monkeypatch.setattr("genbo.bilevel.training.network_trainer.Captured", Recorded)
    one = trainer(prediction=prediction)
    one.replayed = Recorded(one._called)
    one.train(COSINE, 20, Seed(0))
    batch = Batch(("",) * 3, (1, 2, 3))
    with torch.no_grad():
        mine, theirs = (
            sample(process_of(one.network(COSINE, module), Dpmpp(steps=5), Plain(weight=1.0)), batch)
            for module in (None, one.average)
        )
    torch.testing.assert_close(mine, theirs)


def test_a_derivative_on_its_way_forwards_is_not_lost_in_a_recording():
    one = trainer()
    one.replayed = Recorded(one._called)
    one.train(COSINE, 5, Seed(0))
    x, told = torch.randn(4, 1, generator=torch.Generator().manual_seed(0)), torch.full((4,), 500.0)
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        seen = [
            forward_ad.unpack_dual(one.network(COSINE, module)(dual, told, Condition({}))).tangent
            for module in (None, one.average)
        ]
    assert seen[0] is not None and seen[1] is not None
    torch.testing.assert_close(*seen)


def test_an_answer_after_a_state_that_never_moved_is_finite(monkeypatch):
    """A recorded step has its moments from the start; those of no step yet are no preconditioner."""
    monkeypatch.setattr("genbo.bilevel.training.network_trainer.Captured", Recorded)
    one, other = trainer(), trainer()
    one.captures = True
    fresh = one.state()
    one.train(COSINE, 3, Seed(0))
    one.load(fresh)
    mine, theirs = (of.answer(COSINE, lambda z: torch.zeros(()), 0.0, 5, Seed(1)) for of in (one, other))
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_the_label_of_no_class_is_the_same_in_training_and_in_sampling():
    """Whatever classes the training share happens to hold."""
    labels = torch.arange(len(DATA)) % 2
    one = options(unlabelled=1.0).begin(NetworkContext(Small(), DATA, labels, ("a", "b", "c")))
    drawn = one.draw(Seed(0)).labels
    assert drawn is not None
    assert set(drawn.tolist()) == {3} == set(one.network(COSINE).unconditional().tensors["labels"].tolist())

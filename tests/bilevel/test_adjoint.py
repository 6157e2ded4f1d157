"""Adjoint matching against what is known on paper: the law, its KL along paths, and what a network may predict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from genbo.bilevel.lower import _measured_law, finetune
from genbo.bilevel.lower.finetune import Finetune
from genbo.bilevel.training.adjoint import Match, shortened
from genbo.bilevel.training.finetuning import Pace, Training
from genbo.bilevel.training.memoryless import level_weights, memoryless, sample_with_path_kl
from genbo.diffusion.adapt import Adapter, adapt, tensors
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.models.gaussian import Gaussian
from genbo.diffusion.path_kl import sample_with_kl
from genbo.diffusion.prediction import Prediction
from genbo.diffusion.process import process_of
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.ddpm import Ddpm
from genbo.diffusion.samplers.dpmpp import Dpmpp
from genbo.diffusion.seed import Seed, batch_of
from genbo.rewards.linear import Linear
from genbo.schedules.grid import grid_of_levels
from tests.bilevel.test_finetune import exactly, process_in
from tests.bilevel.tilted import WORLDS

SEED = Seed(5)


def matched(world, lam: float, steps: int, *, rows: int = 64, training: int = 60):
    """The base, and the process that was trained towards p_lambda, both memoryless in so many steps."""
    base = memoryless(process_in(world.model, steps))
    own = replace(base, model=adapt(base.model, Adapter("full"), SEED))
    loss = Match(base, [world.prompt], [(1.0, world.r2.open())], lam, rows, SEED)
    return base, Training(own, loss, Pace(training, 0.15)).run()


# -- the sampler -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [Ddim(steps=7, eta=1.0), Ddpm(steps=7, variance="small")], ids=["ddim", "ddpm"])
def test_the_memoryless_step_is_the_ancestral_one_where_variance_is_preserved(sampler):
    process = process_of(Gaussian().open(), sampler, Plain(weight=1.0))
    batch = batch_of(["right", "left"], 6, SEED)
    with torch.no_grad():
        torch.testing.assert_close(sample(memoryless(process), batch), sample(process, batch))


def test_more_steps_stop_where_the_own_sampler_would():
    process = process_of(Gaussian().open(), Ddim(steps=4), Plain(weight=2.0))
    fine = memoryless(process, 9)
    torch.testing.assert_close(fine.grid.alpha_t, Gaussian().open().grid(Ddim(steps=9)).alpha_t)
    assert fine.options["weight"].tolist() == [[2.0] * 9] and memoryless(fine) is fine
    a_step = process_of(Gaussian().open(), Ddim(steps=2), Plain(weight=[1.0, 2.0]))
    assert memoryless(a_step, 9).steps == 2  # a weight a step has no place in more steps


# -- the law -----------------------------------------------------------------------------------------------------------

LAWS = [("linear", 1.5, 10), ("mixture", 2.0, 20), ("skewed", 2.0, 20), ("quadratic", 1.0, 20)]


@pytest.mark.parametrize(
    ("name", "lam", "steps"),
    [pytest.param(*law, marks=() if law[0] in ("linear", "skewed") else pytest.mark.slow) for law in LAWS],
)
def test_it_ends_in_the_tilted_law_and_its_path_in_the_law_s_kl(name, lam, steps):
    """E[r2] to a tenth of its spread under a deterministic sampler, its spread to a tenth, the KL to a tenth."""
    world = WORLDS[name]
    base, own = matched(world, lam, steps)
    with torch.no_grad():
        batch = batch_of([world.prompt], 4096, Seed(9))
        found = world.r2.open()(sample(replace(process_in(world.model, 100), model=own.model), batch), []).double()
        kl = sample_with_path_kl(own, base, batch)[1]
    law, exact = world.line.law(lam), exactly(world, lam)
    spread = math.sqrt(world.line.covariance(law, world.line.r2, world.line.r2))
    assert float(found.mean()) == pytest.approx(exact.r2.mean, abs=0.1 * spread)
    assert float(found.std()) == pytest.approx(spread, rel=0.1)
    assert float(kl.mean()) == pytest.approx(exact.kl.mean, rel=0.1)


@pytest.mark.slow
def test_the_weights_of_modes_are_those_of_the_law():
    world, lam = WORLDS["mixture"], 2.0
    _, own = matched(world, lam, 30, rows=256, training=60)
    model, var = world.model, world.model.std**2
    mine = torch.tensor([label == world.prompt for label in model.labels])
    means, slope = torch.tensor(model.means, dtype=torch.float64), world.r2.direction
    shift = torch.as_tensor(slope, dtype=torch.float64).expand(means.shape[1]) / lam
    exact = (torch.tensor(model.weights).double().log() + means @ shift).where(mine, -torch.inf).softmax(0)
    found = own.model.weights["log_weights"].detach().where(mine, -torch.inf).softmax(0)
    torch.testing.assert_close(found[mine], exact[mine], atol=0.03, rtol=0)
    torch.testing.assert_close(
        own.model.weights["means"].detach()[mine], (means + var * shift)[mine], atol=0.05, rtol=0
    )


def test_noise_falls_as_paths_are_added():
    """The gradient at the start: its spread over seeds is halved by four times the paths."""
    world = WORLDS["mixture"]
    base = memoryless(process_in(world.model, 8))
    own = replace(base, model=adapt(base.model, Adapter("full"), SEED))

    def spread(rows: int) -> float:
        found = []
        for k in range(40):
            for weight in own.model.weights.values():
                weight.grad = None
            Match(base, [world.prompt], [(1.0, world.r2.open())], 2.0, rows, Seed(k)).backward(own, 0)
            found.append(own.model.weights["means"].grad.flatten())
        return float(torch.stack(found).var(0).sum().sqrt())

    assert spread(16) / spread(64) == pytest.approx(2, rel=0.35)


def test_the_integral_over_log_snr_is_the_kl_where_a_chain_of_few_steps_has_more():
    """N(0, 1) moved to N(2/3, 1): 2/9 nats, at ten steps."""
    world = WORLDS["linear"]
    base = memoryless(process_in(world.model, 10))
    own = replace(base, model=adapt(base.model, Adapter("full"), SEED))
    with torch.no_grad():
        own.model.weights["means"].fill_(2 / 3)
        batch = batch_of([world.prompt], 64, SEED)
        (x, kl), (same, chain) = (follow(own, base, batch) for follow in (sample_with_path_kl, sample_with_kl))
    assert torch.equal(x, same)
    assert float(kl.mean()) == pytest.approx(2 / 9, rel=0.005) and chain.mean() > 2 * kl.mean()
    with pytest.raises(ValueError, match="two memoryless processes"):
        sample_with_path_kl(process_in(world.model, 10), base, batch)


# -- what a network predicts -------------------------------------------------------------------------------------------


class Spoken:
    """The Gaussian world in another prediction; a flow's levels are alpha = 1 - sigma."""

    def __init__(self, world, kind: str) -> None:
        self.world, self.prediction = world, kind
        self.shape, self.device, self.dtype, self.decode = world.shape, world.device, world.dtype, world.decode

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        return self.world.weights

    def encode(self, prompts):
        return self.world.encode(prompts)

    def unconditional(self):
        return self.world.unconditional()

    def adapted(self, adapter, seed):
        return Spoken(self.world.adapted(adapter, seed), self.prediction)

    def levels(self, log_snr):
        """alpha and sigma."""
        alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        size = alpha + sigma if self.prediction == "flow_prediction" else 1.0
        return alpha / size, sigma / size

    def grid(self, sampler):
        times = torch.linspace(-8, 8, sampler.steps, dtype=torch.float64)[None]
        alpha, sigma = self.levels(times)
        end = torch.ones_like(alpha[:, :1])
        return grid_of_levels(times, torch.cat([alpha, end], 1), torch.cat([sigma, 0 * end], 1))

    def __call__(self, x_t, time, condition):
        alpha, sigma = (level.reshape(-1, 1, 1, 1) for level in self.levels(time))
        x_0 = self.world(x_t / (alpha**2 + sigma**2).sqrt(), time, condition)
        return Prediction(self.prediction, x_t, alpha, sigma).output(x_0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
def test_what_is_predicted_makes_no_difference(kind):
    """Every number ends where that of a network ends that predicts x_0."""
    options, reward = Gaussian(means={"a": [0.3]}, std=0.8), [(1.0, Linear().open())]

    def trained(model) -> dict[str, torch.Tensor]:
        base = memoryless(process_of(model, Ddim(steps=8), Plain(weight=1.0), batch=20_000))
        own = replace(base, model=adapt(model, Adapter("full"), SEED))
        return tensors(Training(own, Match(base, ["a"], reward, 1.0, 16, SEED), Pace(60, 0.15)).run().model)

    plain = trained(Spoken(options.open(), "sample"))
    assert plain["means"].item() == pytest.approx(0.3 + 0.64, abs=0.05)
    for name, value in trained(Spoken(options.open(), kind)).items():
        torch.testing.assert_close(value, plain[name], atol=1e-4, rtol=0)


# -- networks ----------------------------------------------------------------------------------------------------------


def test_long_adjoints_are_shortened_in_their_own_direction():
    x = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.1]])
    torch.testing.assert_close(shortened(x, 4.0), torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.1]]))
    assert shortened(x, math.inf) is x


def test_the_levels_weights_are_the_trapezoidal_rule():
    grid = Gaussian(log_snr_max=4.0).open().grid(Ddim(steps=5))
    torch.testing.assert_close(level_weights(grid), torch.tensor([1.0, 2, 2, 2, 2]).double())


@pytest.fixture(scope="module")
def tiny(tiny_sd):
    process = process_of(Diffusers(pretrained=str(tiny_sd), device="cpu").open(), Dpmpp(steps=4), Plain(weight=1.5))
    return process, ("a dog", "a cat"), [(1.0, Linear(direction=0.01).open())]


def test_a_tuned_network_draws_more_of_what_was_rewarded(tiny):
    """On fresh seeds under the job's own sampler, and its training is left and taken up bit for bit."""
    process, prompts, reward = tiny
    options = Finetune(method="adjoint", adapter="full", steps=6, batch=6, lr=3e-3, path_steps=5)

    def scores(model) -> torch.Tensor:
        with torch.no_grad():
            own = replace(process, model=model)
            return reward[0][1](process.model.decode(sample(own, batch_of(prompts, 24, Seed(77)))), [])

    lam = float(scores(process.model).std()) / 2
    whole = options.adjoint(process, prompts, reward, lam, SEED)
    for moment in whole:
        if moment.step == 3:
            kept = {name: value.clone() for name, value in whole.state().items()}
    again = options.adjoint(process, prompts, reward, lam, SEED, state=kept).run()
    assert all(torch.equal(w, again.model.weights[name]) for name, w in whole.model.weights.items())
    gain = scores(whole.model) - scores(process.model)
    assert gain.mean() > 3 * gain.std() / 24**0.5


def test_the_lower_level_may_be_solved_by_it(monkeypatch):
    """As a solver of laws, drawn by the job's own sampler."""
    monkeypatch.setattr(finetune, "WORLD_LEVELS", 10)
    monkeypatch.setattr(_measured_law, "WORLD_STEPS", 60)
    monkeypatch.setitem(finetune.WORLD_ROWS, "adjoint", 32)
    world, lam = WORLDS["linear"], 1.5
    process, r = process_in(world.model, 60), [(1.0, world.r2.open())]
    solver = Finetune(method="adjoint", samples=256, steps=30).solver(process, [world.prompt], r, r, SEED, None)
    law, exact = solver(lam), exactly(world, lam)
    assert law.r2.mean == pytest.approx(exact.r2.mean, abs=0.15)
    assert law.kl.mean == pytest.approx(exact.kl.mean, rel=0.2)
    assert solver.tuned(lam).sampler == process.sampler

"""Whether genbo is ahead of search: five problems, three budgets, several seeds, at equal work.

    python -m benchmarks.ahead run --problem guidance --out guidance.jsonl [--seeds 8] [--device cuda] [--workers 8]
    python -m benchmarks.ahead table guidance.jsonl ...

`run` tunes one problem by every method, each at 1/4, 1/2 and the whole of its example's budget of work (image forwards
plus twice the backwards). Every answer is scored on the same fresh samples, many more than a run has: of the tuning
prompts, which is what a tuner is asked to find the best value for, and of the held-out prompts. `table` prints the gain
over the start on the tuning prompts: its mean and its worst over the seeds, the mean regret to the best answer of all,
and the mean gain on the held-out prompts. Runs that are in the file already are not run again. Where every seed has a
network of its own, an answer's regret is to the best answer of the same seed.

An answer of one number is better judged by the true curve (`benchmarks.ahead_curve`): `run --unjudged`, then
`table --curve`. The methods that end in "to 14" and the like have other bounds, so that the points of a grid lie
elsewhere: whether one of them happens to lie at the optimum is luck, which the mean over the bounds takes out.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).parents[1]
SHARES = (0.25, 0.5, 1.0)
SEARCHES = ("grid", "random", "tpe", "gp", "cmaes")
Line = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A way to tune: overrides of the example for genbo's own, or a searcher with its trials."""

    name: str
    overrides: tuple[str, ...] = ()
    searcher: str | None = None
    trials: int | None = None


@dataclass(frozen=True)
class Contested:
    """A problem: an example, what is set otherwise, and genbo's own methods on it."""

    example: str
    overrides: tuple[str, ...] = ()
    own: tuple[Method, ...] = (Method("genbo"),)
    searches: tuple[Method, ...] = tuple(Method(name, searcher=name) for name in SEARCHES)
    samples: int = 1024  # held out


def knots(count: int, samples: int, steps: int, *more: str, name: str) -> Method:
    """The example with so many knots, and with adam unless the optimizer is named."""
    shape = f"tune.guidance.shape={{knots: {count}}}"
    return Method(name, (shape, "optimizer=adam", f"budget.samples={samples}", f"budget.steps={steps}", *more))


def to(top: float) -> str:
    """The upper bound of one guidance weight."""
    return f"tune.guidance.bounds=[0, {top}]"


NEWTON = "optimizer=newton"
ONE = tuple(Method(kind, searcher=kind) for kind in SEARCHES if kind != "cmaes")
RANGES = (14, 18, 22, 26)  # of one guidance weight, beside the example's 20: so the points of a grid lie elsewhere
CONTINUOUS = tuple(Method(kind, searcher=kind) for kind in SEARCHES if kind != "grid")
TEN = "tune.guidance.shape=per_step"
WIDE = "estimator={kind: zeroth_order, h: 0.5}"
PROBLEMS = {
    "guidance": Contested(
        "guidance.yaml",
        ("evaluate.judges=[]",),
        own=(
            Method("adam"),
            Method("newton", (NEWTON,)),
            Method("newton, h 0.5", (NEWTON, WIDE)),
            *(Method(f"adam, to {top}", (to(top),)) for top in RANGES),
            *(Method(f"newton, to {top}", (NEWTON, to(top))) for top in RANGES),
            *(Method(f"newton, h 0.5, to {top}", (NEWTON, WIDE, to(top))) for top in RANGES),
        ),
        searches=(*ONE, *(Method(f"grid, to {top}", (to(top),), "grid") for top in RANGES)),
    ),
    "per_step": Contested(
        "guidance-per-step.yaml",
        own=(
            Method("2 knots, newton"),
            knots(2, 32, 20, name="2 knots, adam"),
            knots(3, 27, 16, NEWTON, name="3 knots, newton"),
            knots(4, 20, 16, NEWTON, name="4 knots, newton"),
            Method("10 weights, reverse mode", (TEN, "estimator=reverse_mode", "optimizer={kind: adam, lr: 0.15}")),
        ),
        searches=(
            *(Method(f"{kind}, 10 weights", (TEN,), kind) for kind in SEARCHES if kind != "grid"),
            *(Method(f"{kind}, 2 knots", (), kind) for kind in SEARCHES),
            Method("gp, 2 knots, 32 trials", (), "gp", 32),
        ),
    ),
    "timesteps": Contested(
        "timesteps.yaml", own=(Method("adam"), Method("newton", (NEWTON,))), searches=CONTINUOUS, samples=256
    ),
    "digits": Contested(
        "noise-schedule-digits.yaml",
        own=(
            Method("auto"),
            Method("adam", ("optimizer=adam",)),
            Method("newton", (NEWTON,)),
            Method("newton, 48 x 32", (NEWTON, "budget.steps=48", "budget.samples=32")),
            Method("newton, 24 x 64", (NEWTON, "budget.steps=24", "budget.samples=64")),
        ),
        searches=CONTINUOUS,
        samples=2048,
    ),
}


TRAINS = ("digits",)  # problems with a network of their own for every seed


def methods_of(problem: Contested) -> dict[str, Method]:
    return {method.name: method for method in (*problem.own, *problem.searches)}


# -- one run -----------------------------------------------------------------------------------------------------------


def job_of(name: str, method: Method, share: float, seed: int, device: str) -> Any:
    """The job of one run: the example's own tuner, or a searcher with the work that the example has."""
    from genbo.cli.job.job import read_job
    from genbo.cli.plan.entrants import entrants_of

    problem = PROBLEMS[name]
    path, base = ROOT / "examples" / problem.example, [*problem.overrides, f"model.device={device}", f"seed={seed}"]
    nowhere, usual = Path("unused"), read_job(path, base)
    work = entrants_of(usual, ["random"], nowhere, share=share).work
    varied = read_job(path, [*base, *method.overrides])
    if method.searcher is None:
        return entrants_of(varied, ["random"], nowhere, share=share, work=work).each[0].job
    found = entrants_of(varied, [method.searcher], nowhere, trials=method.trials, work=work)
    return found.each[1].job


def answer(job: Any, loaded: Any) -> Line:
    """What one run ends at, its work and its time."""
    from genbo.bilevel.loop import begin
    from genbo.cli.plan.counts import plan
    from genbo.cli.plan.entrants import work_of
    from genbo.cli.report.summary import tuned_of
    from genbo.cli.stages.ascent import record_of, steps_of
    from genbo.cli.stages.build import assemble
    from genbo.cli.stages.context import names_of

    a = assemble(job, loaded)
    _train(a)
    names, began = names_of(a), time.monotonic()
    records = [record_of(step, a, names, time.monotonic() - began) for step in steps_of(a, begin(a.problem))]
    phi = a.problem.settled(tuned_of(a.problem, records).phi)
    cost = records[-1]["cost"]
    work = cost["image_forwards"] + 2 * cost["image_backwards"] - work_of(plan(job).training)
    return {
        "phi": phi.tolist(),
        "sampled": a.problem.spoken(phi),
        "work": work,
        "elapsed_s": time.monotonic() - began,
        "steps": job.budget.steps,
        "samples": job.budget.samples,
        "path": [record["phi"] for record in records] if job.search is None else None,
        "start": a.problem.first().tolist(),
    }


def _train(a: Any) -> None:
    """The network of a job that has one of its own, as `genbo tune` trains it."""
    learning = a.problem.learning
    while learning is not None and learning.trainer.steps < learning.trainer.options.pretrain:
        trainer = learning.trainer
        block = min(200 - trainer.steps % 200, trainer.options.pretrain - trainer.steps)
        trainer.train(learning.start, block, a.seed.child("network").child(trainer.steps))


class Judge:
    """Scores answers on the held-out samples that all methods share; what the start gets there is drawn once."""

    def __init__(self, name: str, device: str, loaded: Any) -> None:
        self.name, self.device, self.loaded = name, device, loaded
        self.known: dict[Any, Any] = {}

    def __call__(self, method: Method, seed: int, line: Line) -> Line:
        """The gain of an answer on fresh samples of both lists of prompts, each with its standard error."""
        import torch

        problem, sets = self._problem(method, seed)
        weights = problem.reward_weights
        phi, found = torch.tensor(line["phi"], dtype=torch.float64), {}
        for name, (batch, start) in sets.items():
            gain = weights @ (problem.scores(phi[None], batch) - start)[: len(weights), 0]
            found |= {name: gain.mean().item(), f"{name}_se": (gain.std() / len(gain) ** 0.5).item()}
        return found

    def _problem(self, method: Method, seed: int) -> Any:
        """The judge's problem with the scores of the start; a network in training is another for every seed."""
        from genbo.cli.stages.build import assemble
        from genbo.diffusion.seed import Seed, batch_of

        trains = self.name in TRAINS
        key = (method.overrides, seed if trains else None)
        if key not in self.known:
            a = assemble(job_of(self.name, method, 1.0, seed, self.device), self.loaded)
            _train(a)
            judge, samples = a.judge, PROBLEMS[self.name].samples
            if a.problem.learning is not None:
                learning = a.problem.learning
                judge = judge.with_model(learning.trainer.network(learning.start))
            batches = {"gain": a.prompts, "held_out_gain": a.held_out}
            drawn = {
                n: batch_of(p, samples, Seed(12345).child(n)) for n, p in batches.items() if not trains or n == "gain"
            }
            self.known[key] = judge, {n: (b, judge.scores(judge.first()[None], b)) for n, b in drawn.items()}
        return self.known[key]


# -- all runs ----------------------------------------------------------------------------------------------------------


def wanted(arguments: argparse.Namespace) -> list[tuple[str, float, int]]:
    known = methods_of(PROBLEMS[arguments.problem])
    names = arguments.methods or list(known)
    keys = [(m, share, seed) for seed in range(arguments.seeds) for share in arguments.shares for m in names]
    done = {(x["method"], x["share"], x["seed"]) for x in lines_of(arguments.out)}
    return [key for key in keys if key not in done]


def lines_of(place: Path) -> list[Line]:
    return [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []


def _worker(task: tuple[str, str, bool, list[tuple[str, float, int]], float]) -> list[Line]:
    """A part of the runs, in a process of its own, until the clock says stop."""
    import torch

    from genbo.cli.stages.build import Loaded

    torch.set_num_threads(1)
    name, device, judged, keys, until = task
    loaded, found = Loaded(), []
    judge = Judge(name, device, loaded) if judged else None
    for method_name, share, seed in keys:
        if time.time() > until:
            break
        method = methods_of(PROBLEMS[name])[method_name]
        line = {"problem": name, "method": method_name, "share": share, "seed": seed}
        try:
            line |= answer(job_of(name, method, share, seed, device), loaded)
            line |= judge(method, seed, line) if judge else {}
        except Exception as problem:  # the table says what failed; the other runs go on
            line["failed"] = f"{type(problem).__name__}: {problem}"
        found.append(line)
    return found


def run(arguments: argparse.Namespace) -> None:
    keys, until = wanted(arguments), time.time() + arguments.minutes * 60
    parts = [keys[k :: arguments.workers] for k in range(arguments.workers)]
    judged = not arguments.unjudged
    tasks = [(arguments.problem, arguments.device, judged, part, until) for part in parts if part]
    with multiprocessing.get_context("spawn").Pool(max(1, len(tasks))) as pool:
        for lines in pool.imap_unordered(_worker, tasks):
            with arguments.out.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)


# -- the table ---------------------------------------------------------------------------------------------------------


def rows(lines: Sequence[Line]) -> Iterator[str]:
    """A row of the table a problem, a share and a method."""
    fine = [line for line in lines if "gain" in line]
    best = {key: _best([x for x in fine if _world(x) == key]) for key in {_world(x) for x in fine}}
    head = (
        "problem",
        "budget",
        "method",
        "trials x samples",
        "runs",
        "mean gain",
        "worst",
        "mean regret",
        "held out",
        "s",
    )
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    keys = sorted({(x["problem"], x["share"], x["method"]) for x in fine})
    for problem, share, method in keys:
        here = [x for x in fine if (x["problem"], x["share"], x["method"]) == (problem, share, method)]
        gains = [x["gain"] for x in here]
        regret, seconds = fmean(best[_world(x)] - x["gain"] for x in here), fmean(x["elapsed_s"] for x in here)
        size = f"{here[0]['steps']} x {here[0]['samples']}"
        held_out = fmean(x.get("held_out_gain", x["gain"]) for x in here)
        figures = f"{fmean(gains):.4f} | {min(gains):.4f} | {regret:.4f} | {held_out:.4f} | {seconds:.1f}"
        yield f"| {problem} | {share:g} | {method} | {size} | {len(here)} | {figures} |"
    for line in lines:
        if "failed" in line:
            yield f"failed: {line['problem']} {line['method']} {line['share']} {line['seed']}: {line['failed'][:200]}"


def _world(line: Line) -> tuple[str, int | None]:
    """What answers are compared within: where a network is trained, every seed has one of its own."""
    return line["problem"], line["seed"] if line["problem"] in TRAINS else None


def _best(lines: Sequence[Line]) -> float:
    """The highest gain of any single answer, or of any there is, where the true curve is known."""
    return max(max(line["gain"], line.get("best", line["gain"])) for line in lines)


def by_curve(lines: Sequence[Line], place: Path) -> list[Line]:
    """The same runs, with gains by the true curve."""
    from benchmarks.ahead_curve import read

    curve = read(place)
    value, (_, top) = curve.smooth(), curve.best()
    found = []
    for line in lines:
        if "failed" in line:
            found.append(line)
            continue
        start = value(line["start"][0])
        found.append({**line, "gain": value(line["phi"][0]) - start, "best": top - start})
    return found


def table(arguments: argparse.Namespace) -> None:
    lines = [line for file in arguments.files for line in lines_of(file)]
    print("\n".join(rows(by_curve(lines, arguments.curve) if arguments.curve else lines)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("--problem", choices=list(PROBLEMS), required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--methods", nargs="+")
    one.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    one.add_argument("--seeds", type=int, default=8)
    one.add_argument("--device", default="cpu")
    one.add_argument("--workers", type=int, default=1)
    one.add_argument("--minutes", type=float, default=1e6)
    one.add_argument("--unjudged", action="store_true", help="leave the judging to the table's --curve")
    one.set_defaults(call=run)
    two = commands.add_parser("table")
    two.add_argument("files", nargs="+", type=Path)
    two.add_argument("--curve", type=Path, help="of benchmarks.ahead_curve, which then gives the gains")
    two.set_defaults(call=table)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()

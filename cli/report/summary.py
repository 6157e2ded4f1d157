"""What a run found, as one object: `report.json`, from which `genbo show` and the report are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from genbo.cli.job import catalog
from genbo.cli.report import number_format, root_words
from genbo.cli.run.layout import SCHEMA
from genbo.cli.run.versions import version

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from genbo.bilevel.problem import Problem
    from genbo.bilevel.protocols import Tunable
    from genbo.bilevel.root_estimate import Answer
    from genbo.bilevel.verdict import Comparison
    from genbo.cli.report.held_out_side import Side
    from genbo.cli.report.lambda_summary import Searched

Document = dict[str, Any]
CLEAR = 2.0  # standard errors from which a gradient is told from noise
NEAR = 0.01  # of the range: nearer than this is "at the bound"
FEW_PROMPTS = 10
NAMED, LONGEST = 3, 60  # prompts that a sentence names, and characters of each


@dataclass(frozen=True)
class Names:
    rewards: tuple[str, ...]
    constraints: tuple[str, ...]
    judges: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tuned:
    """The answer in phi, (P,) each; the error is None where the path does not tell it."""

    phi: Tensor
    se: list[float | None]
    method: str  # root | mean | start | last | curve
    interval: list[tuple[float, float] | None] | None = None  # of 95 %
    kinds: list[str] | None = None  # interior | lower_bound | upper_bound | undetermined | unsettled
    answer: Document | None = None  # the key of report.json


@dataclass(frozen=True)
class HeldOut:
    """Both sides of the evaluation, sample by sample."""

    start: Side
    tuned: Side
    prompts: tuple[str, ...]
    fresh_prompts: bool


@dataclass(frozen=True)
class Findings:
    """All that the report is made of."""

    problem: Problem
    names: Names
    records: Sequence[Mapping[str, Any]]
    tuned: Tuned
    held_out: HeldOut | None
    cost: Mapping[str, float]
    planned: Mapping[str, float]
    estimator: Mapping[str, Any]
    job: Document
    environment: Document
    reproduce: str
    status: str = "done"
    reason: str | None = None
    notes: Sequence[str] = field(default_factory=tuple)
    search: Searched | None = None  # where lambda was searched for
    left_out: Sequence[str] = ()  # prompts of the evaluation's list that are tuned on too


def document_of(found: Findings) -> Document:
    """`report.json`."""
    held_out, rewards, keep = found.search.compared() if found.search else _compared(found)
    judges = found.search.opinions() if found.search else _opinions(found)
    if held_out is not None:
        held_out["left_out"] = list(found.left_out)
    document: Document = {
        "schema": SCHEMA,
        "genbo": version(),
        "status": found.status,
        "reason": found.reason,
        "verdict": None if held_out is None else held_out["verdict"],
        "headline": "",
        "phi": _phi(found),
        "answer": found.tuned.answer,
        "held_out": held_out,
        "rewards": rewards,
        "keep": keep,
        "judges": judges,
        "cost": {**found.cost, "planned": dict(found.planned)},
        "estimator": dict(found.estimator),
        "steps": [dict(r) for r in found.records],
        "search": found.search.document() if found.search else None,
        "trust": [],
        "use": {},
        "job": found.job,
        "environment": found.environment,
        "reproduce": found.reproduce,
    }
    document["headline"] = found.search.headline(document) if found.search else headline(document)
    said = found.search.trust(document) if found.search else trust(document)
    document["trust"] = [*said, *(remark("note", text) for text in found.notes)]
    return document


# -- the answer ----------------------------------------------------------------------------------------------


def tuned_of(problem: Problem, records: Sequence[Mapping[str, Any]]) -> Tuned:
    """phi from the usable steps of the path, with its error bar carried through the link by its slope."""
    from genbo.bilevel.found import found

    usable = [r for r in records if r["status"] == "ok"]
    if not usable:
        return Tuned(problem.first(), [None] * problem.parameters, "start")
    width = max(r.get("width", 0.0) for r in usable)  # of journals before it was written: none is taken back
    here = found(problem, *(_column(usable, name) for name in ("u", "grad", "grad_se")), width=width)
    intervals = [(low, high) if math.isfinite(high - low) else None for low, high in here.interval.tolist()]
    document = root_words.document_of(here, root_words.labels_of(problem))
    return Tuned(here.phi, _finite(here.se), here.method, intervals, list(here.kinds), document)


def last_good(problem: Problem, records: Sequence[Mapping[str, Any]]) -> Tuned:
    """phi at the last step whose numbers were finite."""
    usable = [r for r in records if r["status"] != "non_finite"]
    nothing: list[float | None] = [None] * problem.parameters
    if not usable:
        return Tuned(problem.first(), nothing, "start")
    return Tuned(problem.value(_column(usable, "u")[-1]), nothing, "last")


def _column(records: Sequence[Mapping[str, Any]], name: str) -> list[torch.Tensor]:
    import torch

    rows = [[math.nan if x is None else x for x in record[name]] for record in records]
    return [torch.tensor(row, dtype=torch.float64) for row in rows]


def _through_link(problem: Problem, found: Answer) -> list[float | None]:
    import torch

    from genbo.bilevel.found import through_link

    slope = torch.autograd.functional.jacobian(problem.value, found.u)  # (P, P), diagonal but for times
    return _finite(through_link(slope, found))


def _finite(numbers: Tensor) -> list[float | None]:
    return [x if math.isfinite(x) else None for x in numbers.tolist()]


def _phi(found: Findings) -> Document:
    problem = found.problem
    first, phi = problem.first(), found.tuned.phi
    pieces, at = {}, 0
    for tunable, size in zip(problem.tunables, problem.sizes, strict=True):
        here = slice(at, at + size)
        se = found.tuned.se[here]
        interval, kinds = ((x or [None] * len(phi))[here] for x in (found.tuned.interval, found.tuned.kinds))
        tuned = tunable.spoken(phi[here])
        if isinstance(tuned, list):  # numbers that stay where they start are spoken first
            stay = len(tuned) - size
            se, interval, kinds = [*[0.0] * stay, *se], [*[None] * stay, *interval], [*["fixed"] * stay, *kinds]
        bounds = getattr(tunable, "bounds", None)
        pieces[tunable.name] = {
            "start": tunable.spoken(first[here]),
            "tuned": tuned,
            "se": se if isinstance(tuned, list) else se[0],
            "interval": interval if isinstance(tuned, list) else interval[0],
            "kind": kinds if isinstance(tuned, list) else kinds[0],
            "bounds": list(bounds) if isinstance(bounds, Sequence) and bounds else None,
            **_over_steps(tunable, problem.process.steps, first[here], phi[here]),
        }
        at += size
    return pieces


def _over_steps(tunable: Tunable, steps: int, first: Tensor, phi: Tensor) -> Document:
    """The values that the sampler sees, one a step, where the tunable is a schedule; or where its steps stop."""
    labels = {"labels": tunable.labels} if tunable.labels else {}
    sides = {"start": tunable.shown(first, steps), "tuned": tunable.shown(phi, steps)}
    return {**labels, **{f"{side}_{name}": values for side, shown in sides.items() for name, values in shown.items()}}


# -- start against tuned -------------------------------------------------------------------------------------


def _compared(found: Findings) -> tuple[Document | None, Document, Document]:
    import torch

    from genbo.bilevel.verdict import compare

    sides, problem = found.held_out, found.problem
    if sides is None:
        return None, {}, {}
    weights = torch.tensor([weight for weight, _ in problem.rewards], dtype=torch.float64)
    start, tuned = sides.start.scores.double(), sides.tuned.scores.double()
    total = compare(
        weights @ start[: len(weights)],
        weights @ tuned[: len(weights)],
        sides.prompts,
        fresh_prompts=sides.fresh_prompts,
    )
    scored = len(weights) + len(problem.constraints)
    of_row = [
        plain(compare(a, b, sides.prompts, fresh_prompts=sides.fresh_prompts))
        for a, b in zip(start[:scored], tuned[:scored], strict=True)
    ]
    gains = weights @ (tuned - start)[: len(weights)]
    held_out = {
        **plain(total),
        "fresh_prompts": sides.fresh_prompts,
        "by_prompt": _by_prompt(sides.prompts, gains.tolist()),
    }
    rewards = {
        name: {"weight": weight, **row}
        for name, (weight, _), row in zip(found.names.rewards, problem.rewards, of_row, strict=False)
    }
    return held_out, rewards, _kept(found, of_row[len(weights) :])


def _opinions(found: Findings) -> Document:
    """What each judge says of the same images, by its name."""
    from genbo.bilevel.verdict import compare

    sides, names = found.held_out, found.names.judges
    if sides is None or not names:
        return {}
    rows = zip(*(side.scores.double()[-len(names) :] for side in (sides.start, sides.tuned)), strict=True)
    return {
        name: plain(compare(a, b, sides.prompts, fresh_prompts=sides.fresh_prompts))
        if a.isfinite().all() and b.isfinite().all()
        else unjudged()
        for name, (a, b) in zip(names, rows, strict=True)
    }


def plain(compared: Comparison) -> Document:
    shape = compared.shape
    worst, difference = shape.worst
    return {
        "verdict": compared.verdict,
        "start": compared.start,
        "tuned": compared.tuned,
        "difference": compared.difference,
        "interval": list(compared.interval),
        "samples": compared.samples,
        "prompts": compared.prompts,
        "counted": compared.groups,
        "gained": shape.gained,
        "lost": shape.lost,
        "unchanged": shape.unchanged,
        "median": shape.median,
        "worst": {"prompt": worst, "difference": difference},
        "ruined": [{**vars(prompt), "interval": list(prompt.interval)} for prompt in shape.ruined],
    }


def unjudged(reason: str = "its score of a held-out image is not a finite number") -> Document:
    """The row of a judge that can say nothing."""
    numbers = {"start": None, "tuned": None, "difference": None, "interval": [None, None]}
    return {"verdict": None, "reason": reason, **numbers}


def _by_prompt(prompts: Sequence[str], gains: Sequence[float]) -> list[Document]:
    groups: dict[str, list[float]] = {}
    for prompt, gain in zip(prompts, gains, strict=True):
        groups.setdefault(prompt, []).append(gain)
    means = [{"prompt": p, "difference": sum(g) / len(g), "samples": len(g)} for p, g in groups.items()]
    return sorted(means, key=lambda row: row["difference"])


def _kept(found: Findings, rows: Sequence[Document]) -> Document:
    """Each constraint against its level; broken only where that is measured, not where it is noise.

    A level of the start's is told by differences, on the same samples; one that is a number by the tuned samples alone.
    """
    from genbo.bilevel.verdict import compare

    sides, constraints = found.held_out, found.problem.constraints
    assert sides is not None
    tuned = sides.tuned.scores[len(found.problem.rewards) :][: len(constraints)].double()
    kept = {}
    for name, constraint, row, scores in zip(found.names.constraints, constraints, rows, tuned, strict=True):
        level = constraint.at_least
        if constraint.relative_to_start:
            gap, most = row["difference"] - level, row["interval"][1] - level
            level += row["start"]
        else:
            own = compare(0 * scores + level, scores, sides.prompts, fresh_prompts=sides.fresh_prompts)
            gap, most = own.difference, own.interval[1]
        kept[name] = {**row, "at_least": level, "gap": gap, "held": gap >= 0, "broken": most < 0}
    return kept


# -- in words ------------------------------------------------------------------------------------------------


def title(name: str) -> str:
    return (name[:1].upper() + name[1:]).replace("_", " ")


def instead(name: str, value: Mapping[str, Any]) -> str:
    """`Guidance 6.31 ± 0.42 instead of 1.00`, or of a few numbers each by its name."""
    if labels := value.get("labels"):
        errors = value["se"] or [None] * len(labels)
        tuned = number_format.named(labels, value["tuned"], errors)
        return f"{title(name)} {tuned} instead of {number_format.named(labels, value['start'])}"
    tuned, start = number_format.spoken(value["tuned"], value["se"]), number_format.spoken(value["start"])
    return f"{title(name)} {tuned}{root_words.beside(value)} instead of {start}"


def headline(document: Document) -> str:
    """The verdict in one plain sentence, with its figures."""
    changes = ", ".join(instead(name, value) for name, value in document["phi"].items())
    held_out = document["held_out"]
    if document["status"] != "done" or held_out is None:
        return f"{changes}, and no verdict: {document['reason'] or 'the run has not ended'}."
    name = next(iter(document["rewards"])) if len(document["rewards"]) == 1 else "the weighted reward"
    gain = number_format.change(held_out["difference"], held_out["interval"])
    on = number_format.plural(held_out["samples"], "held-out image" if held_out["fresh_prompts"] else "fresh sample")
    broken = [name for name, kept in document["keep"].items() if kept["broken"]]
    joint = "but" if held_out["verdict"] == "better" else "and"
    fell = f", {joint} {' and '.join(broken)} fell below its level" if broken else ""
    return f"{changes}: {name} {gain} on {on}: {opinions(held_out['verdict'], name, document['judges'])}{fell}."


def opinions(verdict: str, name: str, judges: Mapping[str, Mapping[str, Any]]) -> str:
    """`better`, or with judges `better by clip; by emoji-judge no measurable difference`."""
    if not judges:
        return verdict
    agree = [judge for judge, row in judges.items() if row["verdict"] == verdict]
    others = [f"by {judge} {row['verdict'] or 'no verdict'}" for judge, row in judges.items() if judge not in agree]
    return "; ".join([f"{verdict} by {' and by '.join([name, *agree])}", *others])


def trust(document: Document) -> list[Document]:
    """How far to believe it: what speaks for it (good), against it (warning), and what to know (note)."""
    return [
        *_about_steps(document),
        *_about_parts(document),
        *_about_answer(document),
        *_about_bounds(document),
        *about_held_out(document),
        *about_judges(document),
        *_about_keep(document),
    ]


def remark(level: str, text: str) -> Document:
    return {"level": level, "text": text}


def noise_ratio(grad: Sequence[float | None], se: Sequence[float | None]) -> float | None:
    """How many standard errors a gradient stands from zero, a coordinate on average (root mean square)."""
    pairs = [(g, s) for g, s in zip(grad, se, strict=True) if g is not None and s is not None and s > 0]
    return math.sqrt(sum((g / s) ** 2 for g, s in pairs) / len(pairs)) if pairs else None


def _ratios(records: Sequence[Mapping[str, Any]]) -> list[float]:
    found = (noise_ratio(r["grad"], r["grad_se"]) for r in records if r["status"] == "ok")
    return [ratio for ratio in found if ratio is not None]


def _about_steps(document: Document) -> list[Document]:
    records, said = document["steps"], []
    ratios = _ratios(records)
    third = max(1, len(ratios) // 3)
    if ratios:
        first = sorted(ratios[:third])[third // 2]
        figure = f"{number_format.number(first, 1)} standard errors from zero"
        if first >= CLEAR:
            said.append(remark("good", f"The first gradients stood {figure}: the direction was clear."))
        else:
            text = f"The first gradients stood only {figure}: more budget.samples would make it clearer."
            said.append(remark("warning", text))
    flat = sum(r["status"] == "flat" for r in records)
    broken = sum(r["status"] == "non_finite" for r in records)
    if flat:
        said.append(
            remark("warning", f"{number_format.plural(flat, 'gradient')} of {len(records)} were exactly zero: flat.")
        )
    if broken:
        steps = f"{number_format.plural(broken, 'step')} of {len(records)}"
        text = f"{steps} had numbers that were not finite, and moved nothing."
        said.append(remark("warning", text))
    if len(ratios) >= 6:
        last = sorted(ratios[-third:])[third // 2]
        figure = f"{number_format.number(last, 1)} standard errors"
        kinds = {kind for value in document["phi"].values() for kind in root_words.each(value)}
        if kinds & {"unsettled", *root_words.BOUNDS}:
            return said  # what is said of the answer says more
        if last < CLEAR + 1:
            said.append(remark("good", f"The last gradients are within {figure} of zero: the climb has settled."))
        else:
            said.append(
                remark(
                    "note",
                    f"The last gradients are still {figure} from zero: more budget.steps may gain more.",
                )
            )
    return said


def _about_parts(document: Document) -> list[Document]:
    """Of a network in training: whether what the sampler does and what the network answers pull the same way."""
    import torch

    from genbo.bilevel.training.penalty import TRUSTED, Hypergradient

    if "noise_schedule" not in document["phi"]:
        return []
    records = [r for r in document["steps"] if r.get("indirect")]
    if not records:
        text = "The network serves every schedule, so it has nothing to answer with: the indirect part is exactly 0."
        return [remark("good", text)]
    pairs = [
        (d, i)
        for r in records
        for d, i in zip(r["direct"], r["indirect"], strict=True)
        if d is not None and i is not None
    ]
    both = Hypergradient(*torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2).T)
    opposed, turned = int(both.opposed.sum()), int(both.overturned.sum())
    said = []
    if opposed:
        text = f"In {opposed} of {len(pairs)} derivatives the network's answer pulled against the sampler's part"
        more = f", and in {turned} the sampler's part alone would have gone the wrong way" if turned else ""
        said.append(remark("warning", f"{text}{more}: the direct part alone is not to be trusted here."))
    else:
        said.append(remark("good", "Direct and indirect parts pulled the same way at every step."))
    apart = [r["apart"] for r in records if r.get("apart") is not None]
    loose = sum(x > TRUSTED for x in apart)
    if loose:
        text = (
            f"At {loose} of {len(apart)} steps the gradients at gamma and 2 gamma stood more than {TRUSTED:.0%} apart"
        )
        said.append(remark("warning", f"{text}: the lower level was not solved there; raise z_steps or gamma."))
    elif apart:
        said.append(remark("good", f"Gradients at gamma and 2 gamma agreed to {TRUSTED:.0%} at every step."))
    return said


def _about_answer(document: Document) -> list[Document]:
    return [remark(level, text) for level, text in root_words.remarks(document)]


def _about_bounds(document: Document) -> list[Document]:
    """Numbers that stand at a bound without being pushed against it."""
    said = []
    for name, value in document["phi"].items():
        numbers = value["tuned"] if isinstance(value["tuned"], list) else [value["tuned"]]
        if set(root_words.each(value)) & set(root_words.BOUNDS):
            continue
        for bound, edge in zip(("lower", "upper"), value["bounds"] or (), strict=False):
            span = value["bounds"][1] - value["bounds"][0]
            at = sum(abs(x - edge) < NEAR * span for x in numbers)
            if at:
                part = "" if len(numbers) == 1 else f" at {at} of {len(numbers)} values"
                text = f"{title(name)} ends at its {bound} bound {edge:g}{part}: wider bounds may do better."
                said.append(remark("warning", text))
    return said


def about_held_out(document: Document) -> list[Document]:
    held_out = document["held_out"]
    if held_out is None:
        return []
    samples, prompts = held_out["samples"], held_out["prompts"]
    said = []
    if held_out["fresh_prompts"]:
        seen = f"{number_format.plural(prompts, 'prompt')} and seeds that tuning never saw"
        text = f"The verdict rests on {seen} ({samples} pairs)."
        said.append(remark("good", text))
    elif "prompts" in document["job"]:
        text = "The verdict rests on fresh seeds of the tuning prompts; evaluate.prompts would add others."
        said.append(remark("note", text))
    else:
        kinds = [reward["kind"] for reward in document["job"]["reward"]]
        of_data = any(getattr(catalog.options_of("rewards", kind), "of_sets", False) for kind in kinds)
        seen = ", and distances to data on test images" if of_data and document["job"].get("data") else ""
        text = f"The verdict rests on fresh seeds{seen} that tuning never saw."
        said.append(remark("good", text))
    if left_out := held_out.get("left_out"):
        said.append(remark("note", f"{overlap(left_out)}."))
    if (prompts if held_out["fresh_prompts"] else held_out.get("counted", prompts)) < FEW_PROMPTS:
        said.append(remark("note", f"The interval counts {_few(held_out)}."))
    if all(value["start"] == value["tuned"] for value in document["phi"].values()):
        text = "Nothing moved: start and tuned are the same values. The last step is measured and not taken; give more."
        said.append(remark("warning", text))
    elif held_out["verdict"] == "no measurable difference":
        text = "The interval includes zero: there may be a difference, but this many samples do not show it."
        said.append(remark("note", text))
    return [*said, *_about_shape(held_out)]


def _few(held_out: Mapping[str, Any]) -> str:
    prompts, counted = held_out["prompts"], held_out.get("counted", held_out["prompts"])
    few = number_format.plural(prompts, "prompt")
    if counted != prompts or prompts == 1:
        few = f"{number_format.plural(counted, 'sample')} of {few}"
    return f"{few} only: it says little of prompts unlike these"


def quoted(prompt: str) -> str:
    """A prompt inside a sentence: cut where it is long, and harmless in a terminal."""
    return repr(prompt if len(prompt) <= LONGEST else f"{prompt[:LONGEST]}…")


def overlap(prompts: Sequence[str]) -> str:
    """That held-out prompts are tuned on too, with the first of them by name."""
    named = ", ".join(map(quoted, prompts[:NAMED]))
    more = f" and {len(prompts) - NAMED} more" if len(prompts) > NAMED else ""
    number = "1 prompt is" if len(prompts) == 1 else f"{len(prompts)} prompts are"
    return f"{number} both tuned on and held out, and left out of the evaluation: {named}{more}"


def shape_in_words(row: Mapping[str, Any]) -> str:
    """`62 of 128 prompts gained and 66 lost (median −0.0002, worst −0.21: 'key')`."""
    same = f", {row['unchanged']} did not change" if row["unchanged"] else ""
    median, worst = (number_format.number(x, sign=True) for x in (row["median"], row["worst"]["difference"]))
    of = f"{row['gained']} of {number_format.plural(row['prompts'], 'prompt')} gained and {row['lost']} lost{same}"
    return f"{of} (median {median}, worst {worst}: {quoted(row['worst']['prompt'])})"


def _about_shape(row: Mapping[str, Any], by: str = "") -> list[Document]:
    """What the mean hides: that few prompts carry it, and that some were ruined."""
    if row.get("prompts", 1) < 2 or "gained" not in row:
        return []
    said = []
    if not by:
        few = row["verdict"] == "better" and row["lost"] >= row["gained"]
        yet = "The mean rose, and yet no more prompts gained than lost: " if few else ""
        text = f"{yet}{shape_in_words(row)}."
        if row["samples"] == row["prompts"]:
            text += " One sample of each cannot show which single one got worse; more evaluate.samples can."
        said.append(remark("warning" if few else "note", text))
    for ruined in row["ruined"][:NAMED]:
        change = number_format.change(ruined["difference"], ruined["interval"])
        which = f"The prompt {quoted(ruined['prompt'])} is clearly worse{by}, whatever the mean is"
        said.append(remark("warning", f"{which}: {change} ({ruined['samples']} samples)."))
    if (more := len(row["ruined"]) - NAMED) > 0:
        said.append(remark("warning", f"{number_format.plural(more, 'more prompt')} got clearly worse{by}."))
    return said


def about_judges(document: Document) -> list[Document]:
    """What those say whom tuning never saw, and what it means."""
    verdict = document["verdict"]
    if verdict is None:
        return []
    return [text for name, row in document["judges"].items() for text in _about_judge(name, row, verdict)]


def _about_judge(name: str, row: Mapping[str, Any], verdict: str) -> list[Document]:
    if row["verdict"] is None:
        return [remark("warning", f"{name} gives no verdict: {row['reason']}.")]
    figure = number_format.change(row["difference"], row["interval"])
    if row["prompts"] > 1:
        figure += f", {row['gained']} prompts gained and {row['lost']} lost"
    level, text = _MEANINGS.get((verdict, row["verdict"]), ("note", f"It says {row['verdict']}."))
    said = remark(level, f"{name} judges the same images, and tuning never saw it: {figure}. {text}")
    return [said, *_about_shape(row, f" by {name}")]


_BETTER, _SAME, _WORSE = "better", "no measurable difference", "worse"
_MEANINGS = {  # of a judge's verdict beside that of the tuned reward
    (_BETTER, _BETTER): ("good", "It confirms the gain."),
    (_BETTER, _SAME): (
        "warning",
        "It does not confirm the gain: only the tuned reward may see it. Look at the images, or take more samples.",
    ),
    (_BETTER, _WORSE): (
        "warning",
        "It contradicts the gain: the reward was raised at the cost of what this judge looks at. Look at the images.",
    ),
    (_SAME, _SAME): ("note", "It sees no difference either."),
    (_SAME, _BETTER): ("note", "It sees a gain that the tuned reward does not show."),
    (_SAME, _WORSE): ("warning", "It sees a loss that the tuned reward does not show. Look at the images."),
    (_WORSE, _WORSE): ("note", "It says the same."),
    (_WORSE, _BETTER): ("note", "It contradicts the loss."),
    (_WORSE, _SAME): ("note", "It does not see the loss."),
}


def _about_keep(document: Document) -> list[Document]:
    if not document["keep"]:
        names = " and ".join(document["rewards"])
        text = f"Nothing but {names} was asked for: a reward can rise while images get worse, so look."
        return [remark("note", text)] if names else []
    said = []
    for name, kept in document["keep"].items():
        level = f"{number_format.number(kept['tuned'])} against a level of {number_format.number(kept['at_least'])}"
        if kept["held"]:
            said.append(remark("good", f"{title(name)} was kept: {level}."))
        elif kept["broken"]:
            said.append(remark("warning", f"{title(name)} was not kept: {level}."))
        else:
            said.append(remark("note", f"{title(name)} is below its level by less than the noise: {level}."))
    return said

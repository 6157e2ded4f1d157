"""The report: `report.json` and the held-out images as one HTML file that opens offline and runs nothing.

Everything that came from a job, a model or a prompt is text: the template escapes it, images are encoded
anew, and the page's own policy forbids scripts and the network.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from markupsafe import Markup

from genbo.cli.errors import ArtifactRefused, UserMistake
from genbo.cli.report import chart, lambda_chart, number_format, page_words, weights_words, words
from genbo.cli.report.records import ComparedRow, PhiValue, StepRecord
from genbo.cli.report.records_report import RunReport
from genbo.cli.report.section import ReportSection
from genbo.cli.run.atomic import write_atomic
from genbo.cli.run.job_file import to_yaml
from genbo.cli.run.status import read_report
from genbo.cli.run.tensors import words_in
from genbo.diffusion.kinds import class_of, kinds

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from PIL.Image import Image as PILImage
    from torch import Tensor

SIDE_PX = 192  # of a small image, scaled up; larger ones are scaled down to WIDE_PX
WIDE_PX = 320
LONGEST = 300  # characters of a prompt that are shown
SECTIONS = "genbo.cli.report.sections"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
TONES: Mapping[str | None, str] = {"better": "better", "worse": "worse"}


def run(folder: str | Path, output: str | Path | None = None) -> int:
    """The command: report.html again from what the run left, into its folder or elsewhere."""
    folder = Path(folder)
    if not (folder / "report.json").is_file():
        raise UserMistake(f"{folder} has no report.json, so there is nothing to report: the run did not finish")
    document = read_report(folder)
    if document is None:
        raise ArtifactRefused(f"{folder / 'report.json'} is damaged; `genbo tune` with --resume writes it again")
    report = RunReport.read(document, folder / "report.json")
    try:
        print(write_report(folder, report, None if output is None else Path(output)))
    except OSError as problem:
        raise UserMistake(f"the report cannot be written: {problem}") from problem
    return 0


def write_report(folder: Path, document: RunReport | Mapping[str, object], place: Path | None = None) -> Path:
    """`report.html` of the run, whole or not at all."""
    place = place or folder / "report.html"
    write_atomic(place, render(document, folder / "evaluation", folder.name).encode("utf-8", "replace"))
    return place


def render(document: RunReport | Mapping[str, object], evaluation: Path | None, title: str) -> str:
    """The whole page of a record, or of the object of a `report.json`."""
    report = RunReport.model_validate(document)
    pictures, points = drawn(report, evaluation)
    tuned = weights_words.gain_of(report)
    gain = tuned or report.held_out
    return page().render(
        d=report,
        words=page_words.words_for(report),
        policy=POLICY,
        title=title,
        tone=_tone(tuned.verdict if tuned else report.verdict),
        shaped=any(row.is_shaped for row in report.rewards.values()),
        lead=page_words.lead(report),
        verdict_chart=verdict_chart(gain if report.steps else None),
        opinions=[(name, _tone(row.verdict), verdict_chart(row), row) for name, row in report.judges.items()],
        phis=[phi_view(name, value, report.steps) for name, value in report.phi.items()],
        reward_chart=reward_chart(report.steps),
        curves=curves(report),
        curves_over_kl=curves_over_kl(report),
        parts=parts_chart(report),
        sections=list(sections(report, evaluation)),
        pictures=pictures,
        points=points,
        job=to_yaml(report.job).decode().split("\n", 1)[1],
        environment=to_yaml(report.environment).decode().split("\n", 1)[1],
    )


def sections(report: RunReport, evaluation: Path | None) -> Iterator[Markup]:
    """The files of `sections/` that have something to show in this report, in order.

    A template can ask for `pairs_of(start, tuned)`, the images that were kept of two sets of samples by these names.
    """
    made: list[tuple[str, ReportSection]] = [(kind, class_of(SECTIONS, kind)()) for kind in kinds(SECTIONS)]
    for kind, section in sorted(made, key=lambda pair: pair[1].order):
        if (view := section.view(report)) is not None:
            template = environment().get_template(f"sections/{kind}.html.j2")
            given = {"words": page_words.words_for(report), "pairs_of": partial(pairs_of, evaluation)}
            yield Markup(template.render(d=report, **given, **view))


def page() -> Template:
    """The page's template."""
    return environment().get_template("report.html.j2")


@cache
def environment() -> Environment:
    """The templates of the report with their filters; each is compiled once a process."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("genbo.cli.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "count": number_format.count,
        "duration": number_format.duration,
        "number": number_format.number,
        "with_error": number_format.with_error,
        "pasted": number_format.pasted,
        "plural": number_format.plural,
        "tight": tight,
        "tone": _tone,
        "shape": words.shape_in_words,
        "change": words.change,
        "cut": lambda text: text if len(str(text)) <= LONGEST else f"{str(text)[:LONGEST]}…",
    }
    return made


def _tone(verdict: str | None) -> str:
    """The class that colours a verdict."""
    return TONES.get(verdict, "none")


# -- charts --------------------------------------------------------------------------------------------------


def verdict_chart(row: ComparedRow | None) -> Markup:
    """The interval of a difference, of the reward's or of a judge's."""
    if row is None or row.difference is None or row.interval[0] is None or row.interval[1] is None:
        return Markup("")
    low, high = row.interval[0], row.interval[1]
    return chart.difference(low, row.difference, high, name="difference, tuned minus start, with its interval")


@dataclass(frozen=True)
class PhiView:
    """A hyperparameter as the page shows it."""

    name: str
    value: PhiValue
    path: Markup
    schedule: Markup
    stops: Markup
    many: bool
    curve: Markup


def phi_view(name: str, value: PhiValue, steps: Sequence[StepRecord]) -> PhiView:
    walked = [step.phi[name] for step in steps]
    nothing = Markup("")
    if isinstance(value.tuned, list):
        rows = [row for row in walked if isinstance(row, list)]
        walk = chart.bundle(rows, name=f"path of {name}")
        stairs, stops, curve = stairs_chart(name, value), stops_chart(name, value), curve_chart(name, value)
        return PhiView(name, value, walk, stairs, stops, True, curve)
    drawing = chart.path(
        [None if isinstance(point, list) else point for point in walked],
        None,
        name=f"path of {name}",
        start=None if isinstance(value.start, list) else value.start,
        answer=value.tuned,
        answer_se=None if isinstance(value.se, list) else value.se,
    )
    return PhiView(name, value, drawing, nothing, nothing, False, nothing)


def stairs_chart(name: str, value: PhiValue) -> Markup:
    """The value at each step of the sampler, before and after."""
    if value.start_over_steps is None or value.tuned_over_steps is None:
        return Markup("")
    errors = value.se if isinstance(value.se, list) else None
    return chart.schedule(value.start_over_steps, value.tuned_over_steps, errors, name=f"{name} over the steps")


def stops_chart(name: str, value: PhiValue) -> Markup:
    """Where the sampler's steps stop, before and after."""
    if value.start_log_snr is None or value.tuned_log_snr is None:
        return Markup("")
    assert isinstance(value.start, list) and isinstance(value.tuned, list)
    start, tuned = chart.Stops(value.start_log_snr, value.start), chart.Stops(value.tuned_log_snr, value.tuned)
    return chart.stops(start, tuned, name=f"{name}, start and tuned")


def curve_chart(name: str, value: PhiValue) -> Markup:
    """The noise schedule, before and after."""
    if value.start_curve is None or value.tuned_curve is None:
        return Markup("")
    return chart.curve(value.start_curve, value.tuned_curve, name=f"{name}, start and tuned")


def parts_chart(report: RunReport) -> list[tuple[str, Markup]]:
    """Of a network in training: direct and indirect part of every derivative over the steps, a chart a parameter."""
    pairs = [(step.direct, step.indirect) for step in report.steps if step.direct and step.indirect]
    if not pairs:
        return []
    labels = report.phi["noise_schedule"].labels or []
    found = []
    for k, label in enumerate(labels[: len(pairs[0][1])]):
        direct, indirect = [direct[k] for direct, _ in pairs], [indirect[k] for _, indirect in pairs]
        found.append((label, chart.parts(direct, indirect, name=f"direct and indirect part of {label}")))
    return found


def curves(report: RunReport) -> list[tuple[str, Markup]]:
    """Of a search for lambda: r1, r2 and KL over lambda."""
    search = report.search
    if search is None or search.optimum is None:
        return []
    best, start = search.optimum, report.phi["regularization"].start
    assert not isinstance(start, list)
    at = lambda_chart.Strength(best.lam, best.interval, start, best.kind == "interior")
    named = (("r1", search.upper), ("r2", search.lower), ("kl", "KL from the pretrained model, nats"))
    rows = [point.model_dump() for point in search.curve]
    return [(name, lambda_chart.over_lambda(rows, key, at, name=f"{name} over lambda")) for key, name in named]


def curves_over_kl(report: RunReport) -> list[tuple[str, Markup]]:
    """Of a search for lambda beside best-of-n: r1 and r2 over KL."""
    search = report.search
    if search is None or search.optimum is None or search.best_of_n is None:
        return []
    best, start = search.optimum, report.phi["regularization"].start
    assert not isinstance(start, list)
    at = lambda_chart.Strength(best.lam, best.interval, start, best.kind == "interior")
    rows, points = ([row.model_dump() for row in side] for side in (search.curve, search.best_of_n.points))
    named = (("r1", search.upper), ("r2", search.lower))
    drawn = [(name, lambda_chart.over_kl(rows, points, at, key, name=f"{name} over KL")) for key, name in named]
    return [(name, drawing) for name, drawing in drawn if drawing]


def reward_chart(steps: Sequence[StepRecord]) -> Markup:
    return chart.path([s.value for s in steps], [s.value_se for s in steps], name="path of the reward")


def tight(text: str) -> str:
    """No line ends inside `6.31 ± 0.42` or between a difference and its interval."""
    return re.sub(r"\S+ ± \S+|\S+ \[[^\]]*\]", lambda found: found[0].replace(" ", "\u00a0"), text)


# -- images --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReportPicture:
    prompt: str
    start: str  # data URIs
    tuned: str


def drawn(report: RunReport, evaluation: Path | None) -> tuple[list[ReportPicture], tuple[Markup, Markup] | None]:
    """The pairs of images, or the two clouds of points of a toy model without images."""
    if evaluation is None or report.held_out is None:
        return [], None
    places = [evaluation / f"{name}.safetensors" for name in ("start", "tuned")]
    if not all(place.is_file() for place in places):
        return [], None
    start, tuned = (_shown(place) for place in places)
    if start.ndim != 4:
        return [], chart.scatter(_points(start), _points(tuned), name="held-out samples")
    return pairs_of(evaluation, "start", "tuned"), None


def pairs_of(evaluation: Path | None, before: str, after: str) -> list[ReportPicture]:
    """The pairs of images that two sets of samples kept, by their names; none where there are none."""
    from genbo.cli.report.held_out_side import shown_samples

    places = [] if evaluation is None else [evaluation / f"{name}.safetensors" for name in (before, after)]
    if not places or not all(place.is_file() for place in places):
        return []
    start, tuned = (_shown(place) for place in places)
    if start.ndim != 4:
        return []
    prompts = cast("list[str]", words_in(places[0])["prompts"])
    kept = sorted(shown_samples(prompts))[: len(start)]
    rows = zip(kept, start, tuned, strict=False)
    return [ReportPicture(prompts[index], data_uri(a), data_uri(b)) for index, a, b in rows]


def _shown(place: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(place.read_bytes())["shown"]
    except (SafetensorError, KeyError) as problem:
        raise ArtifactRefused(
            f"{place} is damaged; run `genbo tune` with --resume, which draws the images again"
        ) from problem


def _points(samples: Tensor) -> list[tuple[float, float]]:
    """The first two coordinates; samples of one coordinate are spread over the height by a fixed pattern."""
    rows = samples.tolist()
    golden = (math.sqrt(5) - 1) / 2
    return [(row[0], row[1] if len(row) > 1 else (index * golden) % 1) for index, row in enumerate(rows)]


def data_uri(pixels: Tensor) -> str:
    """(C, H, W) bytes as a JPEG that genbo itself has encoded."""
    from PIL import Image

    rows = pixels.permute(1, 2, 0).squeeze(-1).contiguous().numpy()
    image = Image.fromarray(rows).convert("RGB")
    longest = max(image.size)
    target = SIDE_PX if longest < SIDE_PX else min(longest, WIDE_PX)
    size = (max(1, round(image.width * target / longest)), max(1, round(image.height * target / longest)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=0, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def contact_sheet(images: Sequence[PILImage], columns: int) -> PILImage:
    """PIL images of one size on one sheet, row by row."""
    from PIL import Image

    width, height, gap = images[0].width, images[0].height, max(2, images[0].width // 32)
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet

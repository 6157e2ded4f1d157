"""The report: `report.json` and the held-out images as one HTML file that opens offline and runs nothing.

Everything that came from a job, a model or a prompt is text: the template escapes it, images are encoded
anew, and the page's own policy forbids scripts and the network.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from genbo.cli.errors import ArtifactRefused, UserMistake
from genbo.cli.report import chart, number_format
from genbo.cli.report.summary import shape_in_words
from genbo.cli.run.atomic import write_atomic
from genbo.cli.run.job_file import to_yaml
from genbo.cli.run.status import read_report
from genbo.cli.run.tensors import words_in

if TYPE_CHECKING:
    from torch import Tensor

Document = dict[str, Any]
SIDE_PX = 192  # of a small image, scaled up; larger ones are scaled down to WIDE_PX
WIDE_PX = 320
LONGEST = 300  # characters of a prompt that are shown
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def run(folder: str | Path, output: str | Path | None = None) -> int:
    """The command: report.html again from what the run left, into its folder or elsewhere."""
    folder = Path(folder)
    if not (folder / "report.json").is_file():
        raise UserMistake(f"{folder} has no report.json: it is not a run that came to its end")
    document = read_report(folder)
    if document is None:
        raise ArtifactRefused(f"{folder / 'report.json'} is damaged; `genbo tune` with --resume writes it again")
    try:
        print(write_report(folder, document, None if output is None else Path(output)))
    except OSError as problem:
        raise UserMistake(f"the report cannot be written: {problem}") from problem
    return 0


def write_report(folder: Path, document: Document, place: Path | None = None) -> Path:
    """`report.html` of the run, whole or not at all."""
    place = place or folder / "report.html"
    write_atomic(place, render(document, folder / "evaluation", folder.name).encode("utf-8", "replace"))
    return place


def render(document: Document, evaluation: Path | None, title: str) -> str:
    """The whole page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("genbo.cli.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": number_format.count,
        "duration": number_format.duration,
        "number": number_format.number,
        "pasted": number_format.pasted,
        "tight": tight,
        "shape": shape_in_words,
        "change": lambda row: number_format.change(row["difference"], row["interval"]),
        "cut": lambda text: text if len(str(text)) <= LONGEST else f"{str(text)[:LONGEST]}…",
    }
    pictures, worlds = drawn(document, evaluation)
    return environment.get_template("report.html.j2").render(
        d=document,
        policy=POLICY,
        title=title,
        tone=TONES.get(document["verdict"], "none"),
        tones=TONES,
        shaped=any(row.get("prompts", 1) > 1 and "gained" in row for row in document["rewards"].values()),
        lead=lead(document),
        verdict_chart=verdict_chart(document["held_out"]),
        opinions=[
            (name, TONES.get(row["verdict"], "none"), verdict_chart(row), row)
            for name, row in document.get("judges", {}).items()
        ],
        phis=[phi_view(name, value, document) for name, value in document["phi"].items()],
        reward_chart=reward_chart(document),
        curves=curves(document),
        parts=parts_chart(document),
        valley=valley_chart(document),
        prompt_charts=prompt_charts(document),
        pictures=pictures,
        worlds=worlds,
        job=to_yaml(document["job"]).decode().split("\n", 1)[1],
        environment=to_yaml(document["environment"]).decode().split("\n", 1)[1],
    )


TONES = {"better": "better", "worse": "worse"}


def lead(document: Document) -> str:
    """What the headline means, for someone who reads one line more."""
    held_out = document["held_out"]
    if held_out is None:
        return "The held-out evaluation was not made, so there is nothing to conclude about the images."
    if document["search"]:
        return lead_of_search(document)
    what = "prompts and seeds" if held_out["fresh_prompts"] else "seeds"
    pairs = f"{number_format.count(held_out['samples'])} pairs"
    if (prompts := [row["prompt"] for row in held_out["by_prompt"]]) != [""]:
        pairs += f" from {number_format.plural(len(prompts), 'prompt')}"
    return (
        f"Start and tuned were drawn from the same noise, on {what} that tuning never saw: {pairs}. "
        "The brackets are the 95 % interval of the mean difference."
    )


def lead_of_search(document: Document) -> str:
    """The same for a search for lambda."""
    held_out, search = document["held_out"], document["search"]
    what = f"λ is the strength of the KL term at which a model is tuned for {search['lower']}."
    if not held_out["samples"]:
        return f"{what} Both laws are known on paper here."
    fresh = "prompts and seeds" if held_out["fresh_prompts"] else "seeds"
    samples = (
        f"{number_format.count(held_out['samples'])} samples of {number_format.plural(held_out['prompts'], 'prompt')}"
    )
    return (
        f"{what} Both λ were compared on {fresh} that the search never saw: {samples}, weighted as the tuned model "
        "would draw them. The brackets are the 95 % interval of the difference."
    )


# -- charts --------------------------------------------------------------------------------------------------


def verdict_chart(row: Document | None) -> Markup:
    """The interval of a difference, of the reward's or of a judge's."""
    if row is None or None in (row["difference"], *row["interval"]):
        return Markup("")
    low, high = row["interval"]
    return chart.difference(low, row["difference"], high, name="difference, tuned minus start, with its interval")


@dataclass(frozen=True)
class PhiView:
    """A hyperparameter as the page shows it."""

    name: str
    value: Mapping[str, Any]
    path: Markup
    schedule: Markup
    stops: Markup
    many: bool
    curve: Markup


def phi_view(name: str, value: Mapping[str, Any], document: Document) -> PhiView:
    walked = [step["phi"][name] for step in document["steps"]]
    if isinstance(value["tuned"], list):
        rows = [row for row in walked if isinstance(row, list)]
        stairs = Markup("")
        if "tuned_over_steps" in value:
            both = value["start_over_steps"], value["tuned_over_steps"]
            stairs = chart.schedule(*both, value["se"], name=f"{name} over the steps")
        walk = chart.bundle(rows, name=f"path of {name}")
        return PhiView(name, value, walk, stairs, stops_chart(name, value), True, curve_chart(name, value))
    drawing = chart.path(
        walked,
        None,
        name=f"path of {name}",
        start=value["start"],
        answer=value["tuned"],
        answer_se=value["se"],
    )
    return PhiView(name, value, drawing, Markup(""), Markup(""), False, Markup(""))


def stops_chart(name: str, value: Mapping[str, Any]) -> Markup:
    """Where the sampler's steps stop, before and after."""
    if "tuned_log_snr" not in value:
        return Markup("")
    sides = (chart.Stops(value[f"{side}_log_snr"], value[side]) for side in ("start", "tuned"))
    return chart.stops(*sides, name=f"{name}, start and tuned")


def curve_chart(name: str, value: Mapping[str, Any]) -> Markup:
    """The noise schedule, before and after."""
    if "tuned_curve" not in value:
        return Markup("")
    return chart.curve(value["start_curve"], value["tuned_curve"], name=f"{name}, start and tuned")


def parts_chart(document: Document) -> list[tuple[str, Markup]]:
    """Of a network in training: direct and indirect part of every derivative over the steps, a chart a parameter."""
    records = [r for r in document["steps"] if r.get("indirect")]
    if not records:
        return []
    labels = document["phi"]["noise_schedule"]["labels"]
    found = []
    for k, label in enumerate(labels[: len(records[0]["indirect"])]):
        sides = [[r[part][k] for r in records] for part in ("direct", "indirect")]
        found.append((label, chart.parts(*sides, name=f"direct and indirect part of {label}")))
    return found


def valley_chart(document: Document) -> Markup:
    """Of two parameters the plane, with the ellipse or the valley; of more, the weakest direction."""
    answer = document.get("answer")
    if not answer or len(answer["labels"]) < 2 or document["status"] != "done":
        return Markup("")
    labels = answer["labels"]
    if len(labels) == 2:
        walked = [_numbers(step["phi"].values())[-2:] for step in document["steps"]]
        point = _numbers(value["tuned"] for value in document["phi"].values())[-2:]
        lines = {key: answer[key] and [(x, y) for x, y in answer[key]] for key in ("valley", "ellipse")}
        pairs = [(x, y) for x, y in walked if x is not None and y is not None]
        return chart.plane(pairs, (point[0], point[1]), **lines, axes=labels, name=f"{labels[0]} and {labels[1]}")
    if not answer["undetermined"]:
        return Markup("")
    return chart.loadings(answer["undetermined"][0], name="a direction that is not determined")


def _numbers(values: Iterable[float | list[float]]) -> list[float]:
    """One after the other."""
    return [x for value in values for x in (value if isinstance(value, list) else [value])]


def curves(document: Document) -> list[tuple[str, Markup]]:
    """Of a search for lambda: r1, r2 and KL over lambda."""
    search = document["search"]
    if not search or search["optimum"] is None:
        return []
    best = search["optimum"]
    start = document["phi"]["regularization"]["start"]
    at = chart.Strength(best["lam"], best["interval"], start, best["kind"] == "interior")
    named = (("r1", search["upper"]), ("r2", search["lower"]), ("kl", "KL from the pretrained model, nats"))
    return [(name, chart.over_lambda(search["curve"], key, at, name=f"{name} over lambda")) for key, name in named]


def reward_chart(document: Document) -> Markup:
    steps = document["steps"]
    return chart.path([s["value"] for s in steps], [s["value_se"] for s in steps], name="path of the reward")


def prompt_charts(document: Document) -> list[Markup]:
    """One for a wide page and one for a phone, where the wide one would be too small to read."""
    held_out = document["held_out"]
    if held_out is None or len(held_out["by_prompt"]) < 3:
        return []
    rows = [(row["prompt"], row["difference"]) for row in held_out["by_prompt"]]
    return [chart.prompts(rows, name="mean difference of every held-out prompt", width=width) for width in (900, 440)]


def tight(text: str) -> str:
    """No line ends inside `6.31 ± 0.42` or between a difference and its interval."""
    return re.sub(r"\S+ ± \S+|\S+ \[[^\]]*\]", lambda found: found[0].replace(" ", "\u00a0"), text)


# -- images --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    prompt: str
    start: str  # data URIs
    tuned: str


def drawn(document: Document, evaluation: Path | None) -> tuple[list[Picture], tuple[Markup, Markup] | None]:
    """The pairs of images, or the two clouds of samples of a world that has none."""
    if evaluation is None or document["held_out"] is None:
        return [], None
    places = [evaluation / f"{name}.safetensors" for name in ("start", "tuned")]
    if not all(place.is_file() for place in places):
        return [], None
    from genbo.cli.report.held_out_side import shown_samples

    start, tuned = (_shown(place) for place in places)
    if start.ndim != 4:
        return [], chart.scatter(_points(start), _points(tuned), name="held-out samples")
    prompts = words_in(places[0])["prompts"]
    kept = sorted(shown_samples(prompts))[: len(start)]
    rows = zip(kept, start, tuned, strict=False)
    return [Picture(prompts[index], data_uri(a), data_uri(b)) for index, a, b in rows], None


def _shown(place: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(place.read_bytes())["shown"]
    except (SafetensorError, KeyError) as problem:
        raise ArtifactRefused(f"{place} is damaged; go on with --resume, which draws it again") from problem


def _points(samples: Tensor) -> list[tuple[float, float]]:
    """The first two coordinates; a world of one is spread over the height by a fixed pattern."""
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


def contact_sheet(images: Sequence[Any], columns: int) -> Any:
    """PIL images of one size on one sheet, row by row."""
    from PIL import Image

    width, height, gap = images[0].width, images[0].height, max(2, images[0].width // 32)
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet

"""The report: everything from outside is text in it, it loads nothing, and it says what report.json says."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from genbo.cli.errors import UserMistake
from genbo.cli.report import chart, html, number_format, summary
from genbo.cli.report.held_out_side import shown_samples
from genbo.cli.run.tensors import write_tensors

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</title><script>alert(2)</script>",
    "javascript:alert(3)",
    "abc\u202edef",
    "{{ 7 * 7 }} {% raw %}",
    "' onload='alert(4)",
    "</style><svg onload=alert(5)>",
    "=cmd()",
]


class Page(HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A real report.json."""
    from genbo.cli.commands import tune
    from tests.cli.test_tune import JOB_DICT

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("plain"))
        patch.setenv("XDG_CACHE_HOME", "cache")
        return tune.tune({**JOB_DICT, "prompts": ["east", "north", "south"]}).result().document


def images_in(folder: Path, prompts: list[str]) -> Path:
    """An evaluation of pictures."""
    folder.mkdir()
    for name, shade in (("start", 40), ("tuned", 200)):
        shown = torch.full((len(prompts), 3, 64, 64), shade, dtype=torch.uint8)
        write_tensors(
            folder / f"{name}.safetensors",
            {"scores": torch.zeros(1, len(prompts)), "shown": shown},
            {"prompts": prompts},
        )
    return folder


def hostile(plain: dict) -> dict:
    """The same with every text from outside replaced."""
    document = copy.deepcopy(plain)
    name = HOSTILE[0]
    document["rewards"] = {text: next(iter(plain["rewards"].values())) for text in HOSTILE}
    document["keep"] = {
        text: {
            **next(iter(plain["rewards"].values())),
            "at_least": 0,
            "gap": 1,
            "held": True,
            "broken": False,
        }
        for text in HOSTILE
    }
    document["phi"] = {name: plain["phi"]["guidance"]}
    for step in document["steps"]:
        step["phi"] = {name: step["phi"]["guidance"]}
    document["held_out"]["by_prompt"] = [
        {"prompt": text, "difference": i, "samples": 1} for i, text in enumerate(HOSTILE)
    ]
    document["job"]["prompts"] = HOSTILE
    document["reproduce"] = f"genbo tune {HOSTILE[1]}"
    document["estimator"] = {"kind": HOSTILE[2], "reason": HOSTILE[1]}
    document["trust"].append({"level": "note", "text": " ".join(HOSTILE)})
    document["environment"]["device"] = HOSTILE[2]
    document["use"] = {"diffusers": HOSTILE[1], "genbo": HOSTILE[2]}
    document["headline"] = " ".join(HOSTILE)
    return document


def test_whatever_comes_from_outside_stays_text(plain: dict, tmp_path: Path) -> None:
    evaluation = images_in(tmp_path / "evaluation", HOSTILE)
    text = html.render(hostile(plain), evaluation, HOSTILE[2])
    page = Page(text)
    assert {"script", "iframe", "object", "embed", "form", "base"}.isdisjoint(page.tags)
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert page.tags.count("img") == 2 * len(HOSTILE)
    for hurt in HOSTILE:
        assert hurt in page.text
    assert page.tags.count("title") >= 1
    assert page.tags[:2] == ["html", "head"]


def test_a_prompt_of_a_megabyte_is_cut(plain: dict, tmp_path: Path) -> None:
    evaluation = images_in(tmp_path / "evaluation", ["x" * 1_000_000, "b", "c"])
    document = copy.deepcopy(plain)
    document["held_out"]["by_prompt"][0]["prompt"] = "y" * 1_000_000
    assert len(html.render(document, evaluation, "run")) < 1_500_000


def test_it_forbids_and_loads_nothing(plain: dict, tmp_path: Path) -> None:
    page = Page(html.render(plain, images_in(tmp_path / "evaluation", ["a", "b"]), "run"))
    policy = [v for t, n, v in page.attributes if t == "meta" and n == "content" and "default-src" in v]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    links = [v for _, n, v in page.attributes if n in ("src", "href", "action", "srcset", "data")]
    assert links
    assert all(v.startswith("data:") for v in links)
    style = re.search(r"<style>(.*?)</style>", html.render(plain, None, "run"), re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_it_follows_light_dark_and_phones(plain: dict) -> None:
    text = html.render(plain, None, "run")
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert charts
    assert not [c for c in charts if re.search(r'(fill|stroke)="(?!none)', c)]  # colours come from the page alone


def test_it_says_what_the_object_says(plain: dict) -> None:
    page = Page(html.render(plain, None, "run"))
    text = page.text.replace("\u00a0", " ")
    assert plain["headline"] in text
    for said in plain["trust"]:
        assert said["text"] in text
    assert number_format.count(plain["cost"]["denoiser_calls"]) in page.text
    assert plain["reproduce"] in text


def test_images_are_encoded_anew_and_in_pairs(tmp_path: Path, plain: dict) -> None:
    evaluation = images_in(tmp_path / "evaluation", ["a", "b"])
    pictures, worlds = html.drawn(plain, evaluation)
    assert worlds is None
    assert [p.prompt for p in pictures] == ["a", "b"]
    assert all(p.start.startswith("data:image/jpeg;base64,") and p.start != p.tuned for p in pictures)


def test_a_damaged_image_file_is_named(tmp_path: Path, plain: dict) -> None:
    evaluation = images_in(tmp_path / "evaluation", ["a", "b"])
    (evaluation / "tuned.safetensors").write_bytes(b"12345678")
    with pytest.raises(Exception, match=r"tuned\.safetensors") as refused:
        html.render(plain, evaluation, "run")
    assert getattr(refused.value, "exit_code", None) == 3


def test_what_is_shown_is_the_first_of_each_prompt() -> None:
    assert shown_samples(["a", "b", "a", "c", "b"], 3) == [0, 1, 3]
    assert shown_samples(["a", "b", "a", "c", "b"], 4) == [0, 1, 3, 2]


def test_the_command_writes_it_again(tmp_path: Path, plain: dict, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserMistake, match=r"no report\.json"):
        html.run(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(plain))
    assert html.run(tmp_path) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert html.run(tmp_path, tmp_path / "other.html") == 0
    assert (tmp_path / "other.html").read_text() == (tmp_path / "report.html").read_text()


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_real_browser_sees_text_and_no_overflow_on_a_phone(plain: dict, tmp_path: Path) -> None:
    evaluation = images_in(tmp_path / "evaluation", HOSTILE)
    document = hostile(plain)
    (tmp_path / "report.html").write_text(html.render(document, evaluation, HOSTILE[2]))
    # the page itself may run nothing, so a frame around it measures: a page that is too wide scrolls sideways
    probe = """<!doctype html><iframe id=f src=report.html width=390 height=800></iframe>
    <pre id=o></pre><script>
    f.onload = () => { const d = f.contentDocument; o.textContent = JSON.stringify({
      wide: d.documentElement.scrollWidth, text: d.body.textContent, scripts: d.scripts.length,
      title: d.title, images: [...d.images].every(i => i.naturalWidth > 0 || !i.complete)}) }
    </script>"""
    (tmp_path / "probe.html").write_text(probe)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    budget = ["--virtual-time-budget=3000", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [str(CHROMIUM), *flags, *budget, (tmp_path / "probe.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=600,
    ).stdout
    found = re.search(r'<pre id="o">(.*?)</pre>', shown, re.DOTALL)
    assert found is not None, shown[:500]
    seen = json.loads(unescape(found[1]))
    assert seen["wide"] <= 390
    assert seen["scripts"] == 0
    assert seen["title"].startswith(HOSTILE[2])
    for hurt in HOSTILE:
        assert hurt in seen["text"]


# -- words and figures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (6.314, 0.42, "6.31 ± 0.42"),
        (0.04123, 0.0031, "0.0412 ± 0.0031"),
        (12.0, None, "12.0"),
        (-3.2, 25.0, "−3 ± 25"),
    ],
)
def test_as_many_digits_as_the_error_supports(value: float, error: float | None, text: str) -> None:
    assert number_format.with_error(value, error) == text


def test_an_interval_and_its_middle_have_the_same_digits() -> None:
    assert number_format.change(0.0412, (0.0351, 0.0473)) == "+0.0412 [0.0351, 0.0473]"
    assert number_format.change(-1.0, None).startswith("−1.00 [")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 s"), (42.0, "42 s"), (200, "3 min 20 s"), (7260, "2 h 01 min"), (-5, "0.0 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert number_format.duration(seconds) == text


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.137, -0.058), (1e-9, 2e-9), (-5e6, 7e6), (3.0, 3.0001)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = chart.ticks(low, high)
    assert 2 <= len(found.values) <= 12
    assert all(low - found.step * 1e-6 <= v <= high + found.step * 1e-6 for v in found.values)


def test_the_ratio_to_noise() -> None:
    assert summary.noise_ratio([3.0, -3.0], [1.0, 1.0]) == pytest.approx(3)
    assert summary.noise_ratio([3.0, 1.0], [0.0, None]) is None

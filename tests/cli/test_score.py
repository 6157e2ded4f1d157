"""genbo score: the same numbers as the rewards by hand, and what is wrong with a folder in one go."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from genbo.cli.commands import score
from genbo.cli.errors import ArtifactRefused, OutOfMemory, UserMistake
from genbo.cli.job.captions import captions
from genbo.cli.job.job import JobMistakes, Kind
from genbo.cli.main import main
from genbo.cli.stages import scoring
from genbo.diffusion.data import Data
from genbo.rewards.clip import Clip
from genbo.rewards.diversity import Diversity
from genbo.rewards.kid import Kid
from genbo.rewards.precision_recall import PrecisionRecall

CLIP = "{kind: clip, pretrained: emoji-clip}"
NAMES = ("=d.png", "a.png", "b.png", "below/c.png")
PROMPTS = ("red heart", "=cmd()", "a dog, a cat", "@hen")
Run = Callable[..., tuple[str, str]]


def picture(n: int, height: int = 24, width: int = 24) -> torch.Tensor:
    """(3, H, W) in bytes."""
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def write(folder: Path, name: str, pixels: torch.Tensor) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / name)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four images, one of another size and one in a folder below, and the three ways of writing their prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    for n, name in enumerate(NAMES):
        write(folder, name, picture(n, 30 if n == 2 else 24))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    (tmp_path / "prompts.json").write_text(json.dumps({**dict(zip(NAMES, PROMPTS, strict=True)), "more.png": "x"}))
    with (tmp_path / "prompts.csv").open("w") as file:
        csv.writer(file).writerows([("File", "prompt"), *zip(NAMES, PROMPTS, strict=True)])
    return Path("images")


@pytest.fixture
def run(images: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*rewards: str, **options: Any) -> tuple[str, str]:
        assert score.run(images, rewards, **options) == 0
        said = capsys.readouterr()
        return said.out, said.err

    return call


def by_hand() -> list[float]:
    reward = Clip("emoji-clip").open()
    sizes = [30 if n == 2 else 24 for n in range(4)]
    shown = [picture(n, size)[None].float() / 255 for n, size in enumerate(sizes)]
    return [reward(image, [prompt]).item() for image, prompt in zip(shown, PROMPTS, strict=True)]


# -- numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["txt", "csv", "json"])
@pytest.mark.parametrize("batch", [1, 16])
def test_are_those_of_the_reward_by_hand(run: Run, kind: str, batch: int) -> None:
    out, _ = run(CLIP, prompts=Path(f"prompts.{kind}"), batch=batch, as_json=True, each=True)
    document = json.loads(out)
    assert [row["file"] for row in document["each"]] == list(NAMES)
    assert [row["prompt"] for row in document["each"]] == list(PROMPTS)
    expected = torch.tensor(by_hand(), dtype=torch.float64)
    assert [row["scores"]["clip"] for row in document["each"]] == pytest.approx(expected.tolist(), abs=1e-5)
    found = document["rewards"]["clip"]
    assert found["mean"] == pytest.approx(expected.mean().item(), abs=1e-5)
    assert found["se"] == pytest.approx(expected.std().item() / 2, abs=1e-5)
    assert (found["kind"], found["pretrained"], found["images"], found["of"]) == ("clip", "emoji-clip", 4, "image")


def test_several_rewards_of_a_kind_have_names_of_their_own(run: Run) -> None:
    out, _ = run("compressibility", "{kind: compressibility, quality: 20}", as_json=True)
    document = json.loads(out)
    assert set(document["rewards"]) == {"compressibility", "compressibility-2"} and document["each"] is None
    assert document["rewards"]["compressibility-2"]["mean"] > document["rewards"]["compressibility"]["mean"]


def test_on_the_command_line(images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["genbo", "score", "images", "-r", CLIP, "--prompts", "prompts.csv", "--csv", "--each", "--batch", "3"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    scores = [float(row["clip"]) for row in csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert scores == pytest.approx(by_hand(), abs=1e-5)


def test_one_image_has_no_error_bar(run: Run, images: Path) -> None:
    for name in NAMES[1:]:
        (images / name).unlink()
    assert json.loads(run("compressibility", as_json=True)[0])["rewards"]["compressibility"]["se"] is None
    assert "compressibility" in run("compressibility")[0]


def test_one_prompt_for_all(run: Run) -> None:
    document = json.loads(run(CLIP, prompt="red heart", as_json=True, each=True)[0])
    assert {row["prompt"] for row in document["each"]} == {"red heart"}


def test_code_of_the_users_own_is_named_with_its_hash(run: Run) -> None:
    Path("my.py").write_text("def score(images, prompts):\n    return images.mean((1, 2, 3))\n")
    own = "{kind: external, file: my.py}"
    with pytest.raises(JobMistakes, match=r"--reward:1:24: reward.file: my.py is code.*add --allow-code my.py"):
        run(own)
    out, err = run(own, as_json=True, each=True, allow_code=[Path("my.py")])
    document = json.loads(out)
    assert err == f"allowed code: my.py, sha256 {document['code']['my.py']}\n"
    assert document["each"][1]["scores"]["external"] == pytest.approx(picture(1).float().mean().item() / 255)


# -- sets ------------------------------------------------------------------------------------------------------


def asked(options: Any) -> scoring.Asked:
    return scoring.Asked("set", Kind(kind="set", options=options))


@pytest.mark.parametrize(
    "options", [Kid("digits-features"), PrecisionRecall("digits-features", k=1), Diversity("pixels")]
)
def test_a_set_is_scored_as_a_whole(options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pixels = {
        place: torch.stack([picture(n) for n in numbers]) for place, numbers in (("a", range(7)), ("b", range(5, 14)))
    }
    for place, rows in pixels.items():
        for n, row in enumerate(rows):
            write(tmp_path / place, f"{n}.png", row)
    one, pictures = asked(options), scoring.readable(tmp_path / "a")
    rows = scoring.of_set(
        one, pictures, [""] * 7, Data(str(tmp_path / "b")) if one.needs_data else None, 3, torch.device("cpu")
    )
    opened = options.open()
    reward = opened.against(pixels["b"]) if one.needs_data else opened
    torch.testing.assert_close(rows, reward(pixels["a"].float() / 255), atol=1e-6, rtol=1e-5)
    found = scoring.summary(one, rows)
    assert found["of"] == "set" and found["mean"] == pytest.approx(rows.mean().item())


def test_a_set_wants_data_and_images_of_a_size(images: Path) -> None:
    (why,) = score.cannot([asked(Kid("pixels"))], None, None)
    assert why == "set compares a set with data, and there are none; add --data folder"
    assert score.cannot([asked(Diversity("pixels"))], None, None) == []
    with pytest.raises(UserMistake, match="the images have several sizes; bring them to one"):
        scoring.of_set(asked(Diversity("pixels")), scoring.readable(images), [""] * 4, None, 4, torch.device("cpu"))


def test_data_are_written_as_in_a_job(run: Run, images: Path) -> None:
    """Of several sizes, brought to one; a distance of a set to itself, against its score by hand."""
    kid = "{kind: kid, features: digits-features}"
    out, _ = run(kid, "compressibility", data="{path: images, size: 24}", as_json=True, each=True)
    document = json.loads(out)
    assert document["rewards"]["kid"]["of"] == "set"
    data = Data("images", size=24, color="rgb", validation=0, test=0).open().train.pixels
    reward = Kid("digits-features").open().against(data)
    shown = [picture(n, 30 if n == 2 else 24)[None].float() / 255 for n in range(4)]
    expected = reward.rows(torch.cat([reward.features(image) for image in shown])).mean().item()
    assert document["rewards"]["kid"]["mean"] == pytest.approx(expected, rel=1e-5) and expected != 0
    assert all(set(row["scores"]) == {"compressibility"} for row in document["each"])
    assert "a set of 4 images" in run(kid, data="{path: images, size: 24}")[0]
    with pytest.raises(ArtifactRefused, match=r"the images have several sizes, .*; bring them to one with `size: 24`"):
        run(kid, data="images")
    with pytest.raises(JobMistakes, match=r"--data:1:1: data: there is no .*nowhere"):
        run(kid, data="nowhere")
    with pytest.raises(JobMistakes, match=r"--data:1:16: data\.sice: unknown key; did you mean 'size'"):
        run(kid, data="{path: images, sice: 24}")


# -- words -----------------------------------------------------------------------------------------------------


def test_no_cell_is_a_formula(run: Run) -> None:
    out, _ = run(CLIP, prompts=Path("prompts.csv"), as_csv=True, each=True)
    head, *rows = csv.reader(io.StringIO(out))
    assert head == ["file", "prompt", "clip"]
    assert [row[0] for row in rows] == ["'=d.png", "a.png", "b.png", "below/c.png"]
    assert [row[1] for row in rows] == ["red heart", "'=cmd()", "a dog, a cat", "'@hen"]
    assert all(math.isfinite(float(row[2])) for row in rows)
    for cell in ("=1+1", "+1", "-1", "@x", "\t=1", "\r=1"):
        assert score.harmless(cell).startswith("'")
    assert score.harmless("a=1") == "a=1"


def test_no_cell_moves_a_cursor() -> None:
    assert (
        score.harmless("a\x1b[2Jb\u202ec\n")
        == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c\N{REPLACEMENT CHARACTER}"
    )


def test_a_table_for_a_person(run: Run) -> None:
    out, _ = run(CLIP, "compressibility", prompts=Path("prompts.csv"), each=True)
    assert all(part in out for part in ("below/c.png", "'=cmd()", "mean ± standard error", "4 images"))
    out, _ = run("compressibility", as_csv=True)
    assert out.splitlines()[0] == "reward,mean,standard error,images" and out.splitlines()[1].endswith(",4")


def test_rich_markup_in_a_prompt_is_text(run: Run) -> None:
    out, _ = run(CLIP, prompt="[bold]red[/bold] [/]", each=True)
    assert "[bold]red[/bold] [/]" in out


# -- what can be wrong -----------------------------------------------------------------------------------------


def test_broken_images_are_named_all_at_once(run: Run, images: Path) -> None:
    (images / "a.png").write_bytes((images / "a.png").read_bytes()[:200])
    (images / "below" / "c.png").write_bytes(b"no image")
    (images / "z.png").write_bytes(b"")
    with pytest.raises(ArtifactRefused) as found:
        run("compressibility")
    first, *names = str(found.value).splitlines()
    assert first == "3 images in images cannot be read; replace or remove them:"
    assert [name.split()[0] for name in names] == ["a.png", "below/c.png", "z.png"]
    assert found.value.exit_code == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "clip reads prompts, and there are none; add --prompts file.csv, or --prompt for all"),
        ({"prompt": "x", "prompts": Path("prompts.csv")}, "--prompt and --prompts exclude each other"),
        ({"prompt": " "}, "--prompt: this prompt is empty"),
        ({"prompt": "x" * 3000}, "a prompt of 3000 characters; use at most 2000"),
        ({"prompts": Path("nowhere.csv")}, "nowhere.csv cannot be read"),
        ({"prompt": "x", "device": "gpu"}, "--device must be auto, cpu, cuda or cuda:0, not 'gpu'"),
        ({"prompt": "x", "as_json": True, "as_csv": True}, "--json and --csv exclude each other"),
    ],
)
def test_options_that_cannot_be(run: Run, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserMistake, match=said):
        run(CLIP, **options)


def test_every_mistake_of_the_rewards_comes_at_once(run: Run) -> None:
    with pytest.raises(JobMistakes) as found:
        run("{kind: clip, pretrained: emoji-klip}", "klip", "{a", "{kind: compressibility, weight: 2}")
    assert len(found.value.mistakes) == 4 and all(str(m).startswith("--reward:1:") for m in found.value.mistakes)
    with pytest.raises(JobMistakes, match=r"--reward: missing; add --reward"):
        run()
    with pytest.raises(UserMistake, match="teacher knows a sample by its noise"):
        run("teacher")


@pytest.mark.parametrize(
    ("place", "said"), [("nowhere", "not there"), ("prompts.csv", "a file; give"), (".git", "no image")]
)
def test_a_folder_of_images_must_be_given(images: Path, place: str, said: str) -> None:
    Path(".git").mkdir()
    with pytest.raises(UserMistake, match=said):
        score.run(Path(place), ["compressibility"])


def test_scores_that_are_not_finite_are_of_named_files(images: Path) -> None:
    pictures = scoring.readable(images)
    rows = torch.tensor([0.0, math.nan, 0.0, math.inf])
    with pytest.raises(ArtifactRefused, match=r"set gives no finite number for a\.png, below/c\.png; leave them out"):
        scoring.refuse_nan(asked(Kid("pixels")), pictures, rows)


def test_short_memory_names_the_option_that_helps(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(scoring, "one_by_one", short)
    with pytest.raises(OutOfMemory, match=r"out of memory \(CUDA out of memory\); .* a smaller --batch"):
        run("compressibility")


# -- prompts of files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.txt", "one\ntwo\n", "has 2 lines for 3 images; write one prompt a line"),
        ("p.txt", "one\n\nthree\n", "line 2 of .*: this prompt is empty"),
        ("p.csv", "a.png,x\n", r"has no prompt for b.png, c.png; add a row for each"),
        ("p.csv", "a.png,x,y\n", "row 1 of .* has 3 columns; write file and prompt, and quote commas"),
        ("p.csv", "a.png,x\na.png,y\n", "names a.png twice; delete one"),
        ("p.csv", 'a.png,"x\n', "is no table"),
        ("p.json", "{", "is not JSON"),
        ("p.json", '{"a.png": 1}', "must map names to texts"),
        ("p.json", "[]", "must map names to texts"),
    ],
)
def test_what_is_wrong_with_a_file_of_prompts(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserMistake, match=said):
        captions(tmp_path / name, None, ["a.png", "b.png", "c.png"])


def test_a_file_of_prompts_in_another_encoding_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("ä".encode("latin-1"))
    with pytest.raises(UserMistake, match="is not UTF-8; save it as UTF-8"):
        captions(tmp_path / "p.txt", None, ["a.png"])

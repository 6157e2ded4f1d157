"""The images of a folder: in number order, and images only."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from genbo.cli.commands import sample, score
from genbo.cli.errors import UserMistake
from genbo.cli.job.captions import captions
from genbo.cli.job.gallery import images_of, in_number_order, uncertain
from genbo.cli.stages import scoring

COUNTED = {  # in number order, and it is certain
    "numbers": ["0.png", "1.png", "2.png", "10.png", "11.png"],
    "numbers behind a word": ["img-1.png", "img-2.png", "img-10.png"],
    "numbers before a word": ["0-apple.png", "2-dog.png", "10-cat.png"],
    "with zeros": ["000-dog-s0-2.png", "000-dog-s0-10.png", "010-cat-s0-1.png"],
    "folders": ["2/1.png", "2/10.png", "10/1.png"],
    "words": ["a.png", "b.png", "below/c.png"],
    "another kind of file": ["2.jpg", "10.png"],
    "hashes in the order of letters": ["2ab1.png", "3fcd.png"],
}
UNCERTAIN = {
    "hashes": ["3f2a.png", "12bc.png"],
    "long hashes": ["2e1f0a9b.png", "10-a4d2c1.png"],
    "decimals": ["0.5.png", "0.25.png"],
    "below zero": ["-5.png", "-10.png"],
    "letters behind": ["2b.png", "10a.png"],
    "copies": ["img.png", "img (2).png"],
    "a folder of hashes": ["9c/1.png", "10c/1.png"],
}


@pytest.mark.parametrize("names", COUNTED.values(), ids=COUNTED)
def test_names_are_counted(names: list[str]) -> None:
    assert in_number_order(random.Random(0).sample(names, len(names))) == names
    assert uncertain(names) is None


@pytest.mark.parametrize("names", UNCERTAIN.values(), ids=UNCERTAIN)
def test_where_both_orders_differ_and_nothing_decides_a_table_must(tmp_path: Path, names: list[str]) -> None:
    place, ordered = tmp_path / "p.txt", in_number_order(names)
    place.write_text("one\ntwo\n")
    with pytest.raises(UserMistake, match=r"nothing says whether .* comes first; name the images in a \.csv"):
        captions(place, None, ordered)
    table = tmp_path / "p.csv"
    table.write_text("".join(f"{name},of {name}\n" for name in names))
    assert captions(table, None, ordered) == [f"of {name}" for name in ordered]
    assert captions(None, "one", ordered) == ["one", "one"]


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1), st.sampled_from(["", "img-", "x_", "below/"]))
def test_any_numbers_are_in_their_own_order(numbers: list[int], prefix: str) -> None:
    names = in_number_order([f"{prefix}{number}.png" for number in numbers])
    assert names == [f"{prefix}{number}.png" for number in sorted(numbers)]
    assert uncertain(names) is None


@given(st.lists(st.text("0123456789ab.-_ /", min_size=1, max_size=8), unique=True))
def test_any_names_have_an_order(names: list[str]) -> None:
    assert sorted(in_number_order(names)) == sorted(names)
    uncertain(in_number_order(names))


def picture(place: Path, size: tuple[int, int] = (8, 8), **more: object) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(place, **more)  # type: ignore[arg-type]


def test_twelve_prompts_for_twelve_numbers(tmp_path: Path) -> None:
    for number in range(12):
        picture(tmp_path / "images" / f"{number}.png")
    (tmp_path / "p.txt").write_text("".join(f"prompt {number}\n" for number in range(12)))
    files, _ = scoring.files_of(tmp_path / "images")
    names = [file.name for file in files]
    assert dict(zip(names, captions(tmp_path / "p.txt", None, names) or [], strict=True)) == {
        f"{number}.png": f"prompt {number}" for number in range(12)
    }


class Drawn:
    """A tuned pipeline that draws these images, whatever it is asked for."""

    pipeline = None

    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images

    def __call__(self, *given: object, **options: object) -> list[Image.Image]:
        return self.images


def test_what_sample_writes_is_scored_without_its_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "outs"
    drawn = [Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(4)]
    monkeypatch.setattr(sample, "opened", lambda *_: Drawn(drawn))
    assert sample.run("emoji", ["a", "b"], samples=2, output=out) == 0
    (out / "sheet-s0.png").rename(out / "000-renamed.png")
    capsys.readouterr()
    assert score.run(out, ["compressibility"], as_json=True) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["images"] == 4 and document["left_out"] == {"000-renamed.png": "a contact sheet"}
    assert said.err == "left out: 000-renamed.png (a contact sheet)\n"


SHEETS = ["grid.png", "sub/image_grid.png", "report.png", "contact-sheet.jpg", "thumbnails/1.png", "grid-0001.png"]
FOREIGN = [".hidden.png", "._a.png", ".thumbnails/a.png", "__MACOSX/a.png", "@eaDir/a.png/small.jpg"]


@pytest.mark.parametrize("name", [*SHEETS, *FOREIGN])
def test_what_is_no_image_is_left_out(tmp_path: Path, name: str) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png")
    picture(tmp_path / name, (24, 16))
    files, left_out = images_of(tmp_path)
    assert [file.name for file in files] == ["0.png", "1.png", "2.png"]
    assert list(left_out) == ([] if name.startswith(".") else [name])


def test_the_sheet_of_an_older_genbo_is_known_by_its_name(tmp_path: Path) -> None:
    for name in ("000-a-dog-s3-0.png", "sheet-s3.png", "sheet-s4.png"):
        picture(tmp_path / name)
    assert list(images_of(tmp_path)[1]) == ["sheet-s3.png"]


@pytest.mark.parametrize("name", SHEETS)
def test_a_name_alone_is_no_proof(tmp_path: Path, name: str) -> None:
    """Of the same size it is an image like the others, where sizes vary anyway too, and where a table names it."""
    picture(tmp_path / "same" / "0.png")
    picture(tmp_path / "same" / name)
    picture(tmp_path / "vary" / "0.png")
    picture(tmp_path / "vary" / "1.png", (9, 9))
    picture(tmp_path / "vary" / name, (24, 16))
    picture(tmp_path / "alone" / name)
    for folder, number in (("same", 2), ("vary", 3), ("alone", 1)):
        files, left_out = images_of(tmp_path / folder)
        assert (len(files), left_out) == (number, {})
    picture(tmp_path / "named" / "0.png")
    picture(tmp_path / "named" / name, (24, 16))
    assert len(images_of(tmp_path / "named")[0]) == 1
    assert len(images_of(tmp_path / "named", {name})[0]) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.jsonl", '{"file_name": "10.png", "text": "ten"}\n{"file_name": "2.png", "text": "two"}\n'),
        ("metadata.csv", "file_name,text,seed\n10.png,ten,0\n2.png,two,0\n"),
        ("p.tsv", "prompt\tfile\nten\t10.png\ntwo\t2.png\n"),
        ("p.json", '[{"image": "10.png", "caption": "ten"}, {"image": "2.png", "caption": "two"}]'),
        ("p.csv", "prompt\ntwo\nten\n"),
        ("p.jsonl", '{"prompt": "two"}\n{"prompt": "ten"}\n'),
        ("p.txt", "# in order\ntwo\nten\n\n"),
    ],
)
def test_tables_of_others_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert captions(tmp_path / name, None, ["2.png", "10.png"]) == ["two", "ten"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.jsonl", '{"id": 1}\n{"id": 2}\n', "line 1 of .* has no prompt"),
        ("p.jsonl", '{"file": "2.png", "prompt": "x"}\n' * 2, "names 2.png twice"),
        ("p.jsonl", '{"file": "2.png", "prompt": 2}\n', "a prompt must be a text"),
        ("p.jsonl", '{"prompt": 2}\n{"prompt": 2}\n', "a prompt must be a text"),
        ("p.tsv", "a\tb\nx\ty\n", "has no column of prompts"),
        ("p.yaml", "- x\n- y\n", "is no file of prompts that is read here"),
    ],
)
def test_tables_that_are_not_clear_are_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserMistake, match=said):
        captions(tmp_path / name, None, ["2.png", "10.png"])

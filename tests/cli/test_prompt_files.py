"""Prompts in files: no line of a table is ever a prompt, and what is not clear is a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from genbo.cli.errors import UserMistake
from genbo.cli.job.job import JobMistakes, read_job
from genbo.cli.job.prompt_files import rows_of
from tests.cli.conftest import JOB

TWO = ["a dog, a cat", 'say "hi"']
READ = {
    "plain lines": ("p.txt", 'a dog, a cat\n\nsay "hi"\n\n'),
    "no suffix": ("prompts", 'a dog, a cat\nsay "hi"'),
    "windows lines": ("p.txt", '\ufeffa dog, a cat\r\n\r\nsay "hi"\r\n'),
    "old mac lines": ("p.txt", 'a dog, a cat\rsay "hi"'),
    "comments": ("p.txt", '# animals\na dog, a cat\n#\n  # words\nsay "hi"\n'),
    "json lines": ("p.jsonl", '{"prompt": "a dog, a cat", "id": 1}\n\n{"prompt": "say \\"hi\\"", "id": 2}\n'),
    "json lines by another key": ("p.ndjson", '{"id": 1, "TEXT": "a dog, a cat"}\r\n{"Text": "say \\"hi\\""}'),
    "json lines in a text": ("p.txt", '{"caption": "a dog, a cat"}\n{"caption": "say \\"hi\\""}\n'),
    "one prompt over another": (
        "p.jsonl",
        '{"text": "x", "prompt": "a dog, a cat"}\n{"text": "x", "prompt": "say \\"hi\\""}',
    ),
    "texts a line": ("p.jsonl", '"a dog, a cat"\n"say \\"hi\\""\n'),
    "a list": ("p.json", json.dumps(TWO)),
    "a list of objects, indented": ("p.txt", json.dumps([{"prompt": text} for text in TWO], indent=2)),
    "an object with a list": ("p.json", json.dumps({"name": "mine", "prompts": TWO})),
    "csv": ("p.csv", 'id,Prompt,kind\n1,"a dog, a cat",x\n2,"say ""hi""",y\n'),
    "csv with one column": ("p.csv", '"a dog, a cat"\n"say ""hi"""\n'),
    "csv with one named column": ("p.csv", '\ufeffprompt\r\n"a dog, a cat"\r\n"say ""hi"""\r\n'),
    "csv of a spreadsheet in Europe": ("p.csv", 'id;prompt\n1;a dog, a cat\n2;"say ""hi"""\n'),
    "tsv, as PartiPrompts": ("p.tsv", 'Prompt\tCategory\tNote\na dog, a cat\tAnimals\t\n"say ""hi"""\tWords\t\n'),
    "a table in a text": ("p.txt", 'file_name,text\na.png,"a dog, a cat"\nb.png,"say ""hi"""\n'),
}
REFUSED = {
    "no key": ("p.jsonl", '{"id": 1}\n', r"line 1 of p.jsonl has no prompt \(its keys: id\); call it prompt"),
    "no json": ("p.jsonl", '{"prompt": "a"}\na dog\n', "line 2 of p.jsonl is not JSON"),
    "half json": ("p.txt", '{"prompt": "a"}\na dog\n', "line 2 of p.txt is not JSON"),
    "no text": ("p.jsonl", '{"prompt": 3}\n', "line 1 of p.jsonl: a prompt must be a text, not 3"),
    "empty": ("p.jsonl", '{"prompt": " "}\n', "line 1 of p.jsonl: this prompt is empty"),
    "no column": ("p.csv", "id,words\n1,a dog\n", r"p.csv has no column of prompts .*\(id, words\); call the column"),
    "no header": ("p.csv", "1,a dog\n", "has no column of prompts"),
    "commas": ("p.csv", "prompt\na dog, a cat\n", "row 2 of p.csv has 2 columns, and the first 1; quote texts"),
    "an open quote": ("p.csv", 'prompt\n"a dog\n', "p.csv is no table"),
    "a mapping": ("p.json", '{"a.png": "a dog"}', "p.json has no prompts at its top"),
    "broken": ("p.json", '["a dog"', "p.json is not JSON"),
    "yaml": ("p.yaml", "- a dog\n", "p.yaml is no file of prompts that is read here"),
    "nothing": ("p.csv", "prompt\n", "p.csv holds no prompts"),
    "only comments": ("p.txt", "# a dog\n", "p.txt holds no prompts"),
    "deep": ("p.jsonl", "[" * 5000, "line 1 of p.jsonl is not JSON"),
}


@pytest.mark.parametrize(("name", "text"), READ.values(), ids=READ)
def test_prompts_are_read(name: str, text: str) -> None:
    assert [str(row.text).strip() for row in rows_of(name, text)] == TWO


def job_with(folder: Path, name: str, text: str) -> Any:
    (folder / name).write_bytes(text.encode())
    job = JOB.replace("kind: mixture", "pretrained: emoji").replace("[east, north]", name)
    (folder / "job.yaml").write_text(job.replace("samples: 24", f"samples: 24, prompts: {name}"))
    return read_job(folder / "job.yaml")


@pytest.mark.parametrize("what", ["csv", "tsv, as PartiPrompts", "json lines in a text", "windows lines"])
def test_a_job_takes_them_to_tune_and_to_judge(tmp_path: Path, what: str) -> None:
    job = job_with(tmp_path, *READ[what])
    assert list(job.prompts) == TWO and list(job.held_out) == TWO


@pytest.mark.parametrize(("name", "text", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_clear_is_a_mistake_of_the_job(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(JobMistakes, match=said) as found:
        job_with(tmp_path, name, text)
    assert {mistake.where for mistake in found.value.mistakes} == {"prompts", "evaluate.prompts"}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20), max_size=6))
def test_any_texts_come_back_from_json_lines_and_from_csv(texts: list[str]) -> None:
    lines = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
    assert [row.text for row in rows_of("p.jsonl", lines)] == texts
    cells = "id,prompt\n" + "".join('1,"' + text.replace('"', '""') + '"\n' for text in texts)
    assert [row.text for row in rows_of("p.csv", cells)] == texts


@example("0", "p.json")
@example('"a red apple"', "p.json")
@given(st.text(max_size=60), st.sampled_from(["p.txt", "p.csv", "p.tsv", "p.json", "p.jsonl"]))
def test_any_text_is_rows_or_a_sentence(text: str, name: str) -> None:
    try:
        rows = rows_of(name, text)
    except ValueError as refused:
        assert name in str(refused)
    else:
        assert all(row.where.endswith(name) for row in rows)


def test_characters_that_python_alone_calls_the_end_of_a_line_stay_in_a_prompt() -> None:
    assert [row.text for row in rows_of("p.txt", "a\u2028b\x0bc\x85d\ne")] == ["a\u2028b\x0bc\x85d", "e"]


def test_of_a_job_on_the_command_line_too(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"id": 1}\n')
    (tmp_path / "job.yaml").write_text(JOB.replace("kind: mixture", "pretrained: emoji"))
    with pytest.raises(UserMistake, match=r"--set prompts: line 1 of .*p\.jsonl has no prompt"):
        read_job(tmp_path / "job.yaml", [f"prompts={tmp_path / 'p.jsonl'}"])

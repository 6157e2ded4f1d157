"""How many tokens a prompt has: the same as the libraries count, without them, and said once and shortly."""

from __future__ import annotations

import inspect
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from genbo.diffusion.tokens import ASKED, loaded, readers_of, unsaid
from genbo.rewards._tokens import NAMED, TokenReader, reader, reader_of_open_clip, sentences
from genbo.rewards.clip import Clip
from tests.families import clip_tokenizer

TEXTS = [
    "",
    "a red dog",
    "  A   Red\tDOG  ",
    "it's 1234 o'clock, isn't it?!",
    "naïve café — 犬と猫 🐕 İstanbul",
    "<|endoftext|> in the middle",
    "supercalifragilisticexpialidocious " * 3,
    *("a red dog " * n for n in (3, 7, 8, 20)),
]
SHORT, LONG = "a red dog", "a red dog and " * 12


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json"])
def test_clips_tokens_are_counted_as_transformers_counts_them(tmp_path: Path, files: str) -> None:
    own = clip_tokenizer()
    own.save_pretrained(tmp_path)
    if files == "vocab.json":
        model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = "".join(f"{' '.join(pair)}\n" for pair in model["merges"])
        (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    count = reader("text_encoder", 16, tmp_path).count
    assert count is not None
    assert count(TEXTS) == [len(ids) for ids in own(TEXTS, truncation=False).input_ids]


def test_open_clips_tokens_are_counted_as_it_counts_them() -> None:
    from open_clip import SimpleTokenizer

    own, count = SimpleTokenizer(), reader_of_open_clip("clip", 77).count
    assert count is not None
    texts = [text for text in TEXTS if "<|" not in text]
    assert count(texts) == [len(own.encode(text)) + 2 for text in texts]


def test_what_t5_is_asked_for_is_the_default_of_the_family() -> None:
    import diffusers

    for name, limits in ASKED.items():
        call = inspect.signature(getattr(diffusers, name).__call__).parameters
        assert list(limits.values()) == [call["max_sequence_length"].default if "max_sequence_length" in call else 120]


FAMILIES = {  # what reads how much, as the small pipelines of tests/families.py have it
    "stable_diffusion": {"text_encoder": 16},
    "stable_diffusion_xl": {"text_encoder": 16, "text_encoder_2": 16},
    "stable_diffusion_3": {"text_encoder": 16, "text_encoder_2": 16, "text_encoder_3": 256},
    "flux": {"text_encoder": 16, "text_encoder_2": 512},
    "pixart_sigma": {"text_encoder": 300},
    "ddpm": {},
    "dit": {},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_text_encoder_has_its_limit(family: str, family_folder: Any) -> None:
    found = readers_of(family_folder(family))
    assert {known.name: known.limit for known in found} == FAMILIES[family]
    assert all(known.count is not None for known in found)


def test_encoders_that_agree_share_a_sentence(family_folder: Any) -> None:
    very = "x" * 300
    said = list(sentences(readers_of(family_folder("stable_diffusion_3")), [SHORT, LONG, very, SHORT]))
    first, second = said
    assert first.startswith("2 of 3 prompts are longer than 16 tokens; their ends are ignored: 'a red dog and a red")
    assert first.endswith("(by text_encoder, text_encoder_2)") and len(first) < 300
    assert second.startswith("1 of 3 prompts is longer than 256 tokens; its end is ignored: 'xxx")
    assert second.endswith("…' (by text_encoder_3)")


def test_only_the_first_are_named() -> None:
    counted = TokenReader("clip", 5, lambda texts: [len(text) for text in texts])
    (said,) = sentences([counted], [f"prompt {n}" for n in range(9)])
    assert said.startswith("9 of 9 prompts") and said.count("'") == 2 * NAMED and "and 6 more (by clip)" in said
    assert list(sentences([counted], ["abc", "abcde"])) == []


def test_a_template_is_counted_with_the_prompt() -> None:
    plain, within = Clip("emoji-clip"), Clip("emoji-clip", template=f"{'a picture ' * 9} of {{}}")
    assert [list(sentences(options.readers(), ["a dog"])) for options in (plain,)] == [[]]
    assert len(list(sentences(within.readers(), ["a dog"]))) == 1


def test_a_tokenizer_that_is_not_read_is_silent_until_it_is_loaded(family_folder: Any, tmp_path: Path) -> None:
    import shutil

    from diffusers import DiffusionPipeline

    shutil.copytree(family_folder("stable_diffusion"), tmp_path / "model")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer" / "tokenizer.json").write_text("{")
    known = readers_of(tmp_path / "model")
    assert [each.count for each in known] == [None] and list(sentences(known, [LONG])) == []
    (said,) = sentences(loaded(pipeline, known), [SHORT, LONG])
    assert said.startswith("1 of 2 prompts is longer than 16 tokens")
    assert loaded(pipeline, readers_of(family_folder("stable_diffusion"))) == []


@pytest.mark.parametrize("family", ["stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux"])
def test_what_the_libraries_say_is_not_shown(family: str, family_folder: Any) -> None:
    from genbo.diffusion.models.diffusers import Diffusers

    told: list[str] = []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    handler, model = Heard(), Diffusers(str(family_folder(family))).open()
    libraries = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for library in libraries:
        library.addHandler(handler)
    try:
        model.encode([SHORT, LONG])  # type: ignore[attr-defined]
        assert told == []
        with unsaid(model.pipeline):  # type: ignore[attr-defined]
            logging.getLogger(type(model.pipeline).__module__).warning("another warning")  # type: ignore[attr-defined]
        assert told == ["another warning"], "what else they say is"
        model.rows([LONG])  # type: ignore[attr-defined]
        assert len(told) > 1, "and they are themselves again"
    finally:
        for library in libraries:
            library.removeHandler(handler)


def test_check_counts_without_anything_heavy(family_folder: Any, tmp_path: Path) -> None:
    import subprocess
    import sys

    job = {
        "version": 1,
        "model": {"pretrained": str(family_folder("stable_diffusion")), "sampler": {"kind": "ddim", "steps": 2}},
        "prompts": [SHORT, LONG],
        "tune": {"guidance": {"start": 2.0}},
        "reward": {"kind": "clip", "pretrained": "emoji-clip"},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    code = (
        "import sys\nfrom genbo.cli.job.job import read_job\nfrom genbo.cli.plan.counts import plan\n"
        "print(*plan(read_job('job.yaml')).warnings, sep='\\n')\n"
        "print({'torch', 'transformers', 'diffusers', 'open_clip', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "1 of 2 prompts is longer than 16 tokens; its end is ignored: 'a red dog and" in done.stdout
    assert "1 of 2 prompts is longer than 20 tokens" in done.stdout
    assert done.stdout.endswith("set()\n")

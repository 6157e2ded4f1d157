"""The front door of the room: `read_job` gives the `Job` that a file or a dict describes, or all its mistakes at once.

Relative paths of models, rewards and prompts are resolved against the folder of the job file; `output` is
relative to the current folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from genbo.cli.errors import ArtifactRefused
from genbo.cli.job.hardware import likely_device, likely_gpu, likely_half
from genbo.cli.job.kind import Kind
from genbo.cli.job.overrides import override
from genbo.cli.job.reader import Reader, reason
from genbo.cli.job.reading import read
from genbo.cli.job.resolved import Chosen, Job
from genbo.cli.job.sections.prompts import NO_PROMPT
from genbo.cli.job.user_code import Allowed
from genbo.cli.job.yaml_nodes import MAX_BYTES, JobMistakes, Mistake, node_of_text, node_of_value
from genbo.diffusion.damage import names_in
from genbo.diffusion.kinds import declared
from genbo.rewards._traits import RewardTraits

__all__ = [
    "NO_PROMPT",
    "Chosen",
    "Job",
    "JobMistakes",
    "Kind",
    "Mistake",
    "likely_device",
    "likely_gpu",
    "likely_half",
    "read_job",
]

REWARD_WEIGHTS = ("open_clip_model.safetensors", "model.safetensors")  # in the folder of a reward


def read_job(
    source: Path | str | Mapping[str, object], overrides: Sequence[str] = (), code: Allowed | None = None
) -> Job:
    """The job in a file or a dict, with `a.b=c` overrides on top; or JobMistakes, with all of them.

    `code` is what it may run of the user's own: without it, nothing. Raises `ArtifactRefused` where weights are
    damaged, as far as their headers tell.
    """
    if isinstance(source, Mapping):
        root, base = node_of_value(dict(source)), Path.cwd()
    else:
        path = Path(source)
        root, base = node_of_text(read_text(path), str(path)), path.absolute().parent
    mistakes: list[Mistake] = []
    for text in overrides:
        try:
            override(root, text)
        except JobMistakes as found:
            mistakes += found.mistakes
    job = read(Reader(base, mistakes, code, root))
    if mistakes or job is None:
        raise JobMistakes(mistakes)
    if damages := _damages(job):
        raise ArtifactRefused("; ".join(damages))
    return job


def _damages(job: Job) -> list[str]:
    """What of the files of models and rewards is damaged, by their headers."""
    found = list(job.model.traits.damages())
    for file in dict.fromkeys(file for reward in job.scored for file in _weights_of(reward.options)):
        try:
            names_in(file)
        except ValueError as error:
            found.append(f"{error}; fetch or export it again")
    return found


def _weights_of(reward: object) -> list[Path]:
    """The safetensors that a reward would open, of those on this machine."""
    traits = declared(RewardTraits, reward)
    asked = [traits.weights_file, *(traits.folder / name for name in REWARD_WEIGHTS if traits.folder)]
    return [file for file in asked if file is not None and file.suffix == ".safetensors" and file.is_file()]


def read_text(path: Path) -> str:
    """The text of a job file; at most MAX_BYTES are read."""

    def refuse(message: str, line: int | None = None, column: int | None = None) -> JobMistakes:
        return JobMistakes([Mistake(str(path), line, column, "", message)])

    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise refuse("there is no such file; `genbo init > job.yaml` writes one") from None
    except IsADirectoryError:
        raise refuse("this is a folder; give the job file in it") from None
    except (OSError, ValueError) as error:
        raise refuse(f"cannot be read ({reason(error)}); correct the path") from None
    if len(data) > MAX_BYTES:
        raise refuse("larger than 1 MB; put long lists of prompts into a text file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise refuse("this byte is not UTF-8; save the file as UTF-8", line, column) from None

"""genbo init: a commented job to begin with, one for each kind of work."""

from __future__ import annotations

import sys
from pathlib import Path

from genbo.cli.errors import UserMistake
from genbo.cli.job.catalog import nearest

PREFIX = "init_"


def templates() -> dict[str, Path]:
    """The jobs that stand beside this file, by what they tune."""
    found = sorted(Path(__file__).parent.glob(f"{PREFIX}*.yaml"))
    return {path.stem.removeprefix(PREFIX).replace("_", "-"): path for path in found}


def run(kind: str) -> int:
    """Print the job."""
    known = templates()
    kind = kind.replace("_", "-")  # as the job's own key is written
    if kind not in known:
        raise UserMistake(f"there is no job to begin with for {kind!r}{nearest(kind, list(known))}")
    sys.stdout.write(known[kind].read_text(encoding="utf-8"))
    return 0

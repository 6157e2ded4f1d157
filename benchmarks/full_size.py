"""What sampling and tuning cost on networks of the published sizes, with random weights: minutes on one GPU.

    python -m benchmarks.full_size [--models sd15 sdxl sd3 flux] [--minutes 8] [--parts eager compiled]
        [--out figures.json] [--tiny]

Each model is measured by `benchmarks.full_size_one`, in a process of its own: none keeps memory from the next, and one
that fails or hangs takes nothing with it. Of the minutes left each has a share by its size; what one does not need is
the others'. Figures are written after each model, with what failed and what there was no time for. `--tiny` does it all
with small networks on the CPU and in one process, where times say nothing, and compiles where it has ten minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHARES = {"sd15": 19, "sdxl": 20, "sd3": 22, "flux": 39}  # of the time
HEADLINES = {  # of each part, the one figure that is printed
    "eager": "ratio",
    "outer_step": "seconds",
    "bank": "seconds",
    "largest_batch": "images",
    "compiled": "ratio",
}


def measured(names: list[str], more: list[str], share_s: float, left_s: float) -> dict[str, dict[str, Any]]:
    """What a process finds of these, as far as it comes; twice its share, or all that is left, is its end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        module = [sys.executable, "-m", "benchmarks.full_size_one", *names]
        options = ["--until", str(time.time() + share_s), "--out", str(out)]
        wrong = _ran([*module, *options, *more], min(2 * share_s, left_s), Path(folder) / "log")
        read = json.loads(out.read_text()) if out.exists() else {"about": {}, "found": {}}
    failed = {"process": {"error": wrong}} if wrong else {}
    return {name: {"about": read["about"], **read["found"].get(name, {}), **failed} for name in names}


def _ran(command: list[str], limit_s: float, log: Path) -> str | None:
    """None, or what was wrong. A file takes what is said: a compiler that outlives its caller would hold a pipe."""
    with log.open("w") as said:
        try:
            done = subprocess.run(command, stdout=said, stderr=said, check=False, timeout=max(limit_s, 1))
        except subprocess.TimeoutExpired:
            return f"ended after {limit_s:.0f} s"
    return log.read_text()[-2000:] if done.returncode else None


def line(name: str, found: dict[str, Any]) -> str:
    """One line of a model."""
    words = []
    for part, figures in found.items():
        if part in HEADLINES and HEADLINES[part] in figures:
            words.append(f"{part} {HEADLINES[part]} {figures[HEADLINES[part]]:.4g}")
        elif "error" in figures or "skipped" in figures:
            words.append(f"{part} {'failed' if 'error' in figures else 'left out'}")
    return f"{name}: " + ", ".join(words)


def main() -> None:
    """Measure, print a line a model, write JSON; exit code 1 where a part failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--parts", nargs="+", help="of each model, and not all of it")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    minutes = given.minutes or (1.0 if given.tiny else 8.0)
    more = [*(["--parts", *given.parts] if given.parts else []), *(["--tiny"] if given.tiny else [])]
    end, figures = time.time() + 60 * minutes, dict[str, dict[str, Any]]()
    together = [given.models] if given.tiny else [[name] for name in given.models]
    for at, names in enumerate(together):
        left, rest = end - time.time(), [name for later in together[at:] for name in later]
        share = left * sum(SHARES[name] for name in names) / sum(SHARES[name] for name in rest)
        found = measured(names, more, share, left)
        figures |= found
        print("\n".join(line(name, found[name]) for name in names), flush=True)
        if given.out:
            given.out.write_text(json.dumps({"minutes": minutes, "figures": figures}, indent=1) + "\n")
    if any("error" in part for found in figures.values() for part in found.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

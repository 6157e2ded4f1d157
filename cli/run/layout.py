"""The names of what lies in a run folder."""

from __future__ import annotations

SCHEMA = 1
TENSORS, WORDS, STEPS, MANIFEST = "state.safetensors", "state.json", "steps.jsonl", "MANIFEST.json"
ENVIRONMENT, STATUS, JOB, REPORT, LOCK = "environment.json", "status.json", "job.yaml", "report.json", "lock"
FOLDERS = ("ckpt", "banks", "weights", "evaluation", "tuned", "network")
FILES = (STEPS, ENVIRONMENT, REPORT, "report.html")
MARKS = (JOB, STATUS)  # what says that a folder is a run

"""A tree of YAML values -> a Job, in one pass over the sections that finds every mistake."""

from __future__ import annotations

from genbo.cli.job.auto_search import with_search
from genbo.cli.job.compatibility import misfits
from genbo.cli.job.grammar import SECTIONS
from genbo.cli.job.known_prompts import note_unknown_prompts, note_unread_prompts
from genbo.cli.job.reader import Reader
from genbo.cli.job.resolved import Job
from genbo.cli.job.sections.data import DATA
from genbo.cli.job.sections.lower import LOWER
from genbo.cli.job.sections.model import MODEL
from genbo.cli.job.sections.version import VERSION


def read(reader: Reader) -> Job | None:
    """The job at the reader's root, or None with all its mistakes noted in the reader."""
    root = reader.root
    if not isinstance(root.value, dict) or not root.value:
        wrong = "this job is empty" if not root.value else "a job is a mapping of keys to values"
        reader.note(root, f"{wrong}; `genbo init` prints one to begin with")
        return None
    if VERSION.of(reader) is None:
        return None
    for first in (MODEL, DATA):  # which keys there must be depends on them
        first.of(reader)
    reader.keys(root, [section.key for section in SECTIONS])
    for section in SECTIONS:
        if section.is_required(reader) and reader.at(section.key) is None:
            reader.note(root, section.missing, where=section.key)
    for section in (LOWER, *SECTIONS):
        section.of(reader)
    note_unknown_prompts(reader)
    note_unread_prompts(reader)
    values = {section.field: section.of(reader) for section in SECTIONS}
    if reader.mistakes or any(values[s.field] is None for s in SECTIONS if not s.optional):
        return None
    job = with_search(Job.model_construct(None, **values), root)
    for node, message, where in misfits(job, root):
        reader.note(node, message, where=where)
    return None if reader.mistakes else job

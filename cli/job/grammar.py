"""The keys of a job, in the order in which they are listed and written; each is a file in `sections/`."""

from __future__ import annotations

from typing import Any

from genbo.cli.job.section import Section
from genbo.cli.job.sections.budget import BUDGET
from genbo.cli.job.sections.data import DATA
from genbo.cli.job.sections.estimator import ESTIMATOR
from genbo.cli.job.sections.evaluate import EVALUATE
from genbo.cli.job.sections.finetune import FINETUNE
from genbo.cli.job.sections.keep import KEEP
from genbo.cli.job.sections.lower import LOWER
from genbo.cli.job.sections.model import MODEL
from genbo.cli.job.sections.optimizer import OPTIMIZER
from genbo.cli.job.sections.output import OUTPUT
from genbo.cli.job.sections.prompts import PROMPTS
from genbo.cli.job.sections.reward import REWARD
from genbo.cli.job.sections.search import SEARCH
from genbo.cli.job.sections.seed import SEED
from genbo.cli.job.sections.tune import TUNE
from genbo.cli.job.sections.version import VERSION

SECTIONS: tuple[Section[Any], ...] = (
    VERSION,
    MODEL,
    PROMPTS,
    TUNE,
    REWARD,
    DATA,
    LOWER,
    FINETUNE,
    KEEP,
    SEARCH,
    ESTIMATOR,
    OPTIMIZER,
    BUDGET,
    EVALUATE,
    SEED,
    OUTPUT,
)

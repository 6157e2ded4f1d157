"""Prompts that the model does not know, or that a reward lacks, as far as the keys of the job could be read."""

from __future__ import annotations

from genbo.cli.job.catalog import nearest
from genbo.cli.job.reader import Reader
from genbo.cli.job.sections.evaluate import EVALUATE
from genbo.cli.job.sections.keep import KEEP, KeepJob
from genbo.cli.job.sections.model import MODEL
from genbo.cli.job.sections.prompts import NO_PROMPT, PROMPTS, Prompts
from genbo.cli.job.sections.reward import REWARD, RewardJob
from genbo.diffusion.kinds import declared
from genbo.rewards._traits import RewardTraits


def note_unknown_prompts(reader: Reader) -> None:
    """An exact world knows a few prompts only, and a model of classes their names and numbers."""
    model, evaluate = MODEL.of(reader), EVALUATE.of(reader)
    known = model.traits.known_prompts if model else None
    if model is None or known is None:
        return
    what = "this model" if model.kind == "diffusers" else f"the world {model.kind}"
    held_out = evaluate.prompts if evaluate else None
    for prompts, loc in ((PROMPTS.of(reader), ["prompts"]), (held_out, ["evaluate", "prompts"])):
        for i, text in enumerate(prompts.texts if prompts else ()):
            if text not in known:
                message = f"{what} does not know the prompt {text!r}{nearest(text, list(known))}"
                reader.note(reader.root.find([*loc, i]), message)


def note_unread_prompts(reader: Reader) -> None:
    """A model that takes no prompts needs none, but a reward may: the images are scored by them."""
    model = MODEL.of(reader)
    if model is None or not model.takes_no_prompt:
        return
    if PROMPTS.of(reader) != Prompts(texts=NO_PROMPT):
        return
    scored_by: list[RewardJob | KeepJob] = [*(REWARD.of(reader) or ()), *(KEEP.of(reader) or ())]
    for scored in scored_by:
        if declared(RewardTraits, scored.options).reads_prompts:
            message = f"missing; {scored.name} reads prompts, though the model takes none"
            reader.note(reader.root, message, where="prompts")

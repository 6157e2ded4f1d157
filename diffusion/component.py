"""One component of a pipeline, loaded by its own library, whose report says whether its weights are whole.

diffusers and transformers rename tensors as they load them (names of older versions, prefixes, layers that were split),
fill what they miss with random numbers, and report it all: `output_loading_info`. Names are not compared here.

    missing       refused: the component would draw with random numbers
    mismatched    refused, with both shapes
    unexpected    refused where they are of more blocks than the config has, or most of the file; else a note
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from genbo.diffusion.damage import some
from genbo.diffusion.pipeline_folder import has_variant
from genbo.diffusion.refused import Refused
from genbo.diffusion.room import first_line, is_out_of_memory
from genbo.rewards._words import knows_words

if TYPE_CHECKING:
    from torch.nn import Module

COUNTED = re.compile(r"(^|\.)(num_batches_tracked|position_ids)$")  # buffers that no image depends on
SHAPES = re.compile(r"because (\S+) expected shape torch\.Size\(\[(.*?)\]\), but got torch\.Size\(\[(.*?)\]\)")
AGAIN = "fetch the model again"


@dataclass(frozen=True)
class Report:
    """What a library says of its loading. `mismatched` are (name, shape in the file, shape in the network)."""

    missing: list[str]
    unexpected: list[str]
    mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]]


def load_component(part: Path, library: str, kind: str, dtype: torch.dtype, variant: str | None) -> tuple[Any, str]:
    """The component of a class and what is to be noted of it, or "". Raises `Refused` for whatever is wrong with it."""
    made = _class(library, kind, part)
    if issubclass(made, torch.nn.Module):
        return load_network(made, part, dtype, variant if has_variant(part, variant) else None)
    with refusing(f"pretrained: {part} cannot be loaded as {kind}"):
        component = made.from_pretrained(part, local_files_only=True)
    if "Tokenizer" in kind:
        check_tokenizer(component, part)
    return component, ""


def load_network(made: Any, part: Path, dtype: torch.dtype, variant: str | None = None) -> tuple[Any, str]:
    """A network of a diffusers or transformers class, every weight of it from the files and finite; and a note."""
    from transformers import PreTrainedModel

    theirs = issubclass(made, PreTrainedModel)
    told: dict[str, Any] = {"dtype": dtype, "ignore_mismatched_sizes": True} if theirs else {"torch_dtype": dtype}
    told |= {"variant": variant} if variant else {}
    with refusing(f"pretrained: {part} cannot be loaded as {made.__name__}"):
        network, said = made.from_pretrained(
            part, use_safetensors=True, local_files_only=True, output_loading_info=True, **told
        )
    report = _report(network, said)
    _check_report(network, report, part)
    _check_finite(network, part, dtype)
    return network, _note(network, report, part)


def _class(library: str, kind: str, part: Path) -> Any:
    """The class by its name; only of what pipelines are made of."""
    import diffusers
    import transformers
    from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj

    try:
        made = simple_get_class_obj(library, kind)
    except (AttributeError, ImportError, RuntimeError) as error:
        raise Refused(
            f"pretrained: model_index.json names {kind} of {library} for {part.name}, which the installed version does "
            f"not have; update it (`pip install -U {library}`), or correct the name"
        ) from error
    networks = (diffusers.ModelMixin, transformers.PreTrainedModel)
    others = (
        diffusers.SchedulerMixin,
        transformers.PreTrainedTokenizerBase,
        transformers.ImageProcessingMixin,
        transformers.ProcessorMixin,
        transformers.FeatureExtractionMixin,
    )
    if not isinstance(made, type) or not issubclass(made, (*networks, *others)):
        raise Refused(f"pretrained: {kind} of {library}, which model_index.json names for {part.name}, is no component")
    return made


@contextmanager
def refusing(said: str, remedy: str = AGAIN) -> Iterator[None]:
    """Whatever a library raises over a file, as a sentence; its own warnings are left to our report."""
    try:
        with _silent():
            yield
    except Refused:
        raise
    except Exception as error:  # both raise whatever the files lead them to
        if is_out_of_memory(error):
            raise
        if found := SHAPES.search(str(error)):
            name, wanted, held = found.groups()
            raise Refused(_mismatched(said, name, _by(held), _by(wanted))) from error
        raise Refused(f"{said} ({first_line(error)}); {remedy}") from error


@contextmanager
def _silent() -> Iterator[None]:
    """Without the libraries' warnings, and for good without their bars, which would run through the live table."""
    import diffusers
    import transformers

    logs: Any = [diffusers.utils.logging, transformers.utils.logging]
    before = [log.get_verbosity() for log in logs]
    for log in logs:
        log.disable_progress_bar()
        log.set_verbosity(log.FATAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, verbosity in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)


# -- the report --------------------------------------------------------------------------------------------------------


def _report(network: Module, said: Any) -> Report:
    """What was left without values counts as missing too: diffusers believes an index of shards."""
    named = (*network.named_parameters(), *network.named_buffers())
    empty = {name for name, value in named if value.is_meta}
    mismatched = [(str(name), tuple(held), tuple(wanted)) for name, held, wanted in said["mismatched_keys"]]
    return Report(_sorted({*said["missing_keys"], *empty}), _sorted(said["unexpected_keys"]), sorted(mismatched))


def _sorted(names: Collection[str]) -> list[str]:
    return sorted(name for name in names if not COUNTED.search(name))


def _check_report(network: Module, report: Report, part: Path) -> None:
    if report.missing:
        raise Refused(f"pretrained: the weights of {part.name} in {part.parent} lack {some(report.missing)}; {AGAIN}")
    for name, held, wanted in report.mismatched[:1]:
        said = f"pretrained: {part} cannot be loaded as {type(network).__name__}"
        raise Refused(_mismatched(said, name, _by(held), _by(wanted), len(report.mismatched) - 1))
    if strange := _of_another(network, report):
        raise Refused(
            f"pretrained: the weights of {part.name} in {part.parent} hold {some(strange)}, for which its config.json "
            f"has no place, so it is another network's; {AGAIN}"
        )


def _of_another(network: Module, report: Report) -> list[str]:
    """Tensors that say that config and weights are of two networks.

    Text encoders are often published with fewer layers in the config than in the file, on purpose.
    """
    import diffusers

    own = list(network.state_dict())
    if isinstance(network, diffusers.ModelMixin):
        kinds = {_pattern(name) for name in own}
        if blocks := [name for name in report.unexpected if _pattern(name) in kinds]:
            return blocks
    return report.unexpected if len(report.unexpected) > len(own) and isinstance(network, diffusers.ModelMixin) else []


def _pattern(name: str) -> str:
    """A name without its numbers: of one kind of layer wherever it stands."""
    return re.sub(r"\d+", "#", name)


def _note(network: Module, report: Report, part: Path) -> str:
    if not report.unexpected:
        return ""
    total, first = len(report.unexpected) + len(network.state_dict()), some(report.unexpected)
    count = f"{len(report.unexpected)} of {total} tensors in the weights of {part.name}"
    return f"{count} have no layer by its config.json and are not used ({first})"


def _mismatched(said: str, name: str, held: str, wanted: str, more: int = 0) -> str:
    also = f", and {more} more differ" if more else ""
    return f"{said}: {name} is {held} in the file, but {wanted} by its config.json{also}; {AGAIN}"


def _by(shape: object) -> str:
    """`64 x 32`, of a tuple or of torch's own spelling."""
    numbers = shape if isinstance(shape, tuple) else re.findall(r"\d+", str(shape))
    return " x ".join(map(str, numbers)) or "a single number"


def _check_finite(network: Module, part: Path, dtype: torch.dtype) -> None:
    for key, value in network.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            remedy = "; fp16 may be too narrow for it, so set dtype: bf16" if dtype == torch.float16 else f"; {AGAIN}"
            raise Refused(f"pretrained: {part.name} in {part.parent} has a NaN or infinity in {key}{remedy}")


# -- words -------------------------------------------------------------------------------------------------------------


def check_tokenizer(tokenizer: object, part: Path) -> None:
    """Raises `Refused` where it knows no word, or its rules for joining letters are cut short.

    transformers makes an empty one of a folder that lacks its files, and reads half a file of merges.
    """
    with refusing(f"pretrained: the tokenizer in {part} cannot be used"):
        known = knows_words(tokenizer)
    if not known:
        raise Refused(f"pretrained: the tokenizer in {part} knows no word; {AGAIN}")
    if type(tokenizer).__name__ == "CLIPTokenizer" and (lost := _never_joined(tokenizer)):
        raise Refused(f"pretrained: no rule of the tokenizer in {part} makes its token {lost!r}; {AGAIN}")


def _never_joined(tokenizer: Any) -> str | None:
    """A token of several letters that no merge gives: CLIP's are all pairs of shorter ones."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    made = {"".join(pair) if isinstance(pair, list) else pair.replace(" ", "", 1) for pair in model["merges"]}
    known = {*made, *tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    return next((token for token in model["vocab"] if len(token.removesuffix("</w>")) > 1 and token not in known), None)


def check_words(tokenizer: Any, encoder: Any, part: Path) -> None:
    """Raises `Refused` where a tokenizer gives words that its text encoder does not know, or more than it reads."""
    known = encoder.get_input_embeddings().num_embeddings
    if tokenizer.vocab_size > known:
        raise Refused(
            f"pretrained: the tokenizer in {part} has {tokenizer.vocab_size} tokens, but its text encoder knows "
            f"{known}; give the tokenizer that it was trained with"
        )
    # not every text encoder has such a number in its config
    longest = getattr(encoder.config, "max_position_embeddings", None)
    if type(tokenizer).__name__ == "CLIPTokenizer" and longest and tokenizer.model_max_length > longest:
        raise Refused(
            f"pretrained: {part / 'tokenizer_config.json'} must say model_max_length: {longest}, as many tokens as its "
            "text encoder reads; fetch the model again"
        )

"""Folders as they are published and as they are damaged: what loads is what diffusers loads, and the rest is named.

Each case changes a copy of a small pipeline's folder. Copies are made of hard links, so a file is put anew, never
written into.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from genbo.cli.commands import check, tune
from genbo.cli.errors import ArtifactRefused
from genbo.cli.job.job import read_job
from genbo.diffusion import pipeline_folder
from genbo.diffusion.adapt import Adapter, adapt
from genbo.diffusion.component import load_network
from genbo.diffusion.guidance.plain import Plain
from genbo.diffusion.models.diffusers import Diffusers
from genbo.diffusion.models.unet import Unet
from genbo.diffusion.pipelines._pipeline import networks
from genbo.diffusion.process import process_of
from genbo.diffusion.refused import Refused
from genbo.diffusion.sample import sample
from genbo.diffusion.samplers.ddim import Ddim
from genbo.diffusion.samplers.euler import Euler
from genbo.diffusion.seed import Batch, Seed
from genbo.diffusion.tuned import export, load

Change = Callable[[Path], Any]
UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
VAE_JSON, TEXT_JSON, LEVELS = "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"
OLD = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


# -- changes -----------------------------------------------------------------------------------------------------------


def put(file: Path, data: bytes | str) -> None:
    """A new file in place of a link, so that the original stays what it is."""
    file.unlink(missing_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)


def save(file: Path, tensors: Mapping[str, Tensor]) -> None:
    file.unlink(missing_ok=True)
    save_file({name: t.contiguous() for name, t in tensors.items()}, file, metadata={"format": "pt"})


def tensors(file: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Change:
    return lambda folder: save(folder / file, change(load_file(folder / file)))


def without(file: str, name: str, **more: Tensor) -> Change:
    """The file without the tensor that ends so, and with decoys that begin with what is given."""
    return tensors(file, lambda held: {k: t for k, t in held.items() if not k.endswith(name)} | more)


def renamed(file: str, names: Mapping[str, str], where: str = "") -> Change:
    def change(held: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, value in held.items():
            new = name
            for now, then in names.items():
                new = new.replace(now, then) if where in name else new
            found[new] = value
        assert set(found) != set(held)
        return found

    return tensors(file, change)


def prefixed(file: str, prefix: str) -> Change:
    """Older transformers keep a text encoder's tensors below `text_model.`, newer ones do not."""

    def change(held: dict[str, Tensor]) -> dict[str, Tensor]:
        bare = {name.removeprefix("text_model."): value for name, value in held.items()}
        return {prefix + name: value for name, value in bare.items()}

    return tensors(file, change)


def decoy(prefix: str) -> Change:
    """A text encoder without a tensor, and one of another part that ends in the same name."""

    def change(held: dict[str, Tensor]) -> dict[str, Tensor]:
        lost = next(name for name in held if name.endswith("layers.0.self_attn.q_proj.weight"))
        value = held.pop(lost)
        return held | {prefix + lost.removeprefix("text_model."): torch.zeros_like(value)}

    return tensors(TEXT, change)


def config(file: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        said = json.loads((folder / file).read_text())
        put(folder / file, json.dumps({**said, **changes}))

    return change


def cut(file: str, keep: float = 0.5) -> Change:
    def change(folder: Path) -> None:
        data = (folder / file).read_bytes()
        put(folder / file, data[: int(len(data) * keep)])

    return change


def filled(file: str, data: str = "") -> Change:
    return lambda folder: put(folder / file, data)


def gone(*files: str) -> Change:
    return lambda folder: [(folder / file).unlink() for file in files]


def sharded(file: str, *, lose: str = "", invent: str = "", drop_shard: bool = False, variant: str = "") -> Change:
    """Two shards and their index: `lose` leaves a tensor out of its shard, `invent` adds a name to the index alone."""

    def change(folder: Path) -> None:
        path, dot = folder / file, f".{variant}" if variant else ""
        held, stem = load_file(path), path.name.removesuffix(".safetensors")
        path.unlink()
        names = sorted(held)
        shards = {f"{stem}{dot}-0000{n + 1}-of-00002.safetensors": names[n::2] for n in (0, 1)}
        for shard, own in shards.items():
            save(path.with_name(shard), {name: held[name] for name in own if not lose or not name.endswith(lose)})
        weight_map = {name: shard for shard, own in shards.items() for name in own}
        if invent:
            weight_map[invent] = next(iter(shards))
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        put(path.with_name(f"{stem}.safetensors.index{dot}.json"), json.dumps(index))
        if drop_shard:
            path.with_name(next(reversed(shards))).unlink()

    return change


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def at_root(folder: Path) -> None:
    """Everything beside model_index.json, as the first published DDPMs are laid out."""
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()


def old_words(folder: Path) -> None:
    """vocab.json and merges.txt, as CLIP's tokenizers were saved before there was tokenizer.json."""
    part = folder / "tokenizer"
    model = json.loads((part / "tokenizer.json").read_text())["model"]
    put(part / "vocab.json", json.dumps(model["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    put(part / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    (part / "tokenizer.json").unlink()


def no_words(folder: Path) -> None:
    """A tokenizer that is valid and knows its special tokens alone."""
    said = json.loads((folder / "tokenizer/tokenizer.json").read_text())
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    said["model"] |= {"vocab": vocab, "merges": []}
    put(folder / "tokenizer/tokenizer.json", json.dumps(said))


def listed(**entries: Any) -> Change:
    return config("model_index.json", **entries)


def left_out(*names: str, how: Any = (None, None)) -> Change:
    def change(folder: Path) -> None:
        listed(**dict.fromkeys(names, how))(folder)
        for name in names:
            shutil.rmtree(folder / name)

    return change


def tied(keep: str, drop: str) -> Change:
    """Of T5's embedding the one name alone that this or that version wrote."""

    def change(held: dict[str, Tensor]) -> dict[str, Tensor]:
        (value,) = {id(t): t for n, t in held.items() if n in (keep, drop)}.values()
        return {name: t for name, t in held.items() if name not in (keep, drop)} | {keep: value}

    return tensors(TEXT, change)


def extra(file: str, **more: Tensor) -> Change:
    return tensors(file, lambda held: held | {name.replace("__", "."): t for name, t in more.items()})


def halves(held: dict[str, Tensor]) -> dict[str, Tensor]:
    """Some in half precision: mixtures are published."""
    return {name: t.half() if n % 2 else t for n, (name, t) in enumerate(sorted(held.items()))}


def as_variant(file: str, variant: str) -> Change:
    def change(folder: Path) -> None:
        path = folder / file
        path.rename(path.with_name(path.name.replace(".safetensors", f".{variant}.safetensors")))

    return change


# -- what loads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loads:
    family: str
    change: Change
    note: str = ""
    variant: str | None = None
    absent: tuple[str, ...] = ()
    same: bool = True  # as before the change; else as diffusers loads them


SD, T5 = "stable_diffusion", "pixart_sigma"
CHECKER = ["stable_diffusion", "StableDiffusionSafetyChecker"]
LOADS = {
    "old names in the VAE": Loads(SD, renamed(VAE, OLD, "mid_block.attentions")),
    "old names in a U-Net of pixels": Loads("ddpm", renamed(UNET, OLD, "attentions")),
    "everything at the root": Loads("ddpm", at_root),
    "old names at the root": Loads("ddpm", both(renamed(UNET, OLD, "attentions"), at_root)),
    "sharded": Loads(SD, both(sharded(UNET), sharded(TEXT))),
    "sharded of a variant": Loads(SD, both(sharded(UNET, variant="fp16"), sharded(TEXT, variant="fp16")), "", "fp16"),
    "a variant of some components": Loads(SD, both(as_variant(UNET, "fp16"), as_variant(TEXT, "fp16")), "", "fp16"),
    "a mixture of precisions": Loads(SD, both(tensors(UNET, halves), tensors(TEXT, halves)), same=False),
    "a text encoder with text_model": Loads(SD, prefixed(TEXT, "text_model.")),
    "a text encoder without text_model": Loads(SD, prefixed(TEXT, "")),
    "position_ids": Loads(SD, extra(TEXT, text_model__embeddings__position_ids=torch.arange(16)[None])),
    "T5 with shared alone": Loads(T5, tied("shared.weight", "encoder.embed_tokens.weight")),
    "T5 with embed_tokens alone": Loads(T5, tied("encoder.embed_tokens.weight", "shared.weight")),
    "a whole T5": Loads(T5, extra(TEXT, decoder__final_layer_norm__weight=torch.ones(32))),
    "a VAE without quant_conv": Loads("stable_diffusion_3", lambda folder: None),
    "a discriminator beside the VAE": Loads(
        SD, extra(VAE, loss__logvar=torch.ones(1)), r"^1 of \d+ tensors in the weights of vae .*\(loss\.logvar\)$"
    ),
    "more layers in the file than the text encoder's config": Loads(
        SD,
        config("text_encoder/config.json", num_hidden_layers=1),
        r"^16 of \d+ tensors in the weights of text_encoder",
        same=False,
    ),
    "vocab.json and merges.txt": Loads(SD, old_words),
    "no T5": Loads("stable_diffusion_3", left_out("text_encoder_3", "tokenizer_3"), absent=("text_encoder_3",)),
    "T5 null": Loads(
        "stable_diffusion_3", left_out("text_encoder_3", "tokenizer_3", how=None), absent=("text_encoder_3",)
    ),
    "a safety checker that is not there": Loads(SD, listed(safety_checker=CHECKER, feature_extractor=[None, None])),
    "an infinity that bounds nothing": Loads(
        SD, config("scheduler/scheduler_config.json", lambda_min_clipped=-float("inf"))
    ),
    "shifts that are null": Loads(
        "stable_diffusion_3", config(LEVELS, **dict.fromkeys(("base_shift", "max_shift", "max_image_seq_len")))
    ),
    "a file of another program": Loads(SD, both(filled("unet/LICENSE"), filled("README.md", "a model"))),
}


@pytest.fixture
def changed(family_folder, tmp_path) -> Callable[[str, Change], Path]:
    def folder_of(family: str, change: Change) -> Path:
        folder = Path(shutil.copytree(family_folder(family), tmp_path / "model", copy_function=os.link))
        change(folder)
        return folder

    return folder_of


def from_diffusers(folder: Path, **options: Any) -> Any:
    """By diffusers itself, told what a user of it would tell."""
    from diffusers import DiffusionPipeline

    index = json.loads((folder / "model_index.json").read_text())
    nothing = {name: None for name in pipeline_folder.nulls(index) if name.endswith("_3")}
    nothing |= {"safety_checker": None} if "safety_checker" in index else {}
    return DiffusionPipeline.from_pretrained(folder, use_safetensors=True, local_files_only=True, **nothing, **options)


def weights_of(pipeline: Any) -> dict[str, dict[str, Tensor]]:
    return {name: network.state_dict() for name, network in networks(pipeline).items()}


@pytest.fixture(scope="module")
def original(family_folder) -> Callable[[str], dict[str, dict[str, Tensor]]]:
    """The weights of a family's pipeline as diffusers loads them, before any change."""
    return cache(lambda family: weights_of(from_diffusers(family_folder(family))))


@pytest.mark.parametrize("case", LOADS)
def test_it_loads_what_diffusers_loads(changed, original, case):
    """Every weight of every component, bit by bit."""
    told = LOADS[case]
    folder = changed(told.family, told.change)
    options = Diffusers(pretrained=str(folder), variant=told.variant, device="cpu", dtype="fp32")
    assert options.mistakes() == [] and options.damages() == []
    model: Any = options.open()
    theirs = original(told.family) if told.same else weights_of(from_diffusers(folder, variant=told.variant))
    own = weights_of(model.pipeline)
    assert set(own) == set(theirs) - set(told.absent)
    for name, found in own.items():
        expected = theirs[name]
        assert set(found) == set(expected)
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name
    assert (len(model.notes), bool(told.note)) in ((0, False), (1, True))
    assert all(re.search(told.note, note) for note in model.notes)


@pytest.mark.parametrize(
    "case",
    ["old names in the VAE", "everything at the root", "no T5", "vocab.json and merges.txt", "shifts that are null"],
)
def test_it_draws_what_diffusers_draws_and_so_does_the_tuned_folder(changed, tmp_path, case):
    told = LOADS[case]
    folder = changed(told.family, told.change)
    model: Any = Diffusers(pretrained=str(folder), device="cpu").open()
    prompts, weight, more = {
        "ddpm": (("", ""), 1.0, {}),
        "stable_diffusion": (("a red apple", "a dog"), 3.0, {"prompt": ["a red apple", "a dog"]}),
        "stable_diffusion_3": (("a red apple", "a dog"), 3.0, {"prompt": ["a red apple", "a dog"]}),
    }[told.family]
    sampler = Euler(steps=3) if told.family == "stable_diffusion_3" else Ddim(steps=3)
    process = process_of(model, sampler, Plain(weight))
    with torch.no_grad():
        found = model.decode(sample(process, Batch(prompts, (1, 2))))
    theirs = from_diffusers(folder)
    theirs.scheduler = model.scheduler(sampler)
    theirs.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    if more:
        more |= {"guidance_scale": weight, "height": 16, "width": 16, "output_type": "pt"}
        expected = theirs(generator=noise, num_inference_steps=3, **more).images
    else:
        shown = theirs(batch_size=2, generator=noise, num_inference_steps=3, output_type="np").images
        expected = torch.from_numpy(shown).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    export(process, tmp_path / "tuned", {})
    again = load(tmp_path / "tuned", device="cpu").process
    with torch.no_grad():
        kept = again.model.decode(sample(again, Batch(prompts, (1, 2))))
    torch.testing.assert_close(kept, found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["lora", "full"])
def test_trained_weights_stand_in_the_tuned_folder_by_the_names_of_today(changed, tmp_path, how):
    """On top of a file of old names, whose other tensors are kept too."""
    model: Any = Diffusers(pretrained=str(changed("ddpm", LOADS["old names at the root"].change)), device="cpu").open()
    own = adapt(model, Adapter(how, rank=2), Seed(0))
    with torch.no_grad():
        for n, weight in enumerate(own.weights.values()):
            weight.add_(0.1 * torch.randn(weight.shape, generator=Seed(n).generator()))
    process = process_of(own, Ddim(steps=2), Plain(1.0))
    export(process, tmp_path / "tuned", {})
    again = load(tmp_path / "tuned", device="cpu").process
    with torch.no_grad():
        found, expected, before = (
            p.model.decode(sample(p, Batch(("",), (1,))))
            for p in (again, process, process_of(model, Ddim(steps=2), Plain(1.0)))
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - before).abs().max() > 1e-3


def test_a_network_of_ones_own_is_loaded_whole(changed, tmp_path):
    """The folder of a U-Net, or of a pipeline with one, for `model: {kind: unet}`."""
    folder = changed("ddpm", renamed(UNET, OLD, "attentions"))
    data = SimpleNamespace(shape=(3, 8, 8), classes=())
    found = Unet(pretrained=str(folder), device="cpu").open(data).module.state_dict()
    expected = from_diffusers(folder).unet.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    cut(UNET)(folder)
    options = Unet(pretrained=str(folder), device="cpu")
    assert options.mistakes() == [] and "was cut short" in options.damages()[0]
    with pytest.raises(Refused, match="was cut short"):
        options.open(data)


def test_what_was_left_unused_stands_in_the_report(changed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job = {
        "version": 1,
        "model": {"pretrained": str(changed(SD, LOADS["a discriminator beside the VAE"].change)), "device": "cpu"},
        "prompts": ["a dog", "a cat"],
        "reward": {"kind": "compressibility"},
        "tune": {"guidance": {"start": 3.0}},
        "estimator": {"kind": "zeroth_order"},
        "budget": {"steps": 1, "samples": 2},
        "evaluate": {"samples": 4},
        "output": "run",
    }
    job["model"] |= {"sampler": {"kind": "ddim", "steps": 2}}
    report = tune.tune(job).result().document
    said = [remark for remark in report["trust"] if "are not used (loss.logvar)." in str(remark)]
    assert len(said) == 1 and said[0]["level"] == "note"


# -- what does not -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lacks:
    """`seen` where file headers and JSON tell it, so that `check` does too."""

    family: str
    change: Change
    said: str
    seen: bool = False


BLOCK = "down_blocks.0.resnets.0.conv1.weight"
LACKS = {
    "a tensor of the U-Net": Lacks(SD, without(UNET, "conv_out.weight"), "of unet in .* lack conv_out.weight; fetch"),
    "two of the VAE": Lacks(
        SD, without(VAE, "quant_conv.weight"), r"of vae in .* lack post_quant_conv.weight and 1 more; fetch"
    ),
    "one of FLUX": Lacks(
        "flux",
        without("transformer/diffusion_pytorch_model.safetensors", "proj_out.weight"),
        r"of transformer in .* lack (single_transformer_blocks\.0\.)?proj_out.weight",
    ),
    "one behind a decoy": Lacks(SD, decoy("vision_model."), r"of text_encoder in .* lack \S*q_proj.weight"),
    "one behind another decoy": Lacks(SD, decoy("a.text_model."), r"of text_encoder in .* lack \S*q_proj.weight"),
    "one of a VAE of old names": Lacks(
        SD,
        both(renamed(VAE, OLD, "mid_block.attentions"), without(VAE, "decoder.mid_block.attentions.0.key.weight")),
        "of vae in .* lack decoder.mid_block.attentions.0.to_k.weight",
    ),
    "both names of T5's embedding": Lacks(
        T5,
        both(without(TEXT, "shared.weight"), without(TEXT, "embed_tokens.weight")),
        "of text_encoder in .* lack (encoder.embed_tokens|shared).weight",
    ),
    "a tensor that the index places": Lacks(
        SD, sharded(UNET, lose="conv_out.weight"), "lack conv_out.weight, which .*index.json places in", seen=True
    ),
    "a tensor that the index invents": Lacks(SD, sharded(UNET, invent="conv_new.weight"), "lack conv_new", seen=True),
    "a shard": Lacks(SD, sharded(TEXT, drop_shard=True), "model-00002-of-00002.safetensors is missing", seen=True),
    "an index that can be read": Lacks(
        SD,
        both(sharded(UNET), filled("unet/diffusion_pytorch_model.safetensors.index.json", "{")),
        "index.json cannot be read",
        seen=True,
    ),
    "an index of files beside it": Lacks(
        SD,
        both(
            sharded(UNET),
            config(
                "unet/diffusion_pytorch_model.safetensors.index.json", weight_map={"conv_in.bias": "../x.safetensors"}
            ),
        ),
        "is no index of shards",
        seen=True,
    ),
    "the end of the VAE": Lacks(SD, cut(VAE), "vae/.*was cut short", seen=True),
    "the last byte of the U-Net": Lacks(SD, cut(UNET, 0.999999), "unet/.*was cut short", seen=True),
    "most of the text encoder": Lacks(SD, cut(TEXT, 1e-4), "text_encoder/.*(cut short|damaged)", seen=True),
    "everything of a file": Lacks(SD, filled(TEXT), "text_encoder/.* is empty", seen=True),
    "weights, and has a pointer": Lacks(
        SD, filled(UNET, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "pointer of Git LFS", seen=True
    ),
    "a header that is JSON": Lacks(
        SD, lambda folder: put(folder / UNET, struct.pack("<Q", 8) + b"\xff" * 8), "unet/.*damaged", seen=True
    ),
    "weights of the library's name": Lacks(
        SD, lambda folder: (folder / UNET).rename(folder / "unet/model.safetensors"), "has neither diffusion", seen=True
    ),
    "a config": Lacks(SD, gone("unet/config.json"), "unet has no config.json", seen=True),
    "a config that is JSON": Lacks(SD, filled(VAE_JSON, "{"), "vae/config.json cannot be read", seen=True),
    "a config that is a mapping": Lacks(SD, filled(VAE_JSON, "[]"), "it is no mapping", seen=True),
    "words": Lacks(SD, gone("tokenizer/tokenizer.json"), "tokenizer has no vocabulary", seen=True),
    "merges": Lacks(SD, both(old_words, gone("tokenizer/merges.txt")), "tokenizer has no vocabulary", seen=True),
    "anything in merges": Lacks(SD, both(old_words, filled("tokenizer/merges.txt")), "merges.txt is empty", seen=True),
    "the end of merges": Lacks(
        SD, both(old_words, filled("tokenizer/merges.txt", "#version: 0.2\nr e\nd o\n")), "no rule of the"
    ),
    "known words": Lacks(SD, no_words, "tokenizer in .* knows no word"),
    "the end of its words": Lacks(SD, cut("tokenizer/tokenizer.json"), "tokenizer.json cannot be read", seen=True),
    "the number of tokens": Lacks(SD, gone("tokenizer/tokenizer_config.json"), "must say model_max_length: 16"),
    "the tokenizer of its encoder": Lacks(
        SD,
        both(
            config(TEXT_JSON, vocab_size=100),
            tensors(
                TEXT, lambda held: {n: t[:100] if n.endswith("token_embedding.weight") else t for n, t in held.items()}
            ),
        ),
        "has 521 tokens, but its text encoder knows 100",
    ),
    "the VAE": Lacks(SD, left_out("vae"), "says null for vae", seen=True),
    "the text encoder": Lacks(SD, left_out("text_encoder"), "says null for text_encoder", seen=True),
    "a word of the VAE": Lacks(
        SD,
        lambda folder: put(
            folder / "model_index.json",
            json.dumps({k: v for k, v in json.loads((folder / "model_index.json").read_text()).items() if k != "vae"}),
        ),
        "model_index.json names no vae",
    ),
    "an index": Lacks(SD, gone("model_index.json"), "has no model_index.json", seen=True),
    "a class that there is": Lacks(SD, listed(unet=["diffusers", "UNet9DModel"]), "names UNet9DModel of diffusers"),
    "a class that is a component": Lacks(SD, listed(unet=["diffusers", "EMAModel"]), "is no component"),
    "a class of transformers that there is": Lacks(
        SD, listed(text_encoder=["transformers", "ClipText"]), "names ClipText of transformers for text_encoder"
    ),
    "its own config: fewer blocks": Lacks(
        "pixart_sigma", config("transformer/config.json", num_layers=1), "of transformer in .* has no place"
    ),
    "its own config: another width": Lacks(
        SD,
        config("unet/config.json", block_out_channels=[32, 96]),
        r"unet.*: \S+ is [\d x]+ in the file, but [\d x]+ by",
    ),
    "its own config: another text width": Lacks(
        SD, config(TEXT_JSON, intermediate_size=48), r"text_encoder.*: \S+ is \d+ in the file, but 48 by .* and 5 more"
    ),
    "a shape": Lacks(
        SD,
        tensors(VAE, lambda held: held | {"quant_conv.bias": torch.zeros(9)}),
        "quant_conv.bias is 9 in the file, but 8 by its config.json",
    ),
    "finite weights": Lacks(
        SD,
        tensors(VAE, lambda held: held | {"quant_conv.bias": torch.full((8,), float("inf"))}),
        "vae in .* has a NaN or infinity in quant_conv.bias",
    ),
    "a finite scale of the VAE": Lacks(
        SD, config(VAE_JSON, scaling_factor=float("nan")), "vae/config.json says scaling_factor: nan", seen=True
    ),
    "a finite shift": Lacks(
        "flux", config(VAE_JSON, shift_factor=float("inf")), "vae/config.json says shift_factor: inf", seen=True
    ),
    "finite betas": Lacks(
        SD, config(LEVELS, beta_end=float("nan")), "scheduler_config.json says beta_end: nan", seen=True
    ),
    "a finite beta of its own": Lacks(
        SD, config(LEVELS, trained_betas=[0.1, float("nan")]), r"says trained_betas\.1: nan", seen=True
    ),
    "betas below 1": Lacks(SD, config(LEVELS, beta_end=3.0), r"not every beta lies in \[0, 1\]"),
    "a scale that is a number": Lacks(
        SD, config(VAE_JSON, scaling_factor="0.18215"), 'says scaling_factor: "0.18215", which must be', seen=True
    ),
    "a scale above 0": Lacks(SD, config(VAE_JSON, scaling_factor=0), "scaling_factor: 0, which must be", seen=True),
    "steps that are a number": Lacks(
        SD, config(LEVELS, num_train_timesteps="1000"), "says num_train_timesteps: .*must be a number", seen=True
    ),
    "channels that are numbers": Lacks(
        SD, config("unet/config.json", block_out_channels="32"), "says block_out_channels", seen=True
    ),
    "a kind of block that there is": Lacks(
        SD, config("unet/config.json", down_block_types=["Down9", "Down9"]), "unet cannot be loaded as UNet2DCond"
    ),
    "a number for its activation": Lacks(SD, config(TEXT_JSON, hidden_act=3), "text_encoder cannot be loaded as CLIP"),
    "a number for its precision": Lacks(SD, config(TEXT_JSON, layer_norm_eps="small"), "text_encoder cannot be loaded"),
    "a prediction that there is": Lacks(
        SD, config(LEVELS, prediction_type="noise"), 'prediction_type: "noise", which must be one of epsilon', seen=True
    ),
    "a spacing that there is": Lacks(SD, config(LEVELS, timestep_spacing=3), "timestep_spacing: 3, which", seen=True),
    "one scale": Lacks(SD, config(VAE_JSON, scaling_factor=[0.1]), r"scaling_factor: \[0.1\], which", seen=True),
    "a shift above 0": Lacks("flux", config(LEVELS, shift=0), "shift: 0, which must be greater than 0", seen=True),
    "a scale at all": Lacks(SD, config(VAE_JSON, scaling_factor=None), "scaling_factor: null, which", seen=True),
    "means for its channels": Lacks(
        SD, config(VAE_JSON, latents_mean=[0.0] * 3), "latents_mean of 3 numbers, for 4 latent_channels", seen=True
    ),
    "as many betas as steps": Lacks(SD, config(LEVELS, trained_betas=[0.1, 0.2]), "has 2 betas for 1000 training"),
    "a scheduler's config": Lacks(SD, gone(LEVELS), "scheduler has no scheduler_config.json", seen=True),
    "a side or two": Lacks(
        "ddpm", config("unet/config.json", sample_size=[8, 8, 8]), r"sample_size: \[8, 8, 8\], which must", seen=True
    ),
    "a size": Lacks("ddpm", config("unet/config.json", sample_size=None), "has no sample_size"),
    "a component that is listed": Lacks(SD, listed(vae="AutoencoderKL"), "model_index.json names no vae"),
    "a class by name": Lacks(SD, listed(vae=["diffusers", ["AutoencoderKL"]]), "component 'vae' comes from", seen=True),
    "a tokenizer for its T5": Lacks(
        "stable_diffusion_3", left_out("tokenizer_3"), "says null for tokenizer_3", seen=True
    ),
    "one value of a tensor": Lacks(
        SD,
        tensors(TEXT, lambda held: held | {f"text_model.{name}": torch.zeros_like(t) for name, t in held.items()}),
        r"text_encoder/model.safetensors holds (\S+) and text_model\.\1, which are two values",
        seen=True,
    ),
    "a package for its numbers": Lacks(
        SD,
        config("unet/config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "unet cannot be loaded as UNet2DConditionModel .*bitsandbytes",
    ),
}


@pytest.mark.parametrize("case", LACKS)
def test_it_is_refused_in_a_sentence_that_names(changed, case):
    told = LACKS[case]
    options = Diffusers(pretrained=str(changed(told.family, told.change)), device="cpu")
    seen = options.mistakes() or options.damages()
    assert bool(seen) == told.seen
    with pytest.raises(Refused, match=told.said) as refused:
        options.open()
    text = str(refused.value)
    assert text.startswith("pretrained: ") and "\n" not in text and len(text) < 500
    if told.seen:
        assert "; ".join(seen) == text


def test_what_headers_tell_is_told_by_check_and_is_no_mistake_of_the_job(changed):
    folder = changed(SD, cut(VAE))
    job = folder.parent / "job.yaml"
    job.write_text(
        f"version: 1\nmodel: {{pretrained: {folder}}}\nprompts: [a dog]\nreward: {{kind: quadratic}}\n"
        "tune: {guidance: {start: 3.0}}\n"
    )
    with pytest.raises(ArtifactRefused, match=r"vae/.*was cut short") as refused:
        check.run(job)
    assert refused.value.exit_code == 3


def test_so_is_what_the_headers_of_rewards_tell(tiny_clip, tmp_path):
    folder = Path(shutil.copytree(tiny_clip, tmp_path / "clip", copy_function=os.link))
    job = {
        "version": 1,
        "prompts": ["a dog"],
        "reward": {"kind": "clip", "pretrained": str(folder)},
        "tune": {"guidance": {"start": 3.0}},
    }
    read_job(job)
    cut("open_clip_model.safetensors")(folder)
    with pytest.raises(ArtifactRefused, match=r"open_clip_model.safetensors was cut short.*; fetch or export it again"):
        read_job(job)


def test_a_variant_that_no_component_has(family_folder):
    (said,) = Diffusers(pretrained=str(family_folder(SD)), variant="fp16").mistakes()
    assert "no component" in said and "leave variant out" in said


def test_nothing_is_logged_of_what_is_reported(changed, capfd):
    with pytest.raises(Refused):
        Diffusers(pretrained=str(changed(SD, without(TEXT, "final_layer_norm.weight"))), device="cpu").open()
    assert "".join(capfd.readouterr()) == ""


# -- sentencepiece -----------------------------------------------------------------------------------------------------


def spiece(folder: Path) -> None:
    """A T5 tokenizer that is a sentencepiece model alone, as PixArt-Sigma's is published: single letters."""

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    def text(number: int, data: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(data)) + data

    def whole(number: int, n: int) -> bytes:
        return varint(number << 3) + varint(n)

    def piece(word: str, score: float, kind: int) -> bytes:
        return text(1, text(1, word.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + whole(3, kind))

    pieces = [("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2), ("\u2581", -2.0, 1)]
    pieces += [(chr(n), -3.0, 1) for n in range(33, 127)]
    trainer = whole(3, 1) + whole(40, 2) + whole(41, (1 << 64) - 1) + whole(42, 1) + whole(43, 0)
    normalizer = text(1, b"nmt_nfkc") + whole(3, 1) + whole(4, 1) + whole(5, 1)
    part = folder / "tokenizer"
    (part / "tokenizer.json").unlink()
    put(part / "spiece.model", b"".join(piece(*p) for p in pieces) + text(2, trainer) + text(3, normalizer))
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    said = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 120, **special}
    put(part / "tokenizer_config.json", json.dumps(said))


def test_a_sentencepiece_model_is_read_as_the_tokenizer_that_was_made_of_it(changed, family_folder):
    """By packages that genbo depends on."""
    folder = changed(T5, spiece)
    models: list[Any] = [Diffusers(pretrained=str(f), device="cpu").open() for f in (folder, family_folder(T5))]
    found, expected = (model.encode(["A red apple, 3 dogs!"]).tensors for model in models)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_package_that_a_tokenizer_needs_is_named_before_anything_is_loaded(changed, monkeypatch):
    monkeypatch.setattr(pipeline_folder, "_is_installed", lambda module: module != "sentencepiece")
    (said,) = Diffusers(pretrained=str(changed(T5, spiece))).mistakes()
    assert said.endswith("is a sentencepiece model, which needs: pip install sentencepiece")


# -- text encoders whose tensors transformers renames ------------------------------------------------------------------


def qwen() -> Any:
    import transformers

    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 1, "vocab_size": 64, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    seen = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config={**seen, "patch_size": 4})
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def mistral() -> Any:
    """FLUX.2's text encoder."""
    import transformers

    each = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "mistral", "vocab_size": 64, "num_key_value_heads": 1, "head_dim": 8, **each}
    seen = {"model_type": "pixtral", "image_size": 16, "patch_size": 4, "head_dim": 8, **each}
    return transformers.Mistral3ForConditionalGeneration(
        transformers.Mistral3Config(text_config=text, vision_config=seen)
    )


@pytest.mark.parametrize("make", [qwen, mistral])
def test_tensors_that_transformers_renames(make, tmp_path):
    """They are saved under the names that they are published by, and loaded under others."""
    network = make()
    network.save_pretrained(tmp_path)
    expected = network.state_dict()
    held = load_file(tmp_path / "model.safetensors")
    assert not set(held) <= set(expected)
    found, note = load_network(type(network), tmp_path, torch.float32)
    assert note == "" and all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())
    lost = next(
        name
        for name in held
        if (name.endswith("self_attn.q_proj.weight") and "language" in name) or "q_proj.weight" in name
    )
    save(tmp_path / "model.safetensors", {name: t for name, t in held.items() if name != lost})
    with pytest.raises(Refused, match=r"lack \S*q_proj.weight"):
        load_network(type(network), tmp_path, torch.float32)

"""The files of an exported pipeline: copied from the one it was made of, or written where weights were trained."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.diffusion.pipeline_folder import components, is_network, part_of
from genbo.diffusion.refused import Refused

if TYPE_CHECKING:
    from genbo.diffusion.network import Network

KEPT = (".json", ".txt", ".model", ".safetensors")  # what a pipeline is made of; never code, never pickles


def save_network(network: Network, folder: Path, sampled: int) -> None:
    """A network of one's own as a DDIMPipeline that carries its schedule, and loads without genbo.

    Its scheduler has the schedule's betas and stops where the sampler did; a network that was told the log-SNR looks it
    up by the index of a step. diffusers counts in whole steps of its table, so a table of one's own choice has as many
    as the `sampled` steps of the sampler divide: 1002 for 6.
    """
    import torch
    from diffusers import DDIMPipeline, DDIMScheduler

    from genbo.diffusion.indexed import indexed
    from genbo.schedules.schedule import divided

    module: Any = copy.deepcopy(network.module).to(memory_format=torch.contiguous_format)  # safetensors has no other
    steps, schedule = network.train_steps, network.schedule.to(torch.device("cpu"))
    if network.conditioning == "log_snr":
        steps = divided(steps, sampled)
        module = indexed(module, schedule, train_steps=steps, within=network.within)
    betas = schedule.trained_betas(steps)
    if len(betas) != steps:
        raise Refused(f"the schedule has {len(betas)} betas for {steps} training steps")  # diffusers does not look
    own = {"trained_betas": betas, "num_train_timesteps": steps, "timestep_spacing": "trailing"}
    own |= {"prediction_type": network.prediction}
    scheduler = DDIMScheduler(**own, clip_sample=False, set_alpha_to_one=True)
    DDIMPipeline(module, scheduler).save_pretrained(folder, safe_serialization=True)


def copy_pipeline(source: Path, target: Path, variant: str | None) -> None:
    """The files that the pipeline was made of, under the names that they have without a variant."""
    index = json.loads((source / "model_index.json").read_text())
    shutil.copyfile(source / "model_index.json", target / "model_index.json")
    parts = {n for n, entry in index.items() if isinstance(entry, list) and (source / n).is_dir()}
    parts |= {n for n, entry in components(index).items() if is_network(str(entry[1]))}
    for name in sorted(parts):
        (target / name).mkdir()
        for file, plain in files_of_variant(part_of(source, name), variant):
            if file.name == "model_index.json":  # the network lies beside it
                continue
            if ".index." in file.name:
                (target / name / plain).write_text(
                    file.read_text().replace(f".{variant}", "") if variant else file.read_text()
                )
            else:
                shutil.copyfile(file, target / name / plain)


def files_of_variant(folder: Path, variant: str | None) -> Iterator[tuple[Path, str]]:
    """Files and their plain names: of the weights those of the variant, and where it has none those without any."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in KEPT and file.is_file()]
    weights = [file for file in files if ".safetensors" in file.name]
    tagged = [file for file in weights if variant and f".{variant}" in file.name]
    plain = [file for file in weights if "." not in file.name.split(".safetensors")[0]]
    for file in files:
        if file not in weights or file in (tagged or plain):
            yield file, file.name.replace(f".{variant}", "") if file in tagged else file.name


def save_component(component: Any, part: Path) -> None:
    """The weights of a component that a LoRA was merged into, in place of the copied ones."""
    _clear(part)
    component.save_pretrained(part, safe_serialization=True)


def save_merged(model: Any, folder: Path) -> None:
    """The trained weights in place of the copied ones, and LoRA's by themselves where diffusers can load them so."""
    from safetensors.torch import load_file, save_file

    part, stored = folder / model.part, {}
    for file in part.glob("*.safetensors"):
        stored.update(load_file(file))
    if not set(model.denoiser.state_dict()) <= set(stored):  # names of an older diffusers, which renames them
        stored = type(model.denoiser).from_pretrained(part, use_safetensors=True, local_files_only=True).state_dict()
    _clear(part)
    merged = {**stored, **model.network.merged(stored)}
    save_file(merged, part / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    lora, pipeline = model.network.lora(), type(model.pipeline)
    if lora and hasattr(pipeline, "save_lora_weights"):
        pipeline.save_lora_weights(folder / "lora", **{f"{model.part}_lora_layers": lora})


def _clear(part: Path) -> None:
    for file in part.glob("*.safetensors*"):
        file.unlink()

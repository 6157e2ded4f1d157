"""A tuned folder: a plain diffusers pipeline, and `genbo.json` beside it for what diffusers cannot store.

`export` writes it, `load` reads it and applies everything by itself. A network that was fine-tuned stands in it merged,
so that whatever loads the folder draws from the tuned model; where LoRA did it, `lora/` holds the adapter alone, for
`load_lora_weights` on top of the pretrained pipeline.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.diffusion.kinds import class_of, kind_of, kinds
from genbo.diffusion.models._folder import class_names, components, is_network, part_of
from genbo.diffusion.refused import Refused
from genbo.schedules.link import Interval

if TYPE_CHECKING:
    from PIL.Image import Image

    from genbo.diffusion.network import Network
    from genbo.diffusion.process import Process
    from genbo.schedules.clock import Clock
    from genbo.schedules.schedule import Schedule

SCHEMA = 1
SCHEDULES = "genbo.schedules"
KEPT_OPTIONS = ("negative_prompt", "height", "width")  # of the model, beyond its folder
KEPT = (".json", ".txt", ".model", ".safetensors")  # what a pipeline is made of; never code, never pickles


def settings(process: Process) -> dict[str, Any]:
    """What the process does beyond its weights, as plain values: sampler, guidance rule and every number in it."""
    rule = {"kind": kind_of(process.rule), **_fields(process.rule)}
    for name, value in process.options.items():
        rule[name] = _one_or_all(value[0].tolist())
    said: dict[str, Any] = {"sampler": {"kind": kind_of(process.sampler), **_fields(process.sampler)}, "guidance": rule}
    if schedule := getattr(process.model, "schedule", None):
        said["noise_schedule"] = spoken(schedule)
    if process.told:
        said["told"] = {name: _one_or_all(table[0].tolist()) for name, table in process.told.items()}
    return said if _stops_as_the_model_does(process) else {**said, "timesteps": process.grid.time[0].tolist()}


def beyond_diffusers(process: Process) -> list[str]:
    """What the plain call of the exported pipeline cannot be told, each in a few words; empty where it draws the same.

    A network of one's own becomes a DDIMPipeline. An exact world is no pipeline, and nothing is said of it.
    """
    model: Any = process.model
    if hasattr(model, "module"):
        by = (
            []
            if kind_of(process.sampler) == "ddim"
            else [f"DDIMPipeline draws by ddim, not by {kind_of(process.sampler)}"]
        )
        return [*by, *(["its call takes no class"] if model.classes else [])]
    if not hasattr(model, "pipeline"):
        return []
    said, whole = settings(process), hasattr(model, "draw")
    return [*_beyond_scheduler(process, said), *_beyond_guidance(said, model.names, whole=whole)]


def _beyond_scheduler(process: Process, said: Mapping[str, Any]) -> Iterator[str]:
    model: Any = process.model
    if model.prompted(process.sampler) is None:
        name = type(model.pipeline).__name__
        yield f"the call of {name} draws otherwise by {kind_of(process.sampler)}, or takes no class"
    if "timesteps" in said and model.arguments(process.sampler, process.grid) is None:
        yield "its call cannot be told these time steps"


def _beyond_guidance(said: Mapping[str, Any], names: Mapping[str, str], *, whole: bool) -> Iterator[str]:
    rule, told = said["guidance"], said.get("told", {})
    numbers = {name: value for name, value in {**rule, **told}.items() if name != "kind"}
    weights = rule["weight"] if isinstance(rule["weight"], list) else [rule["weight"]]
    if rule["kind"] not in ("plain", "rescaled"):
        yield f"it has no guidance of kind {rule['kind']}"
    for name, value in numbers.items():
        if isinstance(value, list):
            yield f"{name} changes from step to step"
    if min(weights) < 1 and not whole:
        yield f"at a guidance weight of {min(weights):g} diffusers draws without guidance, as at 1"
    if rule["kind"] == "rescaled" and weights != [1] and "rescale" not in names:
        yield "its call takes no guidance_rescale"


def spoken(schedule: Schedule) -> dict[str, Any]:
    """A schedule as a job has it: its family, and each parameter by name."""
    values = {name: value[0].tolist() for name, value in schedule.values.items()}
    links = schedule.family.links
    parameters = {name: v if not isinstance(links[name], Interval) else v[0] for name, v in values.items()}
    normalised = {"normalised": schedule.family.normalised} if hasattr(schedule.family, "normalised") else {}
    return {
        "family": kind_of(schedule.family),
        "parameters": parameters,
        **normalised,
        "zero_terminal": schedule.zero_terminal,
    }


def schedule_from(document: Mapping[str, Any]) -> Schedule | None:
    """What `spoken` wrote, as a schedule; None where a folder has none. `Refused` where it cannot be one."""
    from genbo.schedules.schedule import schedule_of

    said = document.get("noise_schedule")
    if not isinstance(said, dict):
        return None
    kind, parameters = said.get("family"), said.get("parameters")
    family, more = _family(kind), {"normalised": said["normalised"]} if "normalised" in said else {}
    if family is None or not isinstance(parameters, dict):
        known = ", ".join(name for name in kinds(SCHEDULES) if _family(name))
        raise Refused(f"genbo.json: noise_schedule has no family {kind!r} with parameters; there are {known}")
    try:
        made = family(**parameters, **more)
        for name, numbers in made.starts().items():
            if (why := made.links[name].why_not(numbers)) is not None:
                raise ValueError(f"{name}: {why}")
    except (TypeError, ValueError) as problem:
        raise Refused(f"genbo.json: noise_schedule: {problem}") from problem
    return schedule_of(made, zero_terminal=bool(said.get("zero_terminal")))


def _family(kind: object) -> Any:
    """The family of that name, or None: the room also has files that are no family."""
    try:
        found = class_of(SCHEDULES, str(kind))
    except (KeyError, AttributeError):
        return None
    return found if hasattr(found, "starts") else None


def _one_or_all(numbers: list[float]) -> float | list[float]:
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _stops_as_the_model_does(process: Process) -> bool:
    import torch

    own, here = process.model.grid(process.sampler), process.grid
    levels = ("time", "alpha_t", "sigma_t", "alpha_s", "sigma_s")
    return all(torch.equal(getattr(own, name), getattr(here, name)) for name in levels)


def export(process: Process, folder: Path, about: Mapping[str, Any]) -> None:
    """Write the pipeline and `genbo.json` into `folder`, which must not exist; `about` is added to the latter.

    The weights are the pretrained ones, copied file by file, but for those that were trained, which are written in
    float32; the scheduler is the one that the sampler's kind asks for. A model without a folder (an exact world) leaves
    `genbo.json` alone, with the numbers in it that were trained.
    """
    folder.mkdir(parents=True)
    model: Any = process.model
    document = {"schema": SCHEMA, **settings(process), **about}
    if "timesteps" in document and hasattr(model, "arguments"):
        document["diffusers"] = model.arguments(process.sampler, process.grid)
    if hasattr(model, "pipeline") or hasattr(model, "module"):
        document["beyond_diffusers"] = beyond_diffusers(process)
    if hasattr(model, "pipeline"):
        _copy(model.folder, folder, model.variant)
        for part in model.fused:
            _save(getattr(model.pipeline, part), folder / part)
        if model.network:
            _merge(model, folder)
        scheduler = model.scheduler(process.sampler)
        scheduler.save_pretrained(folder / "scheduler")
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        document |= {"model": kind_of(model.options), **{name: getattr(model.options, name) for name in KEPT_OPTIONS}}
        if names := class_names(model.folder):
            document["classes"] = names
    elif hasattr(model, "module"):
        save_network(model, folder, process.steps)
        if model.classes:
            document["classes"] = list(model.classes)
    elif weights := getattr(model, "weights", {}):
        document["weights"] = {name: weight.tolist() for name, weight in weights.items()}
    (folder / "genbo.json").write_text(json.dumps(document, indent=2) + "\n")


def export_bytes(process: Process) -> int:
    """How many bytes `export` writes at least: the weights, without the small files beside them."""
    model: Any = process.model
    if hasattr(model, "pipeline"):
        index = json.loads((model.folder / "model_index.json").read_text("utf-8"))
        parts = (model.folder / name for name, entry in index.items() if isinstance(entry, list))
        files = (file for part in parts if part.is_dir() for file, _ in _of_variant(part, model.variant))
        return sum(file.stat().st_size for file in files)
    module = getattr(model, "module", None)
    return sum(tensor.nbytes for tensor in module.state_dict().values()) if module is not None else 0


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


def _copy(source: Path, target: Path, variant: str | None) -> None:
    """The files that the pipeline was made of, under the names that they have without a variant."""
    index = json.loads((source / "model_index.json").read_text())
    shutil.copyfile(source / "model_index.json", target / "model_index.json")
    parts = {n for n, entry in index.items() if isinstance(entry, list) and (source / n).is_dir()}
    parts |= {n for n, entry in components(index).items() if is_network(str(entry[1]))}
    for name in sorted(parts):
        (target / name).mkdir()
        for file, plain in _of_variant(part_of(source, name), variant):
            if file.name == "model_index.json":  # the network lies beside it
                continue
            if ".index." in file.name:
                (target / name / plain).write_text(
                    file.read_text().replace(f".{variant}", "") if variant else file.read_text()
                )
            else:
                shutil.copyfile(file, target / name / plain)


def _of_variant(folder: Path, variant: str | None) -> Iterator[tuple[Path, str]]:
    """Files and their plain names: of the weights those of the variant, and where it has none those without any."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in KEPT and file.is_file()]
    weights = [file for file in files if ".safetensors" in file.name]
    tagged = [file for file in weights if variant and f".{variant}" in file.name]
    plain = [file for file in weights if "." not in file.name.split(".safetensors")[0]]
    for file in files:
        if file not in weights or file in (tagged or plain):
            yield file, file.name.replace(f".{variant}", "") if file in tagged else file.name


def _save(component: Any, part: Path) -> None:
    """The weights of a component that a LoRA was merged into, in place of the copied ones."""
    _clear(part)
    component.save_pretrained(part, safe_serialization=True)


def _merge(model: Any, folder: Path) -> None:
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


class Tuned:
    """A pipeline with its tuned values. `pipeline` is the plain diffusers pipeline inside, `process` what draws.

    `noise_schedule` is the schedule that a network of one's own was trained under, where the folder names it.
    """

    def __init__(self, process: Process, document: Mapping[str, Any]) -> None:
        self.process, self.document = process, dict(document)
        self.pipeline: Any = getattr(process.model, "pipeline", None)
        self.noise_schedule: Schedule | None = schedule_from(document)

    def __call__(self, prompts: str | Sequence[str], *, samples: int = 1, seed: int = 0) -> list[Image]:
        """`samples` images of each prompt, prompt by prompt; image k depends on (seed, the prompt's place, k)."""
        import torch
        from PIL import Image

        from genbo.diffusion.sample import sample
        from genbo.diffusion.seed import Batch, Seed

        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        names = [(p, k) for p in range(len(prompts)) for k in range(samples)]
        batch = Batch(
            tuple(prompts[p] for p, _ in names),
            tuple(Seed(seed).child("sample", p, k).value for p, k in names),
        )

        def one(chunk: Batch) -> list[Image.Image]:
            with torch.no_grad():
                pixels = self.process.model.decode(sample(self.process, chunk)).float().mul(255).round().byte()
            grey = pixels.shape[1] == 1
            rows = pixels[:, 0] if grey else pixels.permute(0, 2, 3, 1)
            return [Image.fromarray(p) for p in rows.contiguous().cpu().numpy()]

        return [image for part in self.process.over(batch, one) for image in part]


def load(folder: str | Path, *, device: str = "auto", dtype: str = "auto") -> Tuned:
    """A tuned folder (`runs/x/tuned`, or `runs/x`) as a pipeline that applies every tuned value by itself.

    Raises `Refused` where the folder is not one, or was written by a newer genbo.
    """
    from genbo.diffusion.models.blackbox import Blackbox
    from genbo.diffusion.models.diffusers import Diffusers
    from genbo.diffusion.process import process_of

    folder = Path(folder)
    if not (folder / "genbo.json").exists() and (folder / "tuned" / "genbo.json").exists():
        folder = folder / "tuned"
    document = _read(folder)
    kept = {name: document[name] for name in KEPT_OPTIONS if document.get(name) is not None}
    options = Blackbox if document.get("model") == "blackbox" else Diffusers
    model = options(
        pretrained=str(folder.resolve()),
        device=device,
        dtype=dtype,  # type: ignore[arg-type]
        **kept,
    ).open()
    rule = _make("guidance", document["guidance"])
    process = _told(process_of(model, _make("samplers", document["sampler"]), rule), document.get("told", {}))
    if "model" not in document:
        process = _as_a_network(process, schedule_from(document))
    return Tuned(_stopping_at(process, document["timesteps"]) if "timesteps" in document else process, document)


def _as_a_network(process: Process, schedule: Schedule | None) -> Process:
    """The levels that a network of one's own was judged at, by whatever sampler; its scheduler is DDIM's alone.

    Folders that do not name their schedule have it in their scheduler's betas.
    """
    if schedule is None:
        return process.with_grid(replace(process.grid, noise_scale=1.0, noisy_end=False))
    model: Any = process.model
    steps = int(model.pipeline.scheduler.config.num_train_timesteps)
    return process.with_grid(schedule.grid(process.steps, told="index", train_steps=steps))


def _told(process: Process, told: object) -> Process:
    """The process whose network is told these numbers."""
    import torch

    if not isinstance(told, dict) or set(told) != set(process.told):
        raise Refused(f"genbo.json: told must name {', '.join(process.told) or 'nothing'}, as this model is told")
    for name, numbers in told.items():
        listed = numbers if isinstance(numbers, list) else [numbers] * process.steps
        if len(listed) != process.steps or not all(isinstance(n, (int, float)) for n in listed):
            raise Refused(f"genbo.json: told.{name} must be a number, or {process.steps}, one a step")
        process = process.with_told(name, torch.tensor([listed], dtype=torch.float64))
    return process


def _stopping_at(process: Process, times: object) -> Process:
    """The process with its sampler's stops moved to these times."""
    import torch

    from genbo.diffusion.process import Timed

    numbers = [t for t in times if isinstance(t, (int, float))] if isinstance(times, list) else []
    if len(numbers) != process.steps or len(numbers) != len(times):  # type: ignore[arg-type]
        raise Refused(f"genbo.json: timesteps must be a list of {process.steps} numbers, one a step")
    model = process.model
    if not isinstance(model, Timed) or not _falls(model.clock, numbers):
        raise Refused(f"genbo.json: timesteps {numbers} do not lead from noise to image in this model's times")
    return process.with_grid(model.grid_at(process.sampler, torch.tensor([numbers], dtype=torch.float64)))


def _falls(clock: Clock, times: Sequence[float]) -> bool:
    """Whether times lie within the clock's, in its order."""
    low, high = sorted((clock.noisiest, clock.cleanest))
    inside = all(low <= t <= high for t in times)
    return inside and all(a != b and (a > b) is clock.falls for a, b in pairwise(times))


def _read(folder: Path) -> dict[str, Any]:
    try:
        document = json.loads((folder / "genbo.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(f"{folder} has no genbo.json: give the tuned/ folder of a finished run") from None
    except ValueError as error:
        raise Refused(f"{folder / 'genbo.json'} cannot be read as JSON: {error}") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise Refused(f"{folder / 'genbo.json'} was not written by this version of genbo; update genbo")
    return document


def _fields(component: Any) -> dict[str, Any]:
    return asdict(component)


def _make(room: str, options: Mapping[str, Any]) -> Any:
    """The component that {kind, options} names: a file of the room, never a name from elsewhere."""
    kind = options.get("kind")
    package = f"genbo.diffusion.{room}"
    known = kinds(package)
    if kind not in known:
        raise Refused(f"genbo.json: unknown {room} kind {kind!r}; choose from {', '.join(known)}")
    made = class_of(package, str(kind))
    return made(**{f.name: options[f.name] for f in fields(made) if f.name in options})

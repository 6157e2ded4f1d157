"""A tuned folder: a plain diffusers pipeline, and `genbo.json` beside it for what diffusers cannot store.

`export` writes it, `load` reads it and applies everything by itself. A network that was fine-tuned stands in it merged,
so that whatever loads the folder draws from the tuned model; where LoRA did it, `lora/` holds the adapter alone, for
`load_lora_weights` on top of the pretrained pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genbo.diffusion.exported_files import copy_pipeline, files_of_variant, save_component, save_merged, save_network
from genbo.diffusion.kinds import class_of, kind_of
from genbo.diffusion.pipeline_folder import class_names
from genbo.diffusion.refused import Refused
from genbo.diffusion.schedule_document import schedule_document, schedule_from
from genbo.diffusion.steer_document import steer_document, steer_settings, steered_by
from genbo.diffusion.stored_parts import part_from

if TYPE_CHECKING:
    from PIL.Image import Image

    from genbo.diffusion.network import Network
    from genbo.diffusion.pipelines._pipeline import PipelineModel
    from genbo.diffusion.process import Model, Process
    from genbo.schedules.clock import Clock
    from genbo.schedules.schedule import Schedule

SCHEMA, STEERED = 1, 2  # what a genbo that knew no steering would draw without one is not for it to read
GUIDANCE = "genbo.diffusion.guidance"
CALLED = {"rescale": "guidance_rescale"}  # an option of a rule, as diffusers' pipelines call it
KEPT_OPTIONS = ("negative_prompt", "height", "width")  # of the model, beyond its folder


def pipeline_of(model: Model) -> PipelineModel | None:
    """The model, where it is a diffusers pipeline."""
    from genbo.diffusion.pipelines._pipeline import PipelineModel

    return model if isinstance(model, PipelineModel) else None


def network_of(model: Model) -> Network | None:
    """The model, where it is a network of one's own."""
    from genbo.diffusion.network import Network

    return model if isinstance(model, Network) else None


def settings(process: Process) -> dict[str, Any]:
    """What the process does beyond its weights, as plain values: sampler, guidance rule and every number in it."""
    rule = {"kind": kind_of(process.rule), **_fields(process.rule)}
    for name, value in process.options.items():
        rule[name] = _one_or_all(value[0].tolist())
    said: dict[str, Any] = {"sampler": {"kind": kind_of(process.sampler), **_fields(process.sampler)}, "guidance": rule}
    if (network := network_of(process.model)) is not None:
        said["noise_schedule"] = schedule_document(network.schedule)
    if process.steer is not None:
        said["steer"] = steer_settings(process.steer)
    if process.told:
        said["told"] = {name: _one_or_all(table[0].tolist()) for name, table in process.told.items()}
    return said if _stops_as_the_model_does(process) else {**said, "timesteps": process.grid.time[0].tolist()}


def beyond_diffusers(process: Process) -> list[str]:
    """What the plain call of the exported pipeline cannot be told, each in a few words; empty where it draws the same.

    A network of one's own becomes a DDIMPipeline. An exact world is no pipeline, and nothing is said of it.
    """
    from genbo.diffusion.process import Whole

    network, model = network_of(process.model), pipeline_of(process.model)
    steered = ["its call cannot be steered by a reward"] if process.steer is not None and (network or model) else []
    if network is not None:
        traits, kind = process.sampler.traits, kind_of(process.sampler)
        same = traits.in_diffusers and traits.levels_of == "ddim"
        by = [] if same else [f"DDIMPipeline draws by ddim, not by {kind}"]
        return [*steered, *by, *(["its call takes no class"] if network.classes else [])]
    if model is None:
        return []
    said, whole = settings(process), isinstance(process.model, Whole)
    return [*steered, *_beyond_scheduler(process, model, said), *_beyond_guidance(said, model.names, whole=whole)]


def _beyond_scheduler(process: Process, model: PipelineModel, said: Mapping[str, object]) -> Iterator[str]:
    if model.prompted(process.sampler) is None:
        known = ", or takes no class" if process.sampler.traits.in_diffusers else ""
        yield f"the call of {type(model.pipeline).__name__} draws otherwise by {kind_of(process.sampler)}{known}"
    if "timesteps" in said and model.arguments(process.sampler, process.grid) is None:
        yield "its call cannot be told these time steps"


def _beyond_guidance(said: Mapping[str, Any], names: Mapping[str, str], *, whole: bool) -> Iterator[str]:
    rule, told = said["guidance"], said.get("told", {})
    numbers = {name: value for name, value in {**rule, **told}.items() if name != "kind"}
    weights = rule["weight"] if isinstance(rule["weight"], list) else [rule["weight"]]
    known = class_of(GUIDANCE, rule["kind"]).traits.in_diffusers
    if not known:
        yield f"it has no guidance of kind {rule['kind']}"
    for name, value in numbers.items():
        if isinstance(value, list):
            yield f"{name} changes from step to step"
    if min(weights) < 1 and not whole:
        yield f"at a guidance weight of {min(weights):g} diffusers draws without guidance, as at 1"
    if known and weights != [1] and (untaken := sorted({*rule} - {"kind", "weight", *names})):
        yield f"its call takes no {CALLED.get(untaken[0], untaken[0])}"


def _one_or_all(numbers: list[float]) -> float | list[float]:
    return numbers[0] if len(set(numbers)) == 1 else numbers


def _stops_as_the_model_does(process: Process) -> bool:
    import torch

    own, here = process.model.grid(process.sampler), process.grid
    levels = ("time", "alpha_t", "sigma_t", "alpha_s", "sigma_s")
    return all(torch.equal(getattr(own, name), getattr(here, name)) for name in levels)


def export(process: Process, folder: Path, about: Mapping[str, object]) -> None:
    """Write the pipeline and `genbo.json` into `folder`, which must not exist; `about` is added to the latter.

    The weights are the pretrained ones, copied file by file, but for those that were trained, which are written in
    float32; the scheduler is the one that the sampler's kind asks for. A model without a folder (an exact world) leaves
    `genbo.json` alone, with the numbers in it that were trained.

    Args:
        process: one member, as it was tuned.
        folder: to be made.
        about: more keys of `genbo.json`, JSON values each.

    Raises:
        FileExistsError: where the folder is there already.
        OSError: where a file cannot be written.
    """
    from genbo.diffusion.adapt import Trainable

    folder.mkdir(parents=True)
    model, network = pipeline_of(process.model), network_of(process.model)
    document = {"schema": SCHEMA, **settings(process), **about}
    if process.steer is not None:
        document |= {"schema": STEERED, "steer": steer_document(process.steer), "batch": process.batch}
    if "timesteps" in document and model is not None:
        document["diffusers"] = model.arguments(process.sampler, process.grid)
    if model is not None or network is not None:
        document["beyond_diffusers"] = beyond_diffusers(process)
    if model is not None:
        copy_pipeline(model.folder, folder, model.variant)
        for part in model.fused:
            save_component(getattr(model.pipeline, part), folder / part)
        if model.network:
            save_merged(model, folder)
        scheduler = model.scheduler(process.sampler)
        scheduler.save_pretrained(folder / "scheduler")
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        document |= {"model": kind_of(model.options), **{name: getattr(model.options, name) for name in KEPT_OPTIONS}}
        if names := class_names(model.folder):
            document["classes"] = names
    elif network is not None:
        save_network(network, folder, process.steps)
        if network.classes:
            document["classes"] = list(network.classes)
    elif isinstance(process.model, Trainable) and process.model.weights:
        document["weights"] = {name: weight.tolist() for name, weight in process.model.weights.items()}
    (folder / "genbo.json").write_text(json.dumps(document, indent=2) + "\n")


def export_bytes(process: Process) -> int:
    """How many bytes `export` writes at least: the weights, without the small files beside them."""
    if (model := pipeline_of(process.model)) is not None:
        index = json.loads((model.folder / "model_index.json").read_text("utf-8"))
        parts = (model.folder / name for name, entry in index.items() if isinstance(entry, list))
        files = (file for part in parts if part.is_dir() for file, _ in files_of_variant(part, model.variant))
        return sum(file.stat().st_size for file in files)
    network = network_of(process.model)
    return sum(tensor.nbytes for tensor in network.module.state_dict().values()) if network is not None else 0


class TunedPipeline:
    """A pipeline with its tuned values. `pipeline` is the plain diffusers pipeline inside, `process` what draws.

    `noise_schedule` is the schedule that a network of one's own was trained under, where the folder names it.
    """

    def __init__(self, process: Process, document: Mapping[str, object]) -> None:
        self.process, self.document = process, dict(document)
        model = pipeline_of(process.model)
        self.pipeline: Any = model.pipeline if model is not None else None
        self.noise_schedule: Schedule | None = schedule_from(document)

    def __call__(self, prompts: str | Sequence[str], *, samples: int = 1, seed: int = 0) -> list[Image]:
        """`samples` images of each prompt, prompt by prompt; image k depends on (seed, the prompt's place, k).

        Args:
            prompts: one, or a list of P.
            samples: of each prompt, 1 or more.
            seed: of all of them.

        Returns:
            P * samples images in 8 bits, RGB or grey as the model's are.

        Raises:
            ValueError: a sentence, for a prompt that the model does not know.
        """
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


def load(
    folder: str | Path, *, device: str = "auto", dtype: str = "auto", allow_code: Sequence[str | Path] = ()
) -> TunedPipeline:
    """A tuned folder (`runs/x/tuned`, or `runs/x`) as a pipeline that applies every tuned value by itself.

    Args:
        folder: the folder.
        device: `auto`, `cpu`, `cuda` or `cuda:0`.
        dtype: `auto`, `fp32`, `fp16` or `bf16`, of the network.
        allow_code: files of Python that a reward which steers the samples may run; without them it runs none.

    Raises:
        Refused: a sentence, where the folder is not one, is that of an exact world, which has no pipeline, was
            written by a newer genbo, or is steered by what is not there.
    """
    from genbo.diffusion.models.blackbox import Blackbox
    from genbo.diffusion.models.diffusers import Diffusers
    from genbo.diffusion.process import process_of

    folder = Path(folder)
    if not (folder / "genbo.json").exists() and (folder / "tuned" / "genbo.json").exists():
        folder = folder / "tuned"
    document = _read(folder)
    if not {"model", "noise_schedule"} & set(document) and not (folder / "model_index.json").exists():
        raise Refused(
            f"{folder} holds no pipeline to load: what was tuned here is an exact world, which has none; its numbers "
            "are in genbo.json, to be written into a job that samples from it"
        )
    kept = {name: document[name] for name in KEPT_OPTIONS if document.get(name) is not None}
    options = Blackbox if document.get("model") == "blackbox" else Diffusers
    model = options(
        pretrained=str(folder.resolve()),
        device=device,
        dtype=dtype,  # type: ignore[arg-type]
        **kept,
    ).open()
    rule = _make("guidance", document.get("guidance"))
    process = _told(process_of(model, _make("samplers", document.get("sampler")), rule), document.get("told", {}))
    if "model" not in document:
        process = _as_a_network(process, schedule_from(document))
    if "timesteps" in document:
        process = _stopping_at(process, document["timesteps"])
    if "steer" in document:
        process = _in_calls_of(steered_by(process, document["steer"], allow_code), document.get("batch"))
    return TunedPipeline(process, document)


def _in_calls_of(process: Process, batch: object) -> Process:
    """With as many images a call of the network as were judged together: others may round otherwise."""
    if batch is None:
        return process
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise Refused(f"genbo.json: batch must be a whole number from 1 on, not {batch!r}")
    return replace(process, batch=batch)


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
    if not isinstance(document, dict) or document.get("schema") not in (SCHEMA, STEERED):
        raise Refused(f"{folder / 'genbo.json'} was not written by this version of genbo; update genbo")
    return document


def _fields(component: Any) -> dict[str, object]:
    return asdict(component)


def _make(room: str, options: object) -> Any:
    """The component that {kind, options} names: a file of the room, never a name from elsewhere."""
    return part_from(f"genbo.diffusion.{room}", options, "genbo.json")

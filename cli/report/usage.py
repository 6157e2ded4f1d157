"""How to draw with tuned values: the plain diffusers call where it can express them, and genbo's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from genbo.cli.run.json_files import Document
from genbo.diffusion.kinds import class_of
from genbo.rewards._traits import RunsCode

if TYPE_CHECKING:
    from genbo.diffusion.network import Network
    from genbo.diffusion.process import Process


NAMES = {"weight": "guidance_scale", "rescale": "guidance_rescale"}


def use_of(process: Process, folder: str) -> Document:
    """What to paste: the plain diffusers call where it can express the values, and genbo's own."""
    from genbo.diffusion.tuned import KEPT_OPTIONS, network_of, pipeline_of, settings

    said = settings(process)
    if network := network_of(process.model):
        return {"folder": folder, "settings": said, **use_of_network(network, process, folder)}
    if (model := pipeline_of(process.model)) is None:
        return {"folder": folder, "settings": said, "diffusers": None, "genbo": None}
    stops = model.arguments(process.sampler, process.grid) if "timesteps" in said else None
    prompt = model.prompted(process.sampler)
    hidden = prompt is None or process.steer is not None or ("timesteps" in said and stops is None)
    arguments = None if hidden else diffusers_arguments(said, stops, model.names)
    load = f'pipeline = DiffusionPipeline.from_pretrained("{folder}")'
    beside = [f"{name}={getattr(model.options, name)!r}" for name in KEPT_OPTIONS if getattr(model.options, name)]
    if model.options.height or model.options.width:
        beside += [f"{name}={value!r}" for name, value in model.of_size.items()]
    call = ", ".join(filter(None, [prompt, arguments, *beside]))
    plain = f"from diffusers import DiffusionPipeline\n\n{load}\nimage = pipeline({call}).images[0]"
    own = f"import genbo\n\npipeline = {load_of(process, folder)}\nimages = pipeline([prompt], samples=4, seed=0)"
    return {"folder": folder, "settings": said, "diffusers": plain if arguments else None, "genbo": own}


def load_of(process: Process, folder: str) -> str:
    """The call that loads the folder; a steer by the user's own code runs only what it is handed."""
    rewards = process.steer.rewards if process.steer is not None else ()
    code = [str(one.options.path) for one in rewards if isinstance(one.options, RunsCode)]
    return f'genbo.load("{folder}", allow_code={code!r})' if code else f'genbo.load("{folder}")'


def use_of_network(network: Network, process: Process, folder: str) -> Document:
    """The same of a network of one's own: a DDIMPipeline, which takes no classes."""
    own = f"import genbo\n\npipeline = {load_of(process, folder)}\nimages = pipeline({{}}, samples=16, seed=0)"
    if network.classes:
        return {"diffusers": None, "genbo": own.format(f'["{network.classes[0]}"]')}
    load = f'pipeline = DDIMPipeline.from_pretrained("{folder}")'
    traits = process.sampler.traits
    told = "".join(f", {name}={value}" for name, value in traits.call(process.sampler).items() if value)
    call = f"images = pipeline(batch_size=16, num_inference_steps={process.steps}{told}).images"
    plain = f"from diffusers import DDIMPipeline\n\n{load}\n{call}"
    ddim = process.steer is None and traits.in_diffusers and traits.levels_of == "ddim"
    return {"diffusers": plain if ddim else None, "genbo": own.format('[""]')}


def diffusers_arguments(
    said: Mapping[str, Any], stops: Mapping[str, list[float]] | None = None, names: Mapping[str, str] = NAMES
) -> str | None:
    """The arguments of a diffusers call, or None where it has none for these values; `stops` take the steps' place.

    `names` are those that the pipeline's call has for our numbers.
    """
    rule, told = said["guidance"], said.get("told", {})
    numbers = {name: value for name, value in {**rule, **told}.items() if name != "kind"}
    known = class_of("genbo.diffusion.guidance", rule["kind"]).traits.in_diffusers
    if not known or not all(isinstance(n, float) for n in numbers.values()):
        return None
    if rule["weight"] == 1:
        numbers = {"weight": 1.0, **told} if "weight" in names else told  # the rule does nothing
    elif rule["weight"] < 1:
        return None  # diffusers switches guidance off there
    if not set(numbers) <= set(names):
        return None
    values = [f"{names[name]}={float(f'{number:.7g}')}" for name, number in numbers.items()]
    eta = [f"eta={said['sampler']['eta']}"] if said["sampler"].get("eta") else []
    steps = [
        f"{name}={numbers}" for name, numbers in (stops or {"num_inference_steps": said["sampler"]["steps"]}).items()
    ]
    return ", ".join([*values, *steps, *eta])

"""Which settings of diffusers' schedulers genbo's samplers follow: every one of each class, by name.

`followed` ones may have any value, `only` those that are listed, `idle` ones do nothing that reaches an image (most of
them ask for another setting that is refused). A setting that is in none of the three is one that genbo has never seen:
it must stand at diffusers' own default. What a class does not know it ignores, and so does genbo. Free of torch, so
that `check` can read a folder's scheduler_config.json by it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from genbo.diffusion import scheduler_stops
from genbo.diffusion.kinds import kind_of

if TYPE_CHECKING:
    from genbo.diffusion.process import Sampler

CLASSES = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
}
FLOW = "FlowMatchEulerDiscreteScheduler"
FILE = "scheduler/scheduler_config.json"

# What a pipeline's class makes of its scheduler's settings when it is loaded; `as_loaded` asks the class itself.
SET_BY_PIPELINE: Mapping[str, Mapping[str, Any]] = {
    "StableDiffusionPipeline": {"steps_offset": 1, "clip_sample": False},
    "StableDiffusionPAGPipeline": {"steps_offset": 1, "clip_sample": False},
}


@dataclass(frozen=True)
class Understood:
    """What is known of one class's settings."""

    followed: frozenset[str]
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()

    def strangers(self, names: Iterator[str]) -> list[str]:
        known = self.followed | self.only.keys() | self.idle
        return [name for name in names if name not in known]


OFF = (False, None)
TABLE = frozenset(("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"))
SPACED = TABLE | {"timestep_spacing", "steps_offset", "rescale_betas_zero_snr"}
PREDICTED: Mapping[str, tuple[Any, ...]] = {"prediction_type": ("epsilon", "v_prediction", "sample")}
CLIPPED = frozenset(("clip_sample", "clip_sample_range"))
THRESHOLD: Mapping[str, tuple[Any, ...]] = {"thresholding": OFF}
OF_THRESHOLD = frozenset(("dynamic_thresholding_ratio", "sample_max_value"))
SIGMAS = frozenset(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"))
OF_NETWORK = ("prediction_type", "use_flow_sigmas")  # what the network was trained for: nothing to write anew
FIXED = ("fixed_small", "fixed_small_log", "fixed_large")

UNDERSTOOD: Mapping[str, Understood] = {
    "DDIMScheduler": Understood(SPACED | CLIPPED | {"set_alpha_to_one"}, {**PREDICTED, **THRESHOLD}, OF_THRESHOLD),
    "DDPMScheduler": Understood(SPACED | CLIPPED, {**PREDICTED, **THRESHOLD, "variance_type": FIXED}, OF_THRESHOLD),
    "EulerDiscreteScheduler": Understood(
        SPACED | SIGMAS | {"interpolation_type", "sigma_min", "sigma_max", "timestep_type", "final_sigmas_type"},
        PREDICTED,
    ),
    "DPMSolverMultistepScheduler": Understood(
        SPACED
        | SIGMAS
        | {"use_lu_lambdas", "final_sigmas_type", "lambda_min_clipped", "lower_order_final", "euler_at_final"},
        {
            **PREDICTED,
            **THRESHOLD,
            "algorithm_type": ("dpmsolver++", "deis"),  # diffusers' class takes deis for dpmsolver++
            "solver_order": (2, 1, 3),  # the first is the one to write in place of another
            "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),  # and the last three for midpoint
            "use_flow_sigmas": OFF,
            "variance_type": (None, *FIXED, "fixed_large_log"),  # it looks for learned ones alone
        },
        OF_THRESHOLD | {"flow_shift", "use_dynamic_shifting", "time_shift_type"},  # of flow sigmas
    ),
    FLOW: Understood(
        frozenset(("num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift"))
        | {"base_image_seq_len", "max_image_seq_len", "shift_terminal", "time_shift_type", *SIGMAS},
        {"invert_sigmas": OFF, "stochastic_sampling": OFF},
    ),
}


def unserved(kind: str) -> str:
    """Why a sampler of one's own cannot draw from a pipeline."""
    return f"diffusers has no scheduler for {kind} to take levels from; take {', '.join(CLASSES)}"


def no_flow(sampler: Sampler) -> str | None:
    """None, or why a sampler cannot draw from a flow model."""
    if sampler.traits.levels_of == "euler":
        return None
    return f"a flow model is sampled by euler, not by {kind_of(sampler)}; write sampler: {{kind: euler}}"


def undrawn(sampler: Sampler) -> str | None:
    """None, or why a pipeline's own call cannot draw by this sampler."""
    if sampler.traits.in_diffusers:
        return None
    return (
        f"a black box draws by diffusers' own schedulers, and none takes the steps of {kind_of(sampler)}; "
        f"take {', '.join(CLASSES)}"
    )


def is_flow(config: Mapping[str, object]) -> bool:
    return "FlowMatch" in str(config.get("_class_name"))


def made_of(config: Mapping[str, object], sampler: Sampler) -> dict[str, object]:
    """The settings that diffusers' scheduler of a sampler's kind is made of, by the config of any scheduler of betas.

    One that says nothing of clipping is of a kind that never clips; DDIM and DDPM would clip latents by default. What
    the job says of its sampler comes before what the folder says.
    """
    return {"clip_sample": False, **config, **sampler.traits.asked(sampler)}


def mistakes(config: Mapping[str, object], sampler: Sampler) -> list[str]:
    """What a scheduler of betas, or of a flow, sets that a sampler does not follow, a sentence each."""
    return [_sentence(config, sampler, name, value) for name, value in unfollowed(config, sampler)]


def _sentence(config: Mapping[str, object], sampler: Sampler, name: str, value: object) -> str:
    others, remedy = _others(config, name, sampler), _remedy(config, name, sampler)
    if others:
        remedy = f"take sampler: {{kind: {others[0]}}}, or {remedy}"
    who = f"genbo's {kind_of(sampler)} does" if others else "genbo's samplers do"
    return f"this model's scheduler sets {name}: {value}, which {who} not apply; {remedy}"


def unfollowed(config: Mapping[str, object], sampler: Sampler) -> Iterator[tuple[str, object]]:
    """Settings whose values a sampler does not follow."""
    settings = made_of(config, sampler)
    if settings.get("use_flow_sigmas"):
        yield "use_flow_sigmas", settings["use_flow_sigmas"]  # levels that no scheduler of betas has, whatever the kind
    for name, allowed in UNDERSTOOD[class_for(config, str(sampler.traits.levels_of))].only.items():
        if name != "use_flow_sigmas" and name in settings and settings[name] not in allowed:
            yield name, settings[name]


def unknown(scheduler: Any) -> Iterator[tuple[str, Any]]:
    """Settings of a scheduler's class that are in no table here, and do not stand at its defaults."""
    parameters = inspect.signature(type(scheduler).__init__).parameters
    defaults = {name: p.default for name, p in parameters.items() if name not in ("self", "kwargs")}
    for name in UNDERSTOOD[type(scheduler).__name__].strangers(iter(defaults)):
        if scheduler.config[name] != defaults[name]:
            yield name, scheduler.config[name]


def class_for(config: Mapping[str, Any], kind: str) -> str:
    """The class of diffusers' scheduler for a sampler that takes the levels of this kind."""
    return FLOW if config.get("_class_name") == FLOW else CLASSES[kind]


def _others(config: Mapping[str, object], name: str, sampler: Sampler) -> list[str]:
    """Other kinds of sampler whose schedulers do not know this setting, or follow it."""
    if config.get("_class_name") == FLOW or name in OF_NETWORK:
        return []
    value, listed = config.get(name), []
    for kind, cls in CLASSES.items():
        only = UNDERSTOOD[cls].only
        if kind != sampler.traits.levels_of and (name not in only or value in only[name]):
            listed.append(kind)
    return [kind for kind in listed if kind in ("ddim", "euler")] or listed


def _remedy(config: Mapping[str, object], name: str, sampler: Sampler) -> str:
    if name in OF_NETWORK:
        return "take another model"
    usual = UNDERSTOOD[class_for(config, str(sampler.traits.levels_of))].only[name][0]
    usual = "null" if usual is None else usual
    return f"write {name}: {str(usual).lower() if isinstance(usual, bool) else usual} into its {FILE}"


def replaced(config: Mapping[str, object], sampler: Sampler) -> str | None:
    """That the folder's own scheduler is of a class that genbo does not sample by, and what stands in its place."""
    own, kind = str(config.get("_class_name")), kind_of(sampler)
    if own == "None" or own in CLASSES.values() or is_flow(config) or sampler.traits.levels_of is None:
        return None
    return (
        f"the folder's {own} is replaced by {kind} ({CLASSES[sampler.traits.levels_of]}), "
        f"as in sampler: {{kind: {kind}}}; its own images would be others"
    )


def steps_mistake(
    config: Mapping[str, object], kind: str, steps: int, pipeline: str = "", sampler: str | None = None
) -> str | None:
    """Why a scheduler of betas cannot stop so often, with the number to take; None where it can."""
    return scheduler_stops.why_not({**config, **SET_BY_PIPELINE.get(pipeline, {})}, kind, steps, sampler or kind)


def tells_log_sigma(config: Mapping[str, object], sampler: Sampler) -> bool:
    """Whether the network is told 0.25 log sigma: diffusers' EDM scaling, of Euler and predictions of v alone."""
    continuous = config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"
    return continuous and sampler.traits.levels_of == "euler"

"""A network that was told the log-SNR, as one that is told the index of a step of one schedule.

diffusers' pipelines tell a network the index k of their scheduler's table. A `UNet2DModel` can look its time up in a
table of its own (`time_embedding_type="learned"`), and the rows of that table may as well be the sinusoids of what the
network was told at the schedule's log-SNR. Nothing is approximated, and the folder loads without genbo.
"""

from __future__ import annotations

import torch

from genbo.diffusion.network import told_of_log_snr
from genbo.schedules.schedule import Schedule


def indexed(module: object, schedule: Schedule, *, train_steps: int, within: tuple[float, float]) -> object:
    """The `UNet2DModel` of the same weights that is told the index k of `schedule.trained_betas(train_steps)`."""
    from diffusers import UNet2DModel

    if not isinstance(module, UNet2DModel) or module.config["time_embedding_type"] != "positional":
        raise TypeError("only a UNet2DModel with positional time embeddings can be told the index instead")
    parameter = next(module.parameters())
    t = torch.arange(1, train_steps + 1, dtype=torch.float64) / train_steps
    told = told_of_log_snr(schedule.log_snr(t)[0].detach(), within)
    table = module.time_proj(told.to(parameter.device, torch.float32))
    config = {**module.config, "time_embedding_type": "learned", "num_train_timesteps": train_steps}
    found = UNet2DModel.from_config({name: value for name, value in config.items() if not name.startswith("_")})
    found.load_state_dict({**module.state_dict(), "time_proj.weight": table})
    found.to(parameter.device)
    return (found if parameter.dtype == torch.float32 else found.to(parameter.dtype)).eval()

"""genbo list: what a job may name, with a line of help and the options of each."""

from __future__ import annotations

from genbo.cli.errors import UserMistake
from genbo.cli.job import catalog

WHERE = {
    "models": "model.kind",
    "samplers": "model.sampler.kind",
    "guidance": "model.guidance.kind",
    "steering": "model.steer.rule.kind",
    "tunables": "a key of tune",
    "lower": "lower.kind",
    "rewards": "reward.kind, lower.reward.kind, keep.kind",
    "estimators": "estimator.kind",
    "optimizers": "optimizer.kind",
    "searchers": "search.kind",
    "pruners": "search.pruner",
}


def run(room: str | None = None) -> int:
    """Print one room, or all of them."""
    from rich.console import Console

    rooms = list(catalog.ROOMS)
    if room is not None and room not in rooms:
        raise UserMistake(f"unknown section {room!r}{catalog.nearest(room, rooms)}")
    console = Console(highlight=False)
    for name in [room] if room else rooms:
        console.print(table_of(name))
    if room in (None, "models"):
        console.print(_bundled(), markup=False, soft_wrap=True)
    return 0


def table_of(room: str):  # type: ignore[no-untyped-def]
    """A row a kind."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{room}  ({WHERE[room]})", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("kind", style="cyan", no_wrap=True)
    table.add_column("what it is, and its options", ratio=1)
    for kind in catalog.kinds(room):
        options = "".join(f"\n  {escape(str(option))}" for option in catalog.options(room, kind))
        table.add_row(kind, f"{escape(catalog.help_line(room, kind))}[dim]{options}[/dim]")
    return table


def _bundled() -> str:
    from genbo.diffusion import bundled as models
    from genbo.rewards import bundled as rewards

    names = {
        "models": models.model_names(),
        "reward networks": rewards.names(),
        "reward heads": rewards.heads(),
        "prompt lists": models.prompt_lists(),
    }
    return "\n".join(f"bundled {what}: {', '.join(found) or 'none'}" for what, found in names.items())

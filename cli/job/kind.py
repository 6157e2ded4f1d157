"""A file of a room as a job names it: the kind, and its options as the room's own object."""

from __future__ import annotations

from typing import Any, Generic

from pydantic import BaseModel, ConfigDict
from typing_extensions import TypeVar

from genbo.cli.job import catalog

FROZEN = ConfigDict(frozen=True, arbitrary_types_allowed=True, extra="forbid")

O = TypeVar("O", default=Any)  # noqa: E741 - the protocol of the room that the options are from


class Kind(BaseModel, Generic[O]):
    """A file of a room with its options: `options` is the room's own object, which keeps the room's protocol."""

    model_config = FROZEN

    kind: str
    options: O

    def __class_getitem__(cls, room: object) -> type[Kind[Any]]:
        """The class itself: options were checked when they were read, so pydantic needs no class for each room."""
        return cls

    def document(self, room: str) -> dict[str, Any]:
        """The kind and every option in plain YAML values."""
        return {"kind": self.kind, **catalog.document_of(room, self.options)}

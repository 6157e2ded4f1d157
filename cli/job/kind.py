"""A file of a room as a job names it: the kind, and its options as the room's own object."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from genbo.cli.job import catalog

FROZEN = ConfigDict(frozen=True, arbitrary_types_allowed=True, extra="forbid")


class Kind(BaseModel):
    """A file of a room with its options: `options` is the room's own object."""

    model_config = FROZEN

    kind: str
    options: Any

    def document(self, room: str) -> dict[str, Any]:
        """The kind and every option in plain YAML values."""
        return {"kind": self.kind, **catalog.document_of(room, self.options)}

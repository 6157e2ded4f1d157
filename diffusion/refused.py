"""The one error that this room and the rewards below it raise about what a user gave."""

from __future__ import annotations

from genbo.rewards import Refused

__all__ = ["Refused"]

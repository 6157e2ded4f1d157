"""What a file in `sections/` is: one key of a job, which it reads, describes and writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast

from genbo.cli.job.reader import Reader

V = TypeVar("V")
Entry = tuple[Any, Any]  # a type and a default, as `pydantic.create_model` takes them; the default `...` for none


@dataclass(frozen=True)
class Level:
    """What other keys ask of the lower level: whether there is one, it searches for lambda, and it is `free` to do so.

    A free level knows its law at every lambda from one set of samples; another is solved anew at each.
    """

    exists: bool = False
    tilts: bool = False
    free: bool = False


class Section(ABC, Generic[V]):
    """One key of a job. `V` is its value, which stands in `Job` under `field`, the key itself unless it is named."""

    key: ClassVar[str]
    field: ClassVar[str] = ""
    optional: ClassVar[bool] = False  # whether a job without a mistake may have None here
    missing: ClassVar[str] = ""  # what is said where the key is needed and not there

    def __init_subclass__(cls) -> None:
        cls.field = cls.field or cls.key

    def of(self, reader: Reader) -> V | None:
        """The value in the job that is read, which is read at the first call; None where it has a mistake."""
        if self.key not in reader.values:
            reader.values[self.key] = self.read(reader)
        return cast("V | None", reader.values[self.key])

    def is_required(self, reader: Reader) -> bool:
        """Whether this job must have the key."""
        return bool(self.missing)

    @abstractmethod
    def read(self, reader: Reader) -> V | None:
        """The value with every default filled in, or None with its mistakes noted in the reader."""

    @abstractmethod
    def described(self) -> Entry:
        """The type of the key with all its short forms, and its default, for the JSON schema."""

    @abstractmethod
    def written(self, value: V, level: Level) -> Any:
        """The value in plain YAML, with every default; None where the key means nothing beside that lower level."""

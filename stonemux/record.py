"""Frozen records with named fields, such as the settings and the rows of the table of operations.

They are written and type-checked like frozen dataclasses, but made without `dataclasses`: that module imports `inspect`
and generates the functions of each class as source text, which is compiled at every start. Together that was an eighth
of the time that the daemon's imports take before its first answer, and more for a command. A `NamedTuple` is compiled,
too (an eighth of a millisecond each): use it for what is unpacked, or made for every request.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeVar, dataclass_transform

_R = TypeVar("_R", bound="Record")
_NONE: Any = object()
NOTHING: Mapping[str, Any] = MappingProxyType({})


class _Field(NamedTuple):
    default: Any
    init: bool = True
    metadata: Mapping[str, Any] = NOTHING


def field(*, default: Any = _NONE, init: bool = True, metadata: Mapping[str, Any] = NOTHING) -> Any:
    """A field with options; one without `init` is set by the record's `derive`."""
    return _Field(default, init, metadata)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Record:
    """A class whose annotations are its fields, in order; they are given by position or by name, and never change."""

    fields: ClassVar[dict[str, Mapping[str, Any]]]
    """The fields that the constructor takes, with their metadata."""
    _defaults: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        cls.fields, cls._defaults = {}, {}
        for name in cls.__annotations__:
            one = cls.__dict__.get(name, _NONE)
            if isinstance(one, _Field):
                delattr(cls, name)
            else:
                one = _Field(one)
            if one.init:
                cls.fields[name] = one.metadata
                if one.default is not _NONE:
                    cls._defaults[name] = one.default

    def __init__(self, *values: Any, **named: Any) -> None:
        placed = dict(zip(self.fields, values, strict=False))
        given = self._defaults | placed | named
        if given.keys() != self.fields.keys() or len(values) > len(self.fields) or not placed.keys().isdisjoint(named):
            raise TypeError(f"{type(self).__name__} takes {', '.join(self.fields)}, each once, not {', '.join(given)}")
        self.__dict__.update(given)
        self.derive()

    def derive(self) -> None:
        """Set the fields that are computed from the others, in `__dict__`."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot change; replace() makes another one")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and all(self.__dict__[name] == other.__dict__[name] for name in self.fields)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={self.__dict__[name]!r}' for name in self.fields)})"


def replace(record: _R, **changes: Any) -> _R:
    """A copy of a record with some fields changed."""
    return type(record)(**{name: getattr(record, name) for name in record.fields} | changes)

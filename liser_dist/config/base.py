"""Defines what specs are built from: base classes, field types and field marks.

A mark in a field's annotation (`FieldMark`) says how the field is treated. The functions here find
marked fields by walking over the spec classes, so that no separate list of field names is needed.
`differences` compares two specs field by field, such as those of a run and of the job that resumes
it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

EMOTIONS = ("neutral", "happy", "sad", "angry", "fearful", "disgusted")
SECRET = "secret"  # pydantic error type of a value that must never be shown


class FieldMark(Enum):
    """Marks that say how a field is treated: `Annotated[str, FieldMark.ABSOLUTE]`."""

    ABSOLUTE = auto()  # a path, made absolute before another process reads it
    ABSOLUTE_IF_FILE = auto()  # likewise if such a file exists; otherwise a hub name or a keyword
    RESUMABLE = auto()  # may be changed, with all fields below it, before a run is resumed


class Record(BaseModel):
    """Base class of specs and result records: immutable, and unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Spec(Record):
    """Base class of the specs of jobs and of their sections."""

    # Removed fields ("reader_cpus") and removed values ("fusion: product") of this class, each with
    # a sentence that says what to do instead.
    removed: ClassVar[Mapping[str, str]] = {}

    def with_absolute_places(self) -> Self:
        """Return the same spec with absolute paths, as processes in other folders need them."""
        return type(self).model_validate(_absolute_content(self))

    @classmethod
    def from_saved(cls, content: bytes | str) -> Self:
        """Return a spec that this or an earlier version saved as JSON.

        What was removed since is left out: a removed value becomes the field's default.

        Raises:
            ValidationError: the spec has fields or values that no version had.
        """
        return cls.model_validate(without_removed(cls, json.loads(content))[0])


def absolute_place(place: str) -> str:
    """Return an absolute path, or the URI without a trailing slash."""
    return place.rstrip("/") if "://" in place else str(Path(place).expanduser().absolute())


def _absolute_content(spec: Spec) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in spec:
        if isinstance(value, Spec):
            content[name] = _absolute_content(value)
        elif isinstance(value, str) and "://" not in value:
            marks = marks_of(type(spec).model_fields[name])
            path = absolute_place(value)
            is_file = FieldMark.ABSOLUTE_IF_FILE in marks and Path(path).exists()
            content[name] = path if FieldMark.ABSOLUTE in marks or is_file else value
        else:
            content[name] = value
    return content


# ---------------------------------------------------------------- walking over spec classes


def parts_of(field: FieldInfo) -> Iterator[object]:
    """Yield the classes and metadata that a field's annotation is made of, at any depth."""
    yield from field.metadata
    waiting: list[object] = [field.annotation]
    while waiting:
        part = waiting.pop(0)
        yield part
        waiting += get_args(part)


def marks_of(field: FieldInfo) -> set[FieldMark]:
    """Return the marks of a field."""
    return {part for part in parts_of(field) if isinstance(part, FieldMark)}


def sections_of(field: FieldInfo) -> list[type[Record]]:
    """Return the classes that a field's value may have, in order; none if it is a plain value."""
    return [part for part in parts_of(field) if isinstance(part, type) and issubclass(part, Record)]


def fields_of(kind: type[Record], above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted name and the definition of each field of a spec class, at any depth.

    Where a section is one of several kinds, the fields of each kind follow one another.
    """
    for name, field in kind.model_fields.items():
        yield above + name, field
        for section in sections_of(field):
            yield from fields_of(section, f"{above}{name}.")


def marked_fields(kind: type[Spec], mark: FieldMark) -> frozenset[str]:
    """Return the dotted names of the fields that carry a mark."""
    return frozenset(name for name, field in fields_of(kind) if mark in marks_of(field))


def may_change_on_resume(kind: type[Spec], field: str) -> bool:
    """Return whether a field (dotted name) may be changed before an unfinished run is resumed."""
    resumable = marked_fields(kind, FieldMark.RESUMABLE)
    return any(field == name or field.startswith(f"{name}.") for name in resumable)


def removed_from(kind: type[Spec]) -> dict[str, str]:
    """Return the remedy for each removed field or value, such as "loss.fusion: product"."""
    removed = dict(kind.removed)
    for above, field in fields_of(kind):
        for section in sections_of(field):
            if issubclass(section, Spec):
                removed |= {f"{above}.{name}": remedy for name, remedy in section.removed.items()}
    return removed


def without_removed(kind: type[Spec], content: Any) -> tuple[Any, dict[str, Any]]:
    """Split a saved spec into what this version knows and what was removed since.

    Args:
        kind: the class of the spec.
        content: the spec as an earlier version saved it, as JSON.

    Returns:
        The content without removed fields and values, and the removed ones by dotted name.
    """
    known, removed = content, {}
    fields = dict(leaves(content))
    for entry in removed_from(kind):
        name, _, value = entry.partition(": ")
        if name in fields and value in ("", fields[name]):
            known, removed[name] = _without(known, name.split(".")), fields[name]
    return known, removed


def _without(content: dict[str, Any], path: list[str]) -> dict[str, Any]:
    first, *rest = path
    if not rest:
        return {name: value for name, value in content.items() if name != first}
    return {**content, first: _without(content[first], rest)}


def first_mistake(error: ValidationError) -> str:
    """Return the first mistake that pydantic found in a file, as "`field`: what is wrong"."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    message = "it is missing" if first["type"] == "missing" else first["msg"]
    return f"`{field}`: {message.removeprefix('Value error, ')}"


# ---------------------------------------------------------------- comparing specs


def fingerprint(settings: Any) -> str:
    """Return 16 hex digits that depend on the content of JSON-like settings alone."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def leaves(content: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of each innermost field of nested mappings."""
    if not isinstance(content, dict) or not content:
        yield field, content
        return
    for name, value in content.items():
        yield from leaves(value, f"{field}.{name}" if field else name)


def differences(first: Any, second: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield the fields in which two specs differ: dotted name, first value, second value.

    A field that one of them lacks has the value None there.
    """
    firsts, seconds = dict(leaves(first)), dict(leaves(second))
    for field in sorted(firsts.keys() | seconds.keys()):
        if firsts.get(field) != seconds.get(field):
            yield field, firsts.get(field), seconds.get(field)


# ---------------------------------------------------------------- paths and servers


def _without_key(address: str) -> str:
    # A key may hold any character, `/` and `@` among them.
    if re.search(r"://([^/]*|[^/]*:.*)@", address):
        raise PydanticCustomError(
            SECRET,
            "a user name or key before the @ would appear in logs: remove it, and set it in the "
            "environment (AWS_*, MLFLOW_TRACKING_*) or use the node's instance role",
        )
    return address


def _on_disk_or_s3(place: str) -> str:
    if "://" in place and not place.startswith("s3://"):
        raise ValueError(f"{place!r} is neither a path nor an s3:// URI: give one of the two")
    return place


# A path or an s3:// URI, left unchanged.
RawPlace = Annotated[
    str, Field(min_length=1), AfterValidator(_without_key), AfterValidator(_on_disk_or_s3)
]
# A path or an s3:// URI that every process of the job can open.
Place = Annotated[RawPlace, FieldMark.ABSOLUTE]
# A path, an s3:// URI or a name on the Hugging Face hub.
PlaceOrName = Annotated[RawPlace, FieldMark.ABSOLUTE_IF_FILE]
# "haar", or the path of a YuNet model.
FaceDetector = Annotated[str, FieldMark.ABSOLUTE_IF_FILE]


def _off(given: Any) -> Any:
    """Return None for `off`, which YAML reads as False."""
    return None if given is False or given == "off" else given


Off = BeforeValidator(_off)  # `off` sets the field to None
PlaceOrOff = Annotated[Place | None, Off]
NameOrOff = Annotated[Annotated[str, Field(pattern=r"^[\w./-]+$")] | None, Off]
ServerOrOff = Annotated[
    Annotated[
        str,
        AfterValidator(_without_key),
        Field(pattern=r"^(https?://[^?]+|file:.+|databricks.*)$"),
    ]
    | None,
    Off,
]

# ---------------------------------------------------------------- numbers

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Bounds = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]  # minimum, maximum


def _unwrapped(given: Any) -> Any:
    """Return the only item of a list: the command line gives `--train.workers 2` as [2]."""
    return given[0] if isinstance(given, list) and len(given) == 1 else given


def _count_or_bounds(given: Any) -> str:
    return "bounds" if isinstance(given, list | tuple) else "count"


CountOrBounds = Annotated[
    Annotated[Count, Tag("count")] | Annotated[Bounds, Tag("bounds")],
    Discriminator(_count_or_bounds),
    BeforeValidator(_unwrapped),
]

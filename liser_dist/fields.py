"""What the fields of every spec are made of: places, counts, shares."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
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
from pydantic_core import PydanticCustomError

SECRET = "secret"  # the type of a mistake of which nothing must be shown


def _without_key(address: str) -> str:
    # A key may hold any character, `/` and `@` among them.
    if re.search(r"://([^/]*|[^/]*:.*)@", address):
        raise PydanticCustomError(
            SECRET,
            "a name or key stands before the @, where every log would show it: take it out, and "
            "give it in the environment (AWS_*, MLFLOW_TRACKING_*) or by the node's role",
        )
    return address


def _on_disk_or_s3(place: str) -> str:
    if "://" in place and not place.startswith("s3://"):
        raise ValueError(f"{place!r} is neither on disk nor on s3://: give one of the two")
    return place


Place = Annotated[
    str,
    Field(min_length=1, description="a folder or file, on disk or s3://"),
    AfterValidator(_without_key),
    AfterValidator(_on_disk_or_s3),
]


def _off(given: Any) -> Any:
    """YAML reads `off` as False."""
    return None if given is False or given == "off" else given


Off = BeforeValidator(_off)  # the field is None, then
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
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
POOL = "pool"  # the label of a Ray node that says which stages belong there
# A value that Ray takes for a label.
Pool = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=63)]
Bounds = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]


def _alone(given: Any) -> Any:
    """`--train.workers 2` comes from the command line as a list of one."""
    return given[0] if isinstance(given, list) and len(given) == 1 else given


def _which(given: Any) -> str:
    return "bounds" if isinstance(given, list | tuple) else "count"


CountOrBounds = Annotated[
    Annotated[Count, Tag("count")] | Annotated[Bounds, Tag("bounds")],
    Discriminator(_which),
    BeforeValidator(_alone),
]


def _read_folds(given: Any) -> Any:
    """A YAML file's content, so that a spec holds it and not where it lay."""
    if not isinstance(given, str) or given in _BUILT_IN_FOLDS:
        return given
    try:
        return yaml.safe_load(Path(given).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{given!r} cannot be read ({what}): give {' or '.join(_BUILT_IN_FOLDS)}, or a YAML "
            "file with the speakers of each fold, such as `1: [anna, bert]`"
        ) from error


def _nobody_twice(folds: Any) -> Any:
    if not isinstance(folds, str):
        fold_of: dict[str, int] = {}
        for fold, names in folds.items():
            for name in names:
                if fold_of.setdefault(name, fold) != fold:
                    raise ValueError(f"{name!r} is in the folds {fold_of[name]} and {fold}")
    return folds


_BUILT_IN_FOLDS = ("ravdess", "cremad")
Folds = Annotated[
    Literal["ravdess", "cremad"] | dict[int, tuple[str, ...]],
    Field(description="ravdess, cremad, or a YAML file with the speakers of each fold"),
    BeforeValidator(_read_folds),
    AfterValidator(_nobody_twice),
]

EMOTIONS = ("neutral", "happy", "sad", "angry", "fearful", "disgusted")


class Spec(BaseModel):
    """Frozen, and unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def first_mistake(error: ValidationError) -> str:
    """Of a user's file: `where.it.is`: what is wrong there."""
    first = error.errors()[0]
    return f"`{'.'.join(str(part) for part in first['loc'])}`: {first['msg']}"


def fingerprint(settings: Any) -> str:
    """16 hex digits that follow from the settings alone."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(theirs: Any, ours: Any) -> Iterator[tuple[str, str]]:
    """Of two specs' contents: each field in which they differ, and a text that says how."""
    one, two = dict(leaves(theirs)), dict(leaves(ours))
    for field in sorted(one.keys() | two.keys()):
        if one.get(field) != two.get(field):
            yield field, f"`{field}` is {one.get(field)!r} there and {two.get(field)!r} here"


def leaves(content: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of nested mappings, by their dotted names."""
    if not isinstance(content, dict) or not content:
        yield field, content
        return
    for name, value in content.items():
        yield from leaves(value, f"{field}.{name}" if field else name)


def absolute_place(place: str) -> str:
    """As every process can name it, wherever it runs."""
    return place.rstrip("/") if "://" in place else str(Path(place).expanduser().absolute())


def with_absolute_places(
    settings: Any, places: Collection[str], files_or_names: Collection[str] = ()
) -> Any:
    """A spec's content with the fields of these names made absolute, at any depth.

    `files_or_names`: those that name a file only where there is one; a hub's model, elsewhere.
    """
    if not isinstance(settings, dict):
        return settings
    changed = {}
    for name, value in settings.items():
        if isinstance(value, str) and "://" not in value:
            path = Path(absolute_place(value))
            if name in places or (name in files_or_names and path.exists()):
                value = str(path)
        changed[name] = with_absolute_places(value, places, files_or_names)
    return changed

"""Reads a job's spec from its command line, and ends a job that fails through a user's mistake.

    jobs/distill.py SPEC --train.epochs 3 --seed 7 --check

The spec is a YAML file; options override its fields by dotted name. A user's mistake is printed
without a traceback, one line for each wrong field, and the job exits with status 2.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import yaml
from pydantic import Tag, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from liser_dist.config.base import SECRET, Record, Spec, parts_of, removed_from, sections_of
from liser_dist.errors import LiserError, SpecError, one_line

_EXIT_USER_MISTAKE = 2
_S = TypeVar("_S", bound=Spec)


@dataclass(frozen=True, slots=True)
class Command(Generic[_S]):
    """A parsed command line."""

    spec: _S
    check: bool  # whether `--check` was given
    flags: frozenset[str]  # the job's own flags that were given


def read_command(
    arguments: Sequence[str],
    default: Path,
    about: str,
    kind: type[_S],
    flags: Mapping[str, str] = MappingProxyType({}),
) -> Command[_S]:
    """Parse a job's command line. argparse itself exits with status 2 on an unknown option.

    Args:
        arguments: the command line without the program's name.
        default: the spec file that is used if none is given.
        about: what the job does, for `--help`.
        kind: the class of the job's spec.
        flags: the job's own flags beside `--check`, each with its help text.

    Raises:
        SpecError: the spec file cannot be read, or a field is wrong.
    """
    parser = argparse.ArgumentParser(
        description=about,
        allow_abbrev=False,
        usage=f"%(prog)s [SPEC] [{' | '.join(['--check', *flags])}] [--FIELD VALUE ...]",
    )
    parser.add_argument("spec", nargs="?", type=Path, default=default, help="YAML file of the job")
    parser.add_argument(
        "--check",
        action="store_true",
        help="print the spec and what the job needs, without starting it",
    )
    for flag, does in flags.items():
        parser.add_argument(flag, dest=flag, action="store_true", help=does)

    class CommandLine(kind, BaseSettings):  # type: ignore[misc, valid-type]
        model_config = SettingsConfigDict(cli_avoid_json=True, cli_hide_none_type=True)

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: Any, **__: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return overrides, YamlConfigSettingsSource(settings_cls, yaml_file=parsed.spec)

    _require_no_removed_option(arguments, kind)
    overrides: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
        CommandLine, root_parser=parser
    )
    parsed = parser.parse_args(arguments)
    overrides(parsed_args=parsed)
    _require_mapping(parsed.spec)
    try:
        resolved = CommandLine()
        spec = kind.model_validate(resolved.model_dump())
    except ValidationError as error:
        raise SpecError(explain(error, kind, parsed.spec)) from error
    given = frozenset(flag for flag in flags if vars(parsed)[flag])
    return Command(spec, parsed.check, given)


def read_spec_file(path: Path, kind: type[_S]) -> _S:
    """Read a spec file alone, without a command line.

    Raises:
        SpecError: the file cannot be read, or a field is wrong.
    """
    _require_mapping(path)
    try:
        return kind.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        raise SpecError(explain(error, kind, path)) from error


def _require_no_removed_option(arguments: Sequence[str], kind: type[Spec]) -> None:
    """Raise SpecError for an option that an earlier version had. argparse would not explain it."""
    options = {argument.split("=")[0] for argument in arguments}
    for field, remedy in removed_from(kind).items():
        if f"--{field}" in options:
            raise SpecError(f"--{field}: {remedy}")


def _require_mapping(path: Path) -> None:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SpecError(
            f"cannot read the spec {path}: {error.strerror}; give a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"the spec {path} is not valid YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise SpecError(
            f"the spec {path} has no fields: add those of the job; see jobs/specs/demo.yaml for "
            "an example"
        )


def explain(error: ValidationError, kind: type[Spec], source: object) -> str:
    """Return the mistakes in a spec, one per line: field, what is wrong, the value given."""
    mistakes = _mistakes_in(error, kind)
    count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    lines = (f"  {mistake.field}: {mistake.message}{mistake.given}" for mistake in mistakes)
    return "\n".join([f"{source}: {count} in the spec", *lines])


@dataclass(frozen=True, slots=True)
class _Mistake:
    """A field that is wrong, in the words of a job's output."""

    field: str  # dotted name, as in a spec file
    message: str  # what is wrong and what to do
    given: str  # " (given: VALUE)"; empty if the value must not or need not be shown


def _mistakes_in(error: ValidationError, kind: type[Spec]) -> list[_Mistake]:
    """Return the mistakes that pydantic found in a spec, in order."""
    return [_mistake(details, kind) for details in error.errors(include_url=False)]


def _mistake(details: ErrorDetails, kind: type[Spec]) -> _Mistake:
    field, value = ".".join(_names(details["loc"], kind)), details["input"]
    if details["type"] == "union_tag_invalid":
        field, value = f"{field}.kind".removeprefix("."), details["ctx"]["tag"]
    message = _message(details, field)
    removed = removed_from(kind)
    if details["type"] == "extra_forbidden":
        message = removed.get(field, message)
    elif isinstance(value, str):
        message = removed.get(f"{field}: {value}", message)
    may_be_a_key = details["type"] in (SECRET, "extra_forbidden") or field.startswith("track")
    silent = isinstance(value, dict) or may_be_a_key
    return _Mistake(field or "spec", message, "" if silent else f" (given: {value!r:.200})")


def _message(details: ErrorDetails, field: str) -> str:
    """Return our own wording where pydantic's speaks of its internals."""
    match details["type"]:
        case "extra_forbidden":
            return "there is no such field; remove it or correct its name"
        case "missing":
            return f"it is required: set it in the spec, or pass --{field}"
        case "union_tag_not_found":
            return f"its `kind` is required: set it in the spec, or pass --{field}.kind"
        case "union_tag_invalid":
            return (
                f"there is no such kind; give one of {_unquoted(details['ctx']['expected_tags'])}"
            )
        case "literal_error":
            return f"it must be one of {_unquoted(details['ctx']['expected'])}"
    return details["msg"].removeprefix("Value error, ")


def _unquoted(choices: str) -> str:
    """Return pydantic's "'a', 'b' or 'c'" as "a, b, c"."""
    return choices.replace("'", "").replace(" or ", ", ")


def _names(location: tuple[int | str, ...], kind: type[Record]) -> Iterator[str]:
    """Yield the names of a location without the tags that pydantic puts in for a union's member."""
    sections: list[type[Record]] = [kind]
    tags: set[str] = set()
    for part in location:
        if part in tags:
            sections, tags = [s for s in sections if part in _kinds([s])], set()
            continue
        yield str(part)
        named = (section.model_fields.get(str(part)) for section in sections)
        field = next((field for field in named if field is not None), None)
        sections = [] if field is None else sections_of(field)
        tags = (
            set()
            if field is None
            else _kinds(sections) | {part.tag for part in parts_of(field) if isinstance(part, Tag)}
        )


def _kinds(sections: list[type[Record]]) -> set[str]:
    """Return the values of `kind` that tell these sections apart; none where they have none."""
    fields = (section.model_fields.get("kind") for section in sections)
    return {str(field.default) for field in fields if field is not None}


@contextmanager
def explained_to_the_user() -> Iterator[None]:
    """Print a user's mistake without a traceback, and exit with status 2."""
    try:
        yield
    except LiserError as error:
        if (ray := sys.modules.get("ray")) is not None:
            ray.shutdown()  # so that none of its log lines follow the message
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(_EXIT_USER_MISTAKE) from error


def run_job(main: Callable[[], None]) -> None:
    """Run a job's main function with the log lines of liser_dist on, and report user mistakes."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message).1900s")
    logging.getLogger("liser_dist").setLevel(logging.INFO)
    with explained_to_the_user():
        main()

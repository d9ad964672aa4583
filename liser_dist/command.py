"""A job's command line: a spec file, dotted overrides, `--check`; and how a job ends.

    jobs/distill.py SPEC --train.epochs 3 --seed 7 --check

What the user can mend is printed as one line a mistake and ends the job with exit code 2.
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
from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from liser_dist.errors import LiserError, SpecError, in_a_line
from liser_dist.fields import SECRET, Spec
from liser_dist.spec import DistillSpec

EXIT_USER_MISTAKE = 2
S = TypeVar("S", bound=Spec)


@dataclass(frozen=True, slots=True)
class Command(Generic[S]):
    """What the user asked for."""

    spec: S
    check: bool
    flags: frozenset[str]  # of those that the job knows


def read_command(
    arguments: Sequence[str],
    default: Path,
    about: str,
    kind: type[S],
    flags: Mapping[str, str] = MappingProxyType({}),
) -> Command[S]:
    """The resolved spec of a command line. Raises SpecError; argparse itself exits with 2.

    `flags`: what each does that this job knows beside `--check`.
    """
    parser = argparse.ArgumentParser(
        description=about,
        allow_abbrev=False,
        usage=f"%(prog)s [SPEC] [{' | '.join(['--check', *flags])}] [--FIELD VALUE ...]",
    )
    parser.add_argument("spec", nargs="?", type=Path, default=default, help="YAML file of the job")
    parser.add_argument("--check", action="store_true", help="print the spec and its needs; stop")
    for flag, does in flags.items():
        parser.add_argument(flag, dest=flag, action="store_true", help=does)

    class CommandLine(kind, BaseSettings):  # type: ignore[misc, valid-type]
        model_config = SettingsConfigDict(cli_avoid_json=True, cli_hide_none_type=True)

        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *_: Any, **__: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return overrides, YamlConfigSettingsSource(settings_cls, yaml_file=parsed.spec)

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
        raise SpecError(explain(error, parsed.spec)) from error
    given = frozenset(flag for flag in flags if vars(parsed)[flag])
    return Command(spec, parsed.check, given)


def read_spec(path: Path) -> DistillSpec:
    """A spec file alone. Raises SpecError."""
    _require_mapping(path)
    try:
        return DistillSpec.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        raise SpecError(explain(error, path)) from error


def _require_mapping(path: Path) -> None:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise SpecError(
            f"cannot read the spec {path}: {error.strerror}; give a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"the spec {path} is no YAML: {in_a_line(error)}") from error
    if not isinstance(content, dict):
        raise SpecError(f"the spec {path} holds no fields; see jobs/specs/demo.yaml for one")


def explain(error: ValidationError, source: object) -> str:
    """One line a mistake: field, what is wrong, the value given."""
    lines = [f"{source}: {error.error_count()} mistake(s) in the spec"]
    for mistake in error.errors(include_url=False):
        field = ".".join(_without_tags(mistake["loc"])) or "spec"
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] == "extra_forbidden":
            message = "there is no such field; remove it or mend its name"
        if mistake["type"] == "missing":
            message = f"it is required: give it here or as --{field}"
        may_be_a_key = mistake["type"] in (SECRET, "extra_forbidden") or field.startswith("track")
        silent = isinstance(mistake["input"], dict) or may_be_a_key
        value = "" if silent else f" (given: {mistake['input']!r:.200})"
        lines.append(f"  {field}: {message}{value}")
    return "\n".join(lines)


def _without_tags(location: tuple[int | str, ...]) -> Iterator[str]:
    """The dotted name as the user writes it: pydantic puts a union's `kind` into it."""
    tagged = {"speech", "face", "student", "input", "model"}
    for position, part in enumerate(location):
        before = location[position - 1] if position else None
        is_kind = before in tagged and position < len(location) - 1
        if not is_kind and not (before == "workers" and part in ("count", "bounds")):
            yield str(part)


@contextmanager
def explained_to_the_user() -> Iterator[None]:
    """Print what the user can mend, without a traceback, and exit with 2."""
    try:
        yield
    except LiserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_USER_MISTAKE) from error


def run_job(main: Callable[[], None]) -> None:
    """Run a job's main function with our own log lines on, and end it as the user expects."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message).1900s")
    logging.getLogger("liser_dist").setLevel(logging.INFO)
    with explained_to_the_user():
        main()

"""Writes the generated reference pages: spec fields, command line, rejection reasons.

    python docs/generate.py

`make docs` runs it; a unit test asserts that the committed pages are current.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any
from unittest.mock import patch

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the command above


from liser_dist.config.base import (  # noqa: E402
    FieldMark,
    Off,
    Record,
    Spec,
    fields_of,
    marked_fields,
    marks_of,
    removed_from,
    sections_of,
)
from liser_dist.config.distill import DistillSpec  # noqa: E402
from liser_dist.config.evaluate import EvaluateSpec  # noqa: E402
from liser_dist.config.export import ExportSpec  # noqa: E402
from liser_dist.config.ingest import IngestSpec  # noqa: E402
from liser_dist.config.study import StudySpec  # noqa: E402
from liser_dist.config.teachers import TeachersSpec  # noqa: E402
from liser_dist.config.train_teacher import TrainTeacherSpec  # noqa: E402
from liser_dist.records import Reason  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
SPECS: Mapping[str, type[Spec]] = {
    "distill": DistillSpec,
    "ingest": IngestSpec,
    "train_teacher": TrainTeacherSpec,
    "evaluate": EvaluateSpec,
    "study": StudySpec,
    "export": ExportSpec,
}
# The spec of each script under jobs/; `report` has none.
JOBS: Mapping[str, type[Spec] | None] = {
    "ingest": IngestSpec,
    "train_teacher": TrainTeacherSpec,
    "distill": DistillSpec,
    "evaluate": EvaluateSpec,
    "study": StudySpec,
    "export": ExportSpec,
    "report": None,
    "benchmark": DistillSpec,
    "controls": DistillSpec,
}
TEACHERS = [
    section
    for section in sections_of(TeachersSpec.model_fields["speech"])
    if section.__name__.endswith("Teacher")
]
FRONT_MATTER = "---\nsearch: {boost: 3}\n---\n"  # before the guides, when a field is searched
GENERATED = "<!-- Written by docs/generate.py: edit the source, then run `make docs`. -->\n"


def main() -> None:
    """Write all generated pages."""
    for name, text in pages().items():
        (REFERENCE / name).write_text(text)


def pages() -> dict[str, str]:
    """Return the text of each generated page by its file name under docs/reference."""
    made = {"spec.md": spec_page(), "cli.md": cli_page(), "rejection-reasons.md": reasons_page()}
    return {name: FRONT_MATTER + GENERATED + text for name, text in made.items()}


# ---------------------------------------------------------------- specs

SPEC_INTRODUCTION = """
# Spec reference

A job's spec is one YAML file. This page lists every field of every job: its dotted name, its type,
its default and what it does.

- Any field can be overridden on the command line by its dotted name: `--train.epochs 5`. See
  [Command line](cli.md).
- An unknown field is an error. Names carry units: `_s` seconds, `_hz` hertz, `_px` pixels.
- "path or URI" is a path on disk or an `s3://` URI. `off` switches a feature off.
- *Resumable* marks fields that may differ when an unfinished run is
  [resumed](../operations/fault-tolerance.md#resume) ([list](#resumable-fields)). All others must be
  the same.
- `--check` validates a spec and prints it with all defaults filled in.

| Job | Spec |
|---|---|
"""


def spec_page() -> str:
    """Return the page with the fields of every spec."""
    index = (f"| `jobs/{job}.py` | [{job}](#{job}) |\n" for job in SPECS)
    parts = [SPEC_INTRODUCTION.lstrip() + "".join(index)]
    documented: dict[type[Record], str] = {}
    for job, kind in SPECS.items():
        parts += _job_sections(job, kind, documented)
    parts += _teacher_kinds()
    parts += _resumable_fields()
    parts += _removed_fields()
    return "\n".join(parts)


def _job_sections(job: str, kind: type[Spec], documented: dict[type[Record], str]) -> Iterator[str]:
    yield f"## {job} {{ #{job} }}\n\n{_about(kind)}"
    base = next((name for name, other in SPECS.items() if other in kind.__mro__[1:]), None)
    fields = dict(kind.model_fields)
    if base is not None:
        yield f"All fields of [{base}](#{base}), and those below.\n"
        fields = {n: f for n, f in fields.items() if n not in SPECS[base].model_fields}
    else:
        yield f"Default spec: `jobs/specs/{_default_spec(job)}`.\n"
    yield from _sections(job, "", fields, documented)


def _sections(
    job: str, above: str, fields: Mapping[str, FieldInfo], documented: dict[type[Record], str]
) -> Iterator[str]:
    """Yield a table of the fields, then the sections below them."""
    yield _table(job, above, fields, documented)
    for name, field in fields.items():
        for section in sections_of(field):
            dotted = above + name
            if section in documented or _is_teacher(section):
                continue
            kinds = len(sections_of(field)) > 1
            anchor = _anchor(job, dotted, section if kinds else None)
            documented[section] = anchor
            title = f"{dotted}: kind {_kind(section)}" if kinds else dotted
            yield f"### {title} {{ #{anchor} }}\n\n{_about(section)}"
            if FieldMark.RESUMABLE in _own_marks(field):
                yield "*Resumable*, with all fields of this section.\n"
            yield from _sections(job, f"{dotted}.", section.model_fields, documented)


def _table(
    job: str, above: str, fields: Mapping[str, FieldInfo], documented: Mapping[type[Record], str]
) -> str:
    lines = ["| Field | Type | Default | Description |", "|---|---|---|---|"]
    for name, field in fields.items():
        dotted = above + name
        sections = sections_of(field)
        if sections:
            type_words, default = _section_links(job, dotted, sections, documented), ""
            if field.is_required():
                default = "required"
        else:
            type_words, default = type_in_words(field), _default(field)
        description = field.description or (_first_line(sections[0]) if len(sections) == 1 else "")
        if not sections and FieldMark.RESUMABLE in marks_of(field):
            description += " *Resumable.*"
        cells = (f"`{dotted}`", type_words, default, description)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _section_links(
    job: str, dotted: str, sections: list[type[Record]], documented: Mapping[type[Record], str]
) -> str:
    if _is_teacher(sections[0]):
        return "[teacher](#teacher-kinds)"
    many = len(sections) > 1
    links = []
    for section in sections:
        anchor = documented.get(section) or _anchor(job, dotted, section if many else None)
        links.append(f"[{_kind(section) if many else 'section'}](#{anchor})")
    return ("kind " if many else "") + ", ".join(links)


def _teacher_kinds() -> Iterator[str]:
    """Yield the sections on the kinds of teachers, which several specs share."""
    yield (
        "## Teacher kinds { #teacher-kinds }\n\n"
        "A teacher is set as `teachers.speech` or `teachers.face` in distill and study, and as "
        "`model` in evaluate (`model.kind`, `model.model`). Its `kind` decides which fields it "
        "has. See the guide on [teachers](../guides/teachers.md).\n"
    )
    documented: dict[type[Record], str] = {}
    for section in TEACHERS:
        yield f"### Teacher: kind {_kind(section)} {{ #teacher-{_kind(section)} }}\n\n"
        yield _about(section)
        yield from _sections(
            f"teacher-{_kind(section)}", "teachers.*.", section.model_fields, documented
        )


def _resumable_fields() -> Iterator[str]:
    """Yield the section that lists the fields that may differ when a run is resumed."""
    yield (
        "## Resumable fields { #resumable-fields }\n\nThese fields may differ when an unfinished "
        "run is [resumed](../operations/fault-tolerance.md#resume); any other difference is "
        "refused. `jobs/ingest.py` continues by [its own rules](../guides/ingest.md#output); the "
        "other jobs start again instead.\n\n| Field | Jobs |\n|---|---|\n"
        + "\n".join(f"| {name} | {', '.join(jobs)} |" for name, jobs in resumable_fields().items())
        + "\n"
    )


def resumable_fields() -> dict[str, list[str]]:
    """Return the jobs that can resume with another value, by field; `.*` stands for a section."""
    jobs_of: dict[str, list[str]] = {}
    for job, kind in SPECS.items():
        if not issubclass(kind, DistillSpec):
            continue
        resumable = marked_fields(kind, FieldMark.RESUMABLE)
        for name, field in fields_of(kind):
            if name in resumable:
                shown = f"`{name}.*`" if sections_of(field) else f"`{name}`"
                jobs_of.setdefault(shown, []).append(job)
    return jobs_of


def _removed_fields() -> Iterator[str]:
    """Yield the section on removed fields and values."""
    removed: dict[str, str] = {}
    for kind in SPECS.values():
        removed |= removed_from(kind)
    yield (
        "## Removed fields { #removed-fields }\n\nA spec that names one of these is refused, and "
        "the error says what to use instead. An unfinished run of an earlier version that used "
        "one is resumed only if "
        "the field is [resumable](#resumable-fields); otherwise finish it with that version. "
        "Checkpoints of such runs can still be evaluated and exported: the field then has its "
        "default.\n\n| Removed | Instead |\n|---|---|\n"
        + "\n".join(f"| {name} | {remedy} |" for name, remedy in removed.items())
        + "\n"
    )


def _is_teacher(section: type[Record]) -> bool:
    return section in TEACHERS


def _kind(section: type[Record]) -> str:
    return str(section.model_fields["kind"].default)


def _anchor(job: str, dotted: str, kind: type[Record] | None) -> str:
    name = f"{job}-{dotted}" if kind is None else f"{job}-{dotted}-{_kind(kind)}"
    return name.replace(".", "-").replace("*-", "")


def _first_line(kind: type[Record]) -> str:
    return _about(kind).split("\n\n")[0].replace("\n", " ").strip()


def _about(kind: type[Record]) -> str:
    return inspect.cleandoc(kind.__doc__ or "") + "\n"


def _default_spec(job: str) -> str:
    path: Path = load_job(job).DEFAULT
    return path.name


def _own_marks(field: FieldInfo) -> set[FieldMark]:
    return {mark for mark in field.metadata if isinstance(mark, FieldMark)}


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "`off`" if Off in field.metadata else "`null`"
    default = field.default
    text = default if isinstance(default, str) else json.dumps(default)
    return f"`{text}`"


def type_in_words(field: FieldInfo) -> str:
    """Return the type of a field as a reader of a spec needs it, with its bounds."""
    schema = _schema_of(field)
    marks = marks_of(field)
    text = "text"
    if FieldMark.ABSOLUTE in marks:
        text = "path or URI"
    elif FieldMark.ABSOLUTE_IF_FILE in marks:
        text = "path, URI or name"
    words = _words(schema, text)
    if Off in field.metadata:
        words = words.replace(" or null", " or `off`")
    return words


def _schema_of(field: FieldInfo) -> dict[str, Any]:
    """Return the JSON schema of a field, with the bounds that its annotation sets."""
    annotation: Any = field.annotation
    for mark in field.metadata:
        annotation = Annotated[annotation, mark]
    return TypeAdapter(annotation).json_schema()


def _words(schema: Mapping[str, Any], text: str) -> str:
    if choices := schema.get("enum", [schema["const"]] if "const" in schema else None):
        return ", ".join(f"`{value}`" for value in choices)
    if parts := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(dict.fromkeys(_words(part, text) for part in parts))
    kind = schema.get("type", "any")
    if kind == "array":
        is_pair = "prefixItems" in schema
        return "[minimum, maximum]" if is_pair else f"list of {_words(schema['items'], text)}"
    words = {"string": text, "boolean": "true or false", "object": "mapping"}
    return f"{words.get(kind, kind)}{_bounds(schema)}"


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    words = [f"{sign} {_number(schema[name])}" for name, sign in signs.items() if name in schema]
    if "multipleOf" in schema:
        words.append(f"multiple of {schema['multipleOf']}")
    return f" {', '.join(words)}" if words else ""


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


# ---------------------------------------------------------------- command line

CLI_INTRODUCTION = """
# Command line

Each job is a script under `jobs/`. Run it from the repository's root, in the environment that
`make install` or `pip` has set up (`. .venv/bin/activate`), or submit it to a cluster:

```sh
python jobs/distill.py my-job.yaml --train.epochs 5
ray job submit --working-dir . -- python jobs/distill.py my-job.yaml
```

**Overriding fields.** Every field of the [spec](spec.md) is an option, by its dotted name. An
option overrides the file. Lists are written with commas or in brackets, mappings as JSON in quotes:

```sh
python jobs/distill.py my-job.yaml --train.learning_rates 1e-3,2e-3 --resources.decoders '[2, 8]'
python jobs/distill.py my-job.yaml --teachers.speech.labels '{"neu": "neutral", "ang": "angry"}'
```

A field that may be switched off takes `off`. To set another field to `null`, write it in the file.

**`--check`** validates the spec, inspects the teachers and the shards, checks that the job fits the
cluster, prints the complete spec, and stops. Nothing is started. With `--resources.costs` it also
prints the slowest stage, and the price of an hour and of a million clips, but not the job's total
time: see [Does the job fit](../operations/cluster.md#does-the-job-fit).

**Output.** The last line on standard output is the path of the result. Logs go to standard error.

**Exit status.** 0: finished. 1: an unexpected error, or a benchmark that found a fault. 2: a user's
mistake; the message names the field, its value and the fix.
"""


def cli_page() -> str:
    """Return the page with the usage and the own options of every job, and of `liser`."""
    parts = [CLI_INTRODUCTION.lstrip()]
    for job in JOBS:
        parts.append(f"## jobs/{job}.py {{ #{job} }}\n\n{_usage(load_job(job))}")
        parts.append(_options(own_options(job)))
        kind = JOBS[job]
        if kind is not None:
            spec = next(name for name, other in SPECS.items() if other is kind)
            parts.append(
                f"Every field of the spec of [{spec}](spec.md#{spec}) is an option, too.\n"
            )
    parts.append(
        "## liser predict { #liser-predict }\n\nRuns an [exported student](../guides/export.md) on "
        "audio or video files, or on a stream of samples. The exported folder's own `predict.py` "
        "has the same options, except `--student` and `--pictures`.\n\n"
        "```text\nliser predict [--student FOLDER] FILE...\n```\n"
    )
    parts.append(_options(predict_options()))
    return "\n".join(parts)


def _usage(job: ModuleType) -> str:
    """Return the text of a job's docstring, its indented usage lines as code."""
    lines = inspect.cleandoc(str(job.__doc__).partition('"$@"')[2] or str(job.__doc__)).split("\n")
    text = [line for line in lines if not line.startswith("The line with `exec` is")]
    shown: list[str] = []
    code = False
    for line in text:
        indented = line.startswith("    ")
        if indented != code and (indented or line.strip()):
            shown.append("```text" if indented else "```\n")
            code = indented
        if code and not line.strip():
            continue
        line = re.sub(r" {4,}(?=--)", "\n    ", line.removeprefix("    ")) if code else line
        shown.append(line)
    if code:
        shown.append("```")
    return "\n".join(shown).strip() + "\n"


def _options(actions: list[argparse.Action]) -> str:
    lines = ["| Option | Meaning |", "|---|---|"]
    for action in actions:
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest).upper()
        value = f" {action.metavar or action.dest.upper()}" if _takes_value(action) else ""
        lines.append(f"| `{name}{value}` | {_sentence(action.help or '')} |")
    return "\n".join(lines) + "\n"


def _takes_value(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.nargs != 0


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def own_options(job: str) -> list[argparse.Action]:
    """Return the arguments of a job that are not fields of its spec."""
    kind = JOBS[job]
    fields = {f"--{name}" for name, _ in fields_of(kind)} if kind is not None else set()
    arguments = ["speed", "--check"] if job == "benchmark" else ["--check"]
    parser = _parser_of(load_job(job).main, arguments)
    return [action for action in _actions(parser) if not fields & {*action.option_strings}]


def predict_options() -> list[argparse.Action]:
    """Return the arguments of `liser predict`."""
    from liser_dist.cli import main as liser

    (commands,) = (
        action.choices
        for action in _parser_of(lambda: liser(["predict"]), [])._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return _actions(commands["predict"])


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.dest != "help"]


class _ParserSeenError(Exception):
    """Carries a job's parser out of its main function."""


def _parser_of(main: Any, arguments: list[str]) -> argparse.ArgumentParser:
    """Return the parser that a main function builds, without running what follows."""

    def give_back(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _ParserSeenError(parser)

    with (
        patch.object(argparse.ArgumentParser, "parse_args", give_back),
        patch.object(sys, "argv", ["job", *arguments]),
    ):
        try:
            main()
        except _ParserSeenError as seen:
            parser: argparse.ArgumentParser = seen.args[0]
            return parser
    raise RuntimeError("the job did not parse its command line")


_loaded: dict[str, ModuleType] = {}


def load_job(job: str) -> ModuleType:
    """Import a script under jobs/, which is no package."""
    if job not in _loaded:
        path = ROOT / "jobs" / f"{job}.py"
        spec = importlib.util.spec_from_file_location(f"documented_{job}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _loaded[job] = module
    return _loaded[job]


# ---------------------------------------------------------------- rejection reasons

REASONS_INTRODUCTION = """
# Rejection reasons

A clip that cannot be used is rejected with one of the reasons below. It is counted, listed in
`rejected.parquet`, and does not stop the job, unless the
[budget](../operations/fault-tolerance.md#rejected-clips) is exceeded. How to read that file:
[Result files](result-files.md#rejected-parquet).

OF_THE_MACHINE depend on the machine and on the limits of the job, not on the clip alone. A
[target store](../operations/target-store.md) does not keep such a rejection: within a run the clip
stays rejected, and the next run decodes it again.

| Reason | Meaning |
|---|---|
"""


def reasons_page() -> str:
    """Return the page with the reasons for which clips are rejected."""
    rows = (f"| `{reason}` | {reason.description} |" for reason in Reason)
    *others, last = (f"`{reason}`" for reason in Reason if reason.depends_on_machine)
    introduction = REASONS_INTRODUCTION.replace("OF_THE_MACHINE", f"{', '.join(others)} and {last}")
    return introduction.lstrip() + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()

"""Checks that what a documentation page names exists: fields, files, commands, options, modules.

Inline code and code blocks are checked:

- dotted names such as `train.batch_size` or `--data.unlabelled` against the specs;
- YAML, inline or in a block, against the specs. A block whose first line is a comment with the name
  of a .yaml file is a complete spec and must be valid as it stands;
- shell commands: scripts under jobs/, their options, targets of `make`, `liser`;
- paths in the repository, modules of `liser_dist`, and imports in Python blocks.

Files of the reader are named `my-...` in the documentation and are not looked for.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import shlex
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from docs.generate import JOBS, ROOT, SPECS, own_options, predict_options
from liser_dist.config.base import Record, fields_of, sections_of

FOLDERS = "jobs|liser_dist|infra|docs|tests"
# Extensions of the files that are looked for: in the repository, or among those that jobs write.
EXTENSIONS = (
    "py", "yaml", "yml", "md", "json", "parquet", "html", "toml", "txt", "onnx", "png", "tar",
    "bin", "safetensors",
)  # fmt: skip
READERS_FILE = re.compile(r"(^|.*/)my[-_][\w.-]*$")
FENCE = re.compile(r"^([ \t]*)```(\w*)[^\n]*\n(.*?)^[ \t]*```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
DOTTED = re.compile(r"(--)?[a-z_*][\w*]*(\.[a-z_*][\w*]*)+")
ASSIGNED = re.compile(r"[a-z_]+(\.[a-z_]+)*: .+")
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./*-]*")
# What pydantic says of a part of a spec that is right as far as it goes.
INCOMPLETE = {"missing", "value_error", "union_tag_not_found"}


def mistakes_in_page(text: str) -> list[str]:
    """Return what a Markdown page names that does not exist, one line each."""
    mistakes: list[str] = []
    for fence in FENCE.finditer(text):
        language, code = fence[2], fence[3].replace("\n" + fence[1], "\n").removeprefix(fence[1])
        check = {"yaml": yaml_block, "sh": shell_block, "python": python_block}.get(language)
        line = text.count("\n", 0, fence.start()) + 1
        mistakes += [f"line {line}: {mistake}" for mistake in (check(code) if check else ())]
    prose = FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    for number, line_text in enumerate(prose.split("\n"), 1):
        for code in INLINE.findall(line_text):
            mistakes += [f"line {number}: `{code}`: {mistake}" for mistake in inline_code(code)]
    return mistakes


def mistakes_in_file(path: Path) -> list[str]:
    """Return the mistakes of a Markdown file outside of the site, its relative links included."""
    text = path.read_text()
    mistakes = mistakes_in_page(text)
    for link in LINK.findall(text):
        if "://" not in link and not (path.parent / link).exists():
            mistakes.append(f"link to {link}: there is no such file")
    return mistakes


# ---------------------------------------------------------------- inline code


def inline_code(code: str) -> Iterator[str]:
    """Yield the mistakes in a piece of inline code."""
    if re.match(r"(python3? )?(\./)?jobs/\w+\.py\b|make\b|liser\b|ray job submit\b", code):
        yield from shell_block(code)
    elif DOTTED.fullmatch(code):
        yield from dotted_name(code)
    elif re.match(r"--[a-z][\w.-]*", code):
        name = re.split(r"[ =]", code)[0]
        known = {f"--{field}" for field in spec_fields()} | all_options()
        if name not in known:
            yield "no job has this option"
    elif ASSIGNED.fullmatch(code):
        yield from yaml_block(code)
    else:
        yield from paths_in(code)


def dotted_name(code: str) -> Iterator[str]:
    """Yield the mistake in a field, file, module or attribute with dots in its name."""
    name = code.removeprefix("--")
    first, extension = name.partition(".")[0], name.rpartition(".")[2]
    if extension in EXTENSIONS and not code.startswith("--"):
        if not is_known_file(name) and not name.startswith("*."):
            yield "there is no such file in the repository, and no job writes one"
    elif first == "liser_dist":
        yield from module_name(name)
    elif any(fnmatch(field, name) or field == name for field in spec_fields()):
        return
    elif first in top_fields() or code.startswith("--") or not _is_installed(first):
        yield "no spec has this field"


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def module_name(name: str) -> Iterator[str]:
    """Yield the mistake in the name of a module of the package, or of something in it."""
    parts = name.split(".")
    path = ROOT
    while parts and (path / parts[0]).is_dir():
        path = path / parts.pop(0)
    if parts and (path / f"{parts[0]}.py").is_file():
        path = path / f"{parts.pop(0)}.py"
    source = path if path.is_file() else path / "__init__.py"
    if parts and not (source.is_file() and parts[0] in _names_in(source)):
        yield "there is no such module, class or function"


@functools.cache
def _names_in(source: Path) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)


def paths_in(code: str) -> Iterator[str]:
    """Yield the paths into the repository that do not exist."""
    for match in PATH.findall(code):
        path = match.rstrip(".")
        if not READERS_FILE.match(path) and not list(ROOT.glob(path.rstrip("/"))):
            yield f"there is no {path}"


def is_known_file(name: str) -> bool:
    """Return whether a file is in the repository, is written by a job, or is the reader's."""
    base = name.rpartition("/")[2]
    return bool(READERS_FILE.match(name)) or base in repository_files() or base in written_files()


@functools.cache
def repository_files() -> frozenset[str]:
    """Return the names of the repository's files."""
    folders = ("", *(f"{folder}/**/" for folder in FOLDERS.split("|")))
    return frozenset(path.name for folder in folders for path in ROOT.glob(f"{folder}*"))


@functools.cache
def written_files() -> frozenset[str]:
    """Return the file names that occur as strings in the package's source."""
    named = re.compile(rf"""["'/ `]([\w.-]+\.(?:{"|".join(EXTENSIONS)}))["' `;:]""")
    sources = (ROOT / "liser_dist").rglob("*.py")
    return frozenset(name for source in sources for name in named.findall(source.read_text()))


# ---------------------------------------------------------------- YAML


def yaml_block(code: str) -> Iterator[str]:
    """Yield the mistakes in YAML that is a spec or a part of one."""
    try:
        documents = list(yaml.safe_load_all(code))
    except yaml.YAMLError as error:
        yield f"it is not valid YAML: {' '.join(str(error).split())[:120]}"
        return
    complete = re.match(r"\s*#.*\.yaml", code) is not None
    for document in documents:
        if isinstance(document, dict) and not _is_of_others(document):
            yield from spec_content(_nested(document), complete)


def _is_of_others(document: dict[Any, Any]) -> bool:
    """Return whether it is a file of Kubernetes, or a file with folds of speakers."""
    return "apiVersion" in document or all(isinstance(key, int) for key in document)


def _nested(document: dict[str, Any]) -> dict[str, Any]:
    """Return `{"train.epochs": 3}` as `{"train": {"epochs": 3}}`."""
    nested: dict[str, Any] = {}
    for name, value in document.items():
        *above, last = name.split(".")
        section = nested
        for part in above:
            section = section.setdefault(part, {})
        section[last] = value
    return nested


def spec_content(content: dict[str, Any], complete: bool) -> Iterator[str]:
    """Yield the mistakes of the spec, or section of a spec, that these fields fit best."""
    kinds = list(SPECS.values()) if complete else section_kinds()
    fitting = [kind for kind in kinds if content.keys() <= kind.model_fields.keys()]
    if not fitting:
        known = {name for kind in kinds for name in kind.model_fields}
        unknown = ", ".join(sorted(content.keys() - known)) or ", ".join(content)
        yield f"no spec or section has the field {unknown}"
        return
    found = [_errors(kind, content, complete) for kind in fitting]
    yield from min(found, key=len)


def _errors(kind: type[Record], content: dict[str, Any], complete: bool) -> list[str]:
    try:
        kind.model_validate(content)
    except ValidationError as error:
        return [
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
            for one in error.errors()
            if complete or one["type"] not in INCOMPLETE
        ]
    return []


@functools.cache
def section_kinds() -> list[type[Record]]:
    """Return the classes of all specs and of their sections."""
    kinds: dict[type[Record], None] = dict.fromkeys(SPECS.values())
    waiting: list[type[Record]] = list(SPECS.values())
    while waiting:
        for field in waiting.pop(0).model_fields.values():
            for section in sections_of(field):
                if section not in kinds:
                    kinds[section] = None
                    waiting.append(section)
    return list(kinds)


@functools.cache
def spec_fields() -> frozenset[str]:
    """Return the dotted names of the fields of all specs."""
    return frozenset(name for kind in SPECS.values() for name, _ in fields_of(kind))


def top_fields() -> set[str]:
    """Return the first parts of these names."""
    return {name.partition(".")[0] for name in spec_fields()}


# ---------------------------------------------------------------- shell


def shell_block(code: str) -> Iterator[str]:
    """Yield the mistakes in shell commands."""
    for line in code.replace("\\\n", " ").split("\n"):
        yield from paths_in(line)
        yield from _command(_tokens(line))


def _tokens(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # a part of a longer command
        return line.split()


def _command(tokens: Sequence[str]) -> Iterator[str]:
    for position, token in enumerate(tokens):
        begins = position == 0 or tokens[position - 1] in ("&&", ";", "|", "--")
        arguments = _until_separator(tokens[position + 1 :])
        if re.fullmatch(r"(\./)?jobs/\w+\.py", token):
            yield from _job_arguments(token.rpartition("/")[2].removesuffix(".py"), arguments)
            return
        if token == "make" and begins:
            targets = (one for one in arguments if "=" not in one and not one.startswith("-"))
            yield from (f"there is no `make {one}`" for one in targets if one not in make_targets())
        if token == "liser" and begins and arguments:
            yield from _liser_arguments(arguments)


def _until_separator(tokens: Sequence[str]) -> list[str]:
    arguments: list[str] = []
    for token in tokens:
        if token in ("&&", ";", "|", ">", "&"):
            break
        arguments.append(token)
    return arguments


def _job_arguments(job: str, arguments: Sequence[str]) -> Iterator[str]:
    if job not in JOBS:
        return  # said by `paths_in`, if there is no such file
    for argument in arguments:
        if argument.startswith("--"):
            name = argument.split("=")[0]
            if name not in job_options(job):
                yield f"jobs/{job}.py has no option {name}"
        elif argument.endswith((".yaml", ".yml")) and not _is_spec_file(argument):
            yield f"there is no {argument}"


def _is_spec_file(argument: str) -> bool:
    return bool(READERS_FILE.match(argument)) or (ROOT / argument).is_file()


def _liser_arguments(arguments: Sequence[str]) -> Iterator[str]:
    command, *rest = arguments
    if command != "predict":
        yield f"there is no `liser {command}`"
    known = {name for action in predict_options() for name in action.option_strings}
    for argument in rest:
        if argument.startswith("--") and argument.split("=")[0] not in known:
            yield f"`liser predict` has no option {argument}"


@functools.cache
def job_options(job: str) -> frozenset[str]:
    """Return the options of a job: its own, and the fields of its spec."""
    kind = JOBS[job]
    own = {name for action in own_options(job) for name in action.option_strings}
    fields = (f"--{name}" for name, _ in fields_of(kind)) if kind is not None else ()
    return frozenset({"--help", *own, *fields})


@functools.cache
def all_options() -> frozenset[str]:
    """Return the options of all jobs and of `liser predict`."""
    liser = {name for action in predict_options() for name in action.option_strings}
    return frozenset(liser | {option for job in JOBS for option in job_options(job)})


@functools.cache
def make_targets() -> frozenset[str]:
    """Return the targets of the Makefile."""
    return frozenset(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


# ---------------------------------------------------------------- messages


def mistakes_in_messages(text: str) -> list[str]:
    """Return the headings of the troubleshooting page that quote no message of the package.

    A quoted message stands in a heading of level 3; `...` stands for what differs. Headings with an
    anchor of their own quote no message of the package.
    """
    literals = "\n".join(string_literals())
    mistakes = []
    for heading in re.findall(r"^### ([^{\n]+)$", text, re.MULTILINE):
        parts = (re.escape(part.strip()) for part in heading.replace("`", "").split("..."))
        if not re.search(r"[^\n]*".join(parts), literals):
            mistakes.append(f"the heading {heading!r} is in no message of the package")
    return mistakes


@functools.cache
def string_literals() -> tuple[str, ...]:
    """Return all strings of the package's source, without backticks, in one line each."""
    found: list[str] = []
    for source in (ROOT / "liser_dist").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "X" for p in node.values)
                found.append("".join(map(str, parts)))
    return tuple(" ".join(text.split()).replace("`", "") for text in found)


# ---------------------------------------------------------------- Python


def python_block(code: str) -> Iterator[str]:
    """Yield the names that a block of Python uses of the package and that do not exist."""
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        yield f"it is not valid Python: {error.msg}"
        return
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [f"{node.value.id}.{node.attr}"]
        for name in names:
            if name.partition(".")[0] == "liser_dist":
                yield from (f"{name}: {mistake}" for mistake in module_name(name))

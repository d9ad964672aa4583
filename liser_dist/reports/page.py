"""Writes the report of a run, of two runs side by side, of a study or of a benchmark.

A report is one HTML file that loads nothing else: charts, sound and faces are embedded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.table import Table

from liser_dist import storage
from liser_dist.errors import SpecError
from liser_dist.plots import SECOND_RUN
from liser_dist.reports.run_data import label_runs, read_run
from liser_dist.reports.run_page import view_runs
from liser_dist.reports.text import format_duration, format_percent
from liser_dist.reports.views import RunPage, TablesPage, TableView
from liser_dist.runs.folder import RESULT
from liser_dist.runs.results import AnyRecord, read_record, read_rows

DISAGREEMENTS = 12  # shown for each run

FolderKind = Literal["run", "study", "benchmark"]
# The kind of a folder is recognised by the files in it:
#   benchmark   one of these files
#   study       study.parquet and result.json, which it writes at its end
#   run         shards.json, without `study` in spec.json
BENCHMARK_FILES = ("benchmark.json", "simulate.json", "faults.json", "damage.json", "memory.json")


def folder_kind(place: str) -> FolderKind:
    """Return what a folder holds.

    Raises:
        SpecError: It holds nothing that a report can be made of.
    """

    def holds(name: str) -> bool:
        return storage.exists(storage.join(place, name), storage.CHECK_PATIENCE_S)

    if any(map(holds, BENCHMARK_FILES)):
        return "benchmark"
    if holds("study.parquet") and holds(RESULT):
        return "study"
    if holds("shards.json") and not _is_study(place):
        return "run"
    raise SpecError(
        f"{place} is neither a run, nor a finished study, nor a benchmark: give the folder that "
        f"holds shards.json, study.parquet or one of {', '.join(BENCHMARK_FILES)}"
    )


def _is_study(place: str) -> bool:
    return "study" in json.loads(storage.read_bytes(storage.join(place, "spec.json")))


def write_report(
    places: Sequence[str], disagreements: int = DISAGREEMENTS, output: str | None = None
) -> str:
    """Write a report and return its path.

    Args:
        places: A run, two runs, a study or a benchmark.
        disagreements: How many of each run's teacher disagreements to show.
        output: An .html file, or a folder; the first of `places` by default.

    Raises:
        SpecError: A folder holds nothing that a report can be made of, or they cannot be combined.
        CheckpointError: A folder was written by another version.
        StorageError: A file cannot be read or written.
    """
    if len({storage.resolve(place) for place in places}) < len(places):
        raise SpecError(f"{places[0]} is given twice: give another run to compare it with")
    kinds = [folder_kind(place) for place in places]
    if len(places) > 1 and set(kinds) != {"run"}:
        raise SpecError(
            f"only runs can be compared, and these are a {' and a '.join(kinds)}: give two runs, "
            "or one folder to report on it alone"
        )
    page: RunPage | TablesPage
    match kinds[0]:
        case "run":
            labelled = zip(places, label_runs(places), strict=True)
            page = view_runs([read_run(*run) for run in labelled], disagreements)
        case "study":
            page = view_study(places[0])
        case "benchmark":
            page = view_benchmark(places[0])
    content = render_page(page)
    name = "-beside-".join(
        ["report", *(label.replace("/", "-") for label in label_runs(places)[1:])]
    )
    file = storage.join(output or places[0], f"{name.removesuffix(SECOND_RUN)}.html")
    if output is not None and output.endswith(".html"):
        file = output
    storage.write_bytes(file, content.encode())
    return file


def render_page(page: RunPage | TablesPage) -> str:
    """Return the page as HTML."""
    templates = Environment(
        loader=PackageLoader("liser_dist", "reports/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = "run.html" if isinstance(page, RunPage) else "tables.html"
    return templates.get_template(template).render(
        page=page, percent=format_percent, written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )


# ---------------------------------------------------------------- studies and benchmarks


def view_study(place: str) -> TablesPage:
    """Return the page of a study.

    Raises:
        CheckpointError: It was written by another version.
    """
    from liser_dist.evaluation import study_report
    from liser_dist.reports import svg

    result = read_record(storage.join(place, RESULT), study_report.StudyResult)
    return TablesPage(
        title=f"{result.name}: study",
        about=f"{result.cells} cells (label share, fold and seed), {result.test_speakers} "
        f"held-out test speakers, {format_duration(result.seconds)}; {result.corpus} corpus",
        tables=_view_tables(
            [study_report.uar_table(result), study_report.gain_table(result.gains)]
        ),
        charts=[svg.inline_svg(partial(study_report.draw_study, result))],
        spec=_read_spec_text(place),
    )


def view_benchmark(place: str) -> TablesPage:
    """Return the page of a benchmark, of whichever of its files exist.

    Raises:
        CheckpointError: It was written by another version.
    """
    from liser_dist.benchmarks import fault_report, simulation, speed
    from liser_dist.benchmarks.damage import DamageRow
    from liser_dist.benchmarks.fault_runs import FaultRow
    from liser_dist.benchmarks.memory import MemoryRow
    from liser_dist.reports import svg

    def rows(name: str, kind: type[AnyRecord]) -> list[AnyRecord]:
        return read_rows(storage.join(place, name), kind)

    tables: list[Table] = []
    charts: list[Markup] = []
    if storage.exists(storage.join(place, "benchmark.json")):
        report = read_record(storage.join(place, "benchmark.json"), speed.SpeedReport)
        tables.append(speed.ratio_table(report.ratios))
        charts.append(svg.inline_svg(partial(speed.draw_cpu_times, report)))
    if simulated := rows("simulate.json", simulation.SimulationRow):
        tables.append(simulation.simulation_table(simulated))
    if faults := rows("faults.json", FaultRow):
        tables.append(fault_report.fault_table(faults))
    for row in rows("damage.json", DamageRow):
        tables.append(_table_of_fields(row.model_dump(), "damaged clips among good ones"))
    if memory := rows("memory.json", MemoryRow):
        tables.append(fault_report.memory_table(memory))
    return TablesPage(
        title=f"{place.rstrip('/').rpartition('/')[2]}: benchmark",
        about=place,
        tables=_view_tables(tables),
        charts=charts,
        spec="",
    )


def _view_tables(tables: Iterable[Table]) -> list[TableView]:
    return [
        TableView(
            str(table.title or ""),
            [str(column.header) for column in table.columns],
            list(zip(*(list(column.cells) for column in table.columns), strict=True)),
        )
        for table in tables
    ]


def _table_of_fields(fields: dict[str, Any], title: str) -> Table:
    table = Table("", "", title=title)
    for name, value in fields.items():
        table.add_row(name.replace("_", " "), str(value))
    return table


def _read_spec_text(place: str) -> str:
    file = storage.join(place, "spec.json")
    if not storage.exists(file):
        return ""
    return yaml.safe_dump(json.loads(storage.read_bytes(file)), sort_keys=False)

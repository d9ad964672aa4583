"""The page of a run, of two runs side by side, of a study or of a benchmark: one HTML file.

It needs nothing beside it, and asks nobody for anything: pictures, sound and faces are in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.table import Table

from liser_dist import storage
from liser_dist.errors import SpecError
from liser_dist.pictures import SECOND
from liser_dist.results import R, read_record, read_rows
from liser_dist.run_facts import labels_of, read_run
from liser_dist.run_page import cells_of, duration, percent, sections_of
from liser_dist.runs import RESULT

DISPUTES = 12  # clips shown of a run
BENCHMARKS = ("benchmark.json", "simulate.json", "faults.json", "damage.json", "memory.json")


def kind_of(place: str) -> str:
    """run, study or benchmark. Raises SpecError."""
    files = {
        name for name in ("shards.json", "study.parquet", *BENCHMARKS, RESULT)
        if storage.exists(storage.join(place, name))
    }  # fmt: skip
    if files & set(BENCHMARKS):
        return "benchmark"
    is_study = "shards.json" in files and _is_study(place)
    if {"study.parquet", RESULT} <= files:
        return "study"
    if "shards.json" in files and not is_study:
        return "run"
    raise SpecError(
        f"{place} is neither a run, nor a finished study, nor a benchmark: give the folder of its "
        f"shards.json, study.parquet or {', '.join(BENCHMARKS)}"
    )


def _is_study(place: str) -> bool:
    return "study" in json.loads(storage.read_bytes(storage.join(place, "spec.json")))


def write_report(places: Sequence[str], disputes: int = DISPUTES, output: str | None = None) -> str:
    """Returns where the page is: in the folder of the first, when neither file nor folder is given.

    Raises LiserError: a place holds nothing that a page can be made of.
    """
    if len({storage.resolve(place) for place in places}) < len(places):
        raise SpecError(f"{places[0]} is given twice: give another run to show beside it")
    kinds = [kind_of(place) for place in places]
    if len(places) > 1 and set(kinds) != {"run"}:
        raise SpecError(f"only runs can be shown side by side, not a {' and a '.join(kinds)}")
    match kinds[0]:
        case "run":
            named = zip(places, labels_of(places), strict=True)
            page = sections_of([read_run(*one) for one in named], disputes)
        case "study":
            page = study_page(places[0])
        case _:
            page = benchmark_page(places[0])
    content = render(kinds[0], page)
    name = "-beside-".join(
        ["report", *(label.replace("/", "-") for label in labels_of(places)[1:])]
    )
    where = storage.join(output or places[0], f"{name.removesuffix(SECOND)}.html")
    if output is not None and output.endswith(".html"):
        where = output
    storage.write_bytes(where, content.encode())
    return where


def render(kind: str, page: dict[str, Any]) -> str:
    pages = Environment(
        loader=PackageLoader("liser_dist"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return pages.get_template("run.html" if kind == "run" else "tables.html").render(
        page, percent=percent, duration=duration, made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    )


# ---------------------------------------------------------------- studies and benchmarks


def study_page(place: str) -> dict[str, Any]:
    from liser_dist import study_report, svg

    found = read_record(storage.join(place, RESULT), study_report.StudyResult)
    return {
        "title": f"{found.name}, a study",
        "about": f"{found.cells} cells, {found.test_speakers} speakers whose labels nobody knew, "
        f"{duration(found.seconds)}; {found.corpus} corpus",
        "tables": cells_of([study_report.table_of(found), study_report.gains_of(found.gains)]),
        "pictures": [svg.inline(partial(study_report.draw, found))],
        "spec": _spec_of(place),
    }


def benchmark_page(place: str) -> dict[str, Any]:
    from liser_dist import fault_report, simulation, speed, svg
    from liser_dist.damage import DamageRow
    from liser_dist.faults import FaultRow
    from liser_dist.memory import MemoryRow

    def rows(name: str, kind: type[R]) -> list[R]:
        return read_rows(storage.join(place, name), kind)

    tables: list[Table] = []
    pictures: list[Markup] = []
    if storage.exists(storage.join(place, "benchmark.json")):
        found = read_record(storage.join(place, "benchmark.json"), speed.SpeedReport)
        tables.append(speed.table_of(found.ratios))
        pictures.append(svg.inline(partial(speed.draw, found)))
    if simulated := rows("simulate.json", simulation.SimulationRow):
        tables.append(simulation.table_of(simulated))
    if broken := rows("faults.json", FaultRow):
        tables.append(fault_report.fault_table(broken))
    for row in rows("damage.json", DamageRow):
        tables.append(_as_table(row.model_dump(), "damaged clips among good ones"))
    if memory := rows("memory.json", MemoryRow):
        tables.append(fault_report.memory_table(memory))
    return {
        "title": f"{place.rstrip('/').rpartition('/')[2]}, a benchmark",
        "about": place,
        "tables": cells_of(tables),
        "pictures": pictures,
        "spec": "",
    }


def _as_table(row: dict[str, Any], title: str) -> Table:
    table = Table("", "", title=title)
    for name, value in row.items():
        table.add_row(name.replace("_", " "), str(value))
    return table


def _spec_of(place: str) -> str:
    file = storage.join(place, "spec.json")
    if not storage.exists(file):
        return ""
    return yaml.safe_dump(json.loads(storage.read_bytes(file)), sort_keys=False)

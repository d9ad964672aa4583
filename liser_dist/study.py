"""A study: label shares x folds x seeds, a cell each, in which all methods are tried.

1. the backbones run once over all clips, into the target store    teaching.py
2. the cells, as tasks over the cluster                            study_cell.py
3. the table, the intervals, the picture                           study_report.py

Each cell leaves its answers in the run's folder when it has ended; a study that is started again
goes on with the cells that have left none.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from liser_dist import screen, storage, study_report
from liser_dist.cluster import Capacity
from liser_dist.errors import CapacityError, SpecError
from liser_dist.label_draws import ALL, find_folds, require_all_classes, require_speakers
from liser_dist.pipeline import ours_in
from liser_dist.planning import Plan
from liser_dist.records import Example
from liser_dist.results import Record
from liser_dist.runs import RESULT, Run, open_run
from liser_dist.study_cell import Answers, Cell, Study, run_cell
from liser_dist.study_report import StudyResult
from liser_dist.study_spec import StudySpec
from liser_dist.tables import to_examples, to_table
from liser_dist.teacher_spec import BackboneTeacher
from liser_dist.teaching import teach

Said = tuple[list[Answers], list[Answers]]  # the students', the teachers'
STUDENT, TEACHER = "student", "teacher"


def run(job: Plan) -> tuple[StudyResult, str]:
    """Carry a study out; returns the result and the place where it was written."""
    spec = job.spec
    assert isinstance(spec, StudySpec)
    require_room(spec, job.capacity)
    store, labelled = teach(job, taught_sets=("labelled", "test"))
    for name, clips in labelled.items():
        require_speakers(clips, f"data.{name}")
    require_all_classes(labelled["labelled"], spec.emotions, "data.labelled")
    speakers = [clip.speaker for clip in labelled["labelled"]]
    fold_of = find_folds(spec.study.folds, speakers, "study.folds")
    begun = open_run(spec, job.shards)  # all that the user might have to mend is known by now
    if begun.goes_on:
        screen.console.print(f"going on with the study {begun.place}")
    study = Study(spec, store, begun.shards["unlabelled"], fold_of, layers_of(spec))
    return finish(job, run_cells(study, labelled, begun), begun)


def require_room(spec: StudySpec, capacity: Capacity) -> None:
    """Raise CapacityError where no node could ever run a cell."""
    most = max(node.get("CPU", 0.0) for node in capacity.nodes)
    if spec.study.cell_cpus > most:
        raise CapacityError(
            f"`study.cell_cpus` is {spec.study.cell_cpus:g}, and no node has more than {most:g} "
            "CPUs: lower it"
        )


def layers_of(spec: StudySpec) -> dict[str, int]:
    """Of each teacher's backbone."""
    from liser_dist.huggingface_backbone import backbone_shape

    teachers = {"speech": spec.teachers.speech, "face": spec.teachers.face}
    return {
        name: backbone_shape(one.model)[0]
        for name, one in teachers.items()
        if isinstance(one, BackboneTeacher)
    }


def cells_of(study: Study) -> list[Cell]:
    axes = study.spec.study
    folds = [ALL] if axes.folds is None else sorted(set(study.fold_of.values()))
    if axes.folds is not None and len(folds) < 2:
        raise SpecError("`study.folds` puts all speakers into one fold: give two")
    return [Cell(*cell) for cell in product(sorted(set(axes.label_shares)), folds, axes.seeds)]


# ---------------------------------------------------------------- cells


def run_cells(
    study: Study, labelled: Mapping[str, Sequence[Example]], begun: Run
) -> dict[Cell, Said]:
    """All cells, those that had ended before read from the run's folder. Raises LiserError."""
    cells = cells_of(study)
    said = {cell: found for cell in cells if (found := _read(begun.place, cell)) is not None}
    left = [cell for cell in cells if cell not in said]
    screen.console.print(f"{len(left)} cells, {len(study.spec.study.methods)} methods in each")
    clips = {name: ray.put(to_table(of_set, Example)) for name, of_set in labelled.items()}
    task = ray.remote(_run_cell).options(num_cpus=study.spec.study.cell_cpus)
    shared = ray.put(study)
    waiting = {task.remote(shared, cell, begun.place, list(clips.items())): cell for cell in left}
    while waiting:
        done, _ = ray.wait(list(waiting))
        cell = waiting.pop(done[0])
        try:
            seconds = ray.get(done[0])
        except ray.exceptions.RayError as error:
            raise ours_in(error) from error
        found = _read(begun.place, cell)
        assert found is not None
        said[cell] = found
        _tell(study.spec, cell, found, f"{len(said)}/{len(cells)}", seconds)
    return said


def _run_cell(study: Study, cell: Cell, place: str, sets: Sequence[tuple[str, Any]]) -> float:
    """Leaves the cell's answers; returns how long it took, in seconds."""
    import torch

    begun = time.monotonic()
    torch.set_num_threads(max(1, int(study.spec.study.cell_cpus)))
    labelled = {name: to_examples(ray.get(clips)) for name, clips in sets}
    pool, test = split(study, cell, labelled)
    said = run_cell(study, cell, pool, test)
    storage.write_bytes(_place_of(place, cell), _pack(said))
    return time.monotonic() - begun


def split(
    study: Study, cell: Cell, labelled: Mapping[str, Sequence[Example]]
) -> tuple[list[Example], list[Example]]:
    """The clips whose labels a cell may draw from, and those that it tests."""
    pool = labelled["labelled"]
    if study.spec.study.folds is None:
        return list(pool), list(labelled["test"])
    sides: tuple[list[Example], list[Example]] = ([], [])
    for clip in pool:
        sides[study.fold_of[clip.speaker] == cell.fold].append(clip)
    return sides


def _tell(spec: StudySpec, cell: Cell, said: Said, count: str, seconds: float) -> None:
    rows = study_report.rows_of(spec, {cell: said[0]})
    scores = " · ".join(f"{study_report.name_of(row.method)} {row.uar:.0%}" for row in rows)
    fold = "" if spec.study.folds is None else f", fold {cell.fold}"
    screen.console.print(
        f"{count} · {100 * cell.label_share:g} % of the labels{fold}, seed {cell.seed}: {scores} "
        f"· {seconds:.0f} s"
    )


# ---------------------------------------------------------------- what a cell leaves


def _place_of(place: str, cell: Cell) -> str:
    return storage.join(place, "cells", f"{cell.name}.parquet")


def _pack(said: Said) -> bytes:
    """Parquet: a row for each answer of each student and teacher."""
    rows = [
        {"who": who, "method": one.method, "key": key, "speaker": speaker, "label": int(label),
         "logits": logits.tolist()}
        for who, answers in zip((STUDENT, TEACHER), said, strict=True)
        for one in answers
        for key, speaker, label, logits in zip(
            one.keys, one.speakers, one.labels, one.logits, strict=True
        )
    ]  # fmt: skip
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), content)
    return content.getvalue()


def _read(place: str, cell: Cell) -> Said | None:
    """None where the cell has not ended."""
    file = _place_of(place, cell)
    if not storage.exists(file):
        return None
    table = pq.read_table(io.BytesIO(storage.read_bytes(file)))
    return tuple(list(_answers(table, who)) for who in (STUDENT, TEACHER))  # type: ignore[return-value]


def _answers(table: pa.Table, who: str) -> Iterator[Answers]:
    of_who = table.filter(pa.compute.equal(table["who"], who))
    for method in dict.fromkeys(of_who["method"].to_pylist()):
        rows = of_who.filter(pa.compute.equal(of_who["method"], method))
        yield Answers(
            method,
            rows["key"].to_pylist(),
            rows["speaker"].to_pylist(),
            rows["label"].to_numpy(),
            np.array(rows["logits"].to_pylist(), np.float32),
        )


# ---------------------------------------------------------------- the end


def finish(job: Plan, said: Mapping[Cell, Said], begun: Run) -> tuple[StudyResult, str]:
    """Write the tables, the picture and the result."""
    spec = job.spec
    assert isinstance(spec, StudySpec)
    students, teachers = ({cell: found[which] for cell, found in said.items()} for which in (0, 1))
    resampled = study_report.Resampled(spec, students)
    result = StudyResult(
        name=spec.name,
        corpus=spec.study.corpus,
        cells=len(said),
        test_speakers=resampled.speakers,
        students=resampled.summaries(),
        teachers=study_report.Resampled(spec, teachers).summaries(),
        comparisons=study_report.compare_all(spec, resampled),
        seconds=time.time() - job.started,
        spec_hash=spec.spec_hash,
    )
    _write_rows(storage.join(begun.place, "study.parquet"), study_report.rows_of(spec, students))
    _write_rows(storage.join(begun.place, "teachers.parquet"), study_report.rows_of(spec, teachers))
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "study.png")
        study_report.draw(result, picture)
        storage.write_bytes(storage.join(begun.place, picture.name), picture.read_bytes())
    place = storage.join(begun.place, RESULT)
    storage.write_bytes(place, result.model_dump_json(indent=1).encode())
    return result, place


def _write_rows(place: str, rows: Sequence[Record]) -> None:
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row.model_dump() for row in rows]), content)
    storage.write_bytes(place, content.getvalue())

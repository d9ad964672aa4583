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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from liser_dist import cluster, screen, storage, study_report, tracking
from liser_dist.cluster import Capacity
from liser_dist.errors import CapacityError, CheckpointError
from liser_dist.label_draws import (
    draw_labels,
    find_folds,
    require_all_classes,
    require_speakers,
    split_by_fold,
)
from liser_dist.pipeline import ours_in
from liser_dist.planning import Plan
from liser_dist.records import Example
from liser_dist.runs import RESULT, Run, begin_run, unfinished_run
from liser_dist.study_cell import Answers, Cell, Said, Study, run_cell
from liser_dist.study_report import StudyResult
from liser_dist.study_spec import StudySpec
from liser_dist.tables import to_examples, to_table
from liser_dist.teaching import teach

CELL_BYTES = 600 * 2**20  # of a cell's process, without its clips


def run(job: Plan) -> tuple[StudyResult, str]:
    """Carry a study out; returns the result and the place where it was written."""
    spec = job.spec
    assert isinstance(spec, StudySpec)
    begun = unfinished_run(spec, job.shards)
    if begun is not None:
        screen.console.print(f"going on with the study {begun.place}")
        job = replace(job, shards=begun.shards)
    store, labelled = teach(job, taught_sets=("labelled", "test"))
    sides = draw_sides(spec, labelled["labelled"], labelled.get("test", []))
    # Not before: all that the user might have to mend is known by now.
    begun = begun or begin_run(spec, job.shards)
    require_same_targets(store.place, begun.place)
    layers = {name: facts.layers for name, facts in job.teachers.items()}
    study = Study(spec, store, job.shards["unlabelled"], layers)
    clips = to_table([*labelled["labelled"], *labelled.get("test", [])], Example)
    with tracking.tracked(spec, begun) as tracks:
        result, place = finish(job, run_cells(study, sides, clips, begun.place), begun)
        for row in result.students:
            tracks.tell({f"test/{row.method}_uar": row.uar}, round(10_000 * row.label_share))
    return result, place


def require_room(spec: StudySpec, capacity: Capacity) -> None:
    """Raise CapacityError where no node could ever run a cell."""
    room = capacity.of(spec.resources.pools.students)
    most = max(node.amounts.get("CPU", 0.0) for node in room.nodes)
    if spec.study.cell_cpus > most:
        raise CapacityError(
            f"`study.cell_cpus` is {spec.study.cell_cpus:g}, and no node has more than {most:g} "
            "CPUs: lower it"
        )


def require_same_targets(store: str, run_place: str) -> None:
    """Raise CheckpointError where cells that have ended knew other backbones."""
    file, now = storage.join(run_place, "targets"), store.rpartition("/")[2]
    if not storage.exists(file):
        storage.write_bytes(file, now.encode())
    if (before := storage.read_bytes(file).decode()) != now:
        raise CheckpointError(
            f"the study {run_place} was begun with other backbones: its targets were {before}, "
            f"these are {now}; put the old weights back, or give another `name`"
        )


# ---------------------------------------------------------------- which labels, who is tested


@dataclass(frozen=True, slots=True)
class Sides:
    """The labelled clips of a cell, as rows of the table of all."""

    known: Sequence[int]  # whose labels it may use
    tested: Sequence[int]


def draw_sides(
    spec: StudySpec, pool: Sequence[Example], test: Sequence[Example]
) -> dict[Cell, Sides]:
    """The sides of each cell, all drawn before any begins. Raises SpecError."""
    for name, clips in (("labelled", pool), ("test", test)):
        require_speakers(clips, f"data.{name}")
    fold_of = find_folds(spec.study.folds, (clip.speaker for clip in pool), "study.folds")
    row_of = {(clip.shard, clip.index): row for row, clip in enumerate([*pool, *test])}

    def rows(clips: Iterable[Example]) -> list[int]:
        return [row_of[clip.shard, clip.index] for clip in clips]

    sides = {}
    for fold, (train, tested) in split_by_fold(pool, test, fold_of).items():
        # The labels are the same for all methods: of clips that show both teachers something.
        shown = [clip for clip in train if clip.speech_embedding.size and clip.face_embedding.size]
        require_all_classes(shown, spec.emotions, "data.labelled")
        for share, seed in product(spec.study.label_shares, spec.study.seeds):
            known = draw_labels(shown, share, seed)
            sides[Cell(share, fold, seed)] = Sides(rows(known), rows(tested))
    return dict(sorted(sides.items()))


# ---------------------------------------------------------------- cells


def run_cells(
    study: Study, sides: Mapping[Cell, Sides], clips: pa.Table, place: str
) -> dict[Cell, Said]:
    """All cells, those that had ended before read from the run's place. Raises LiserError."""
    said = {cell: found for cell in sides if (found := _read(place, cell)) is not None}
    left = [cell for cell in sides if cell not in said]
    screen.console.print(f"{len(left)} cells, {len(study.spec.study.methods)} methods in each")
    shared, table = ray.put(study), ray.put(clips)
    there = cluster.place(study.spec.resources.pools.students)
    run = ray.remote(num_cpus=study.spec.study.cell_cpus, label_selector=there)(_run_cell)
    waiting = {}
    for cell in left:
        task = run.options(memory=memory_of(sides[cell], clips))
        waiting[task.remote(shared, cell, sides[cell], table)] = cell
    while waiting:
        done, _ = ray.wait(list(waiting))
        cell = waiting.pop(done[0])
        try:
            said[cell], seconds = ray.get(done[0])
        except ray.exceptions.RayError as error:
            raise ours_in(error) from error
        storage.write_table(_place_of(place, cell), _to_table(said[cell]))
        _tell(study.spec, cell, said[cell], f"{len(said)}/{len(sides)}", seconds)
    return said


def memory_of(sides: Sides, clips: pa.Table) -> float:
    """Bytes that a cell wants of its node, about; no more than the largest node has.

    Its clips, taken from the table, then as records, their embeddings as float32 for the heads; and
    torch with the students.
    """
    share = (len(sides.known) + len(sides.tested)) / max(1, clips.num_rows)
    most = max(node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"])
    return float(min(CELL_BYTES + 3 * share * clips.nbytes, most))


def _run_cell(study: Study, cell: Cell, sides: Sides, table: pa.Table) -> tuple[Said, float]:
    """What was said, and how long it took, in seconds."""
    import torch

    begun = time.monotonic()
    torch.set_num_threads(max(1, int(study.spec.study.cell_cpus)))
    known, tested = (to_examples(table.take(rows)) for rows in (sides.known, sides.tested))
    return run_cell(study, cell, known, tested), time.monotonic() - begun


def _tell(spec: StudySpec, cell: Cell, said: Said, count: str, seconds: float) -> None:
    rows = study_report.rows_of(spec, {cell: said.students})
    scores = " · ".join(f"{study_report.name_of(row.method)} {row.uar:.0%}" for row in rows)
    fold = "" if spec.study.folds is None else f", fold {cell.fold}"
    screen.console.print(
        f"{count} · {100 * cell.label_share:g} % of the labels{fold}, seed {cell.seed}: {scores} "
        f"· {seconds:.0f} s"
    )


# ---------------------------------------------------------------- what a cell leaves


def _place_of(place: str, cell: Cell) -> str:
    return storage.join(place, "cells", f"{cell.name}.parquet")


def _to_table(said: Said) -> pa.Table:
    """A row for each answer of each student and teacher."""
    return pa.Table.from_pylist(
        [
            {"who": who, "method": one.method, "key": key, "speaker": speaker, "label": int(label),
             "logits": logits.tolist()}
            for who, answers in said._asdict().items()
            for one in answers
            for key, speaker, label, logits in zip(
                one.keys, one.speakers, one.labels, one.logits, strict=True
            )
        ]
    )  # fmt: skip


def _read(place: str, cell: Cell) -> Said | None:
    """None where the cell has not ended."""
    file = _place_of(place, cell)
    if not storage.exists(file):
        return None
    table = pq.read_table(io.BytesIO(storage.read_bytes(file)))
    return Said(*(list(_answers(table, who)) for who in Said._fields))


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
    students = {cell: found.students for cell, found in said.items()}
    teachers = {cell: found.teachers for cell, found in said.items()}
    resampled = study_report.Resampled(spec, students)
    result = StudyResult(
        name=spec.name,
        corpus=spec.study.corpus,
        cells=len(said),
        test_speakers=resampled.speakers,
        students=resampled.summaries(),
        teachers=study_report.Resampled(spec, teachers).summaries(),
        gains=study_report.compare_all(spec, resampled),
        seconds=time.time() - job.started,
        spec_hash=spec.spec_hash,
    )
    for name, of_all in (("study", students), ("teachers", teachers)):
        rows = [row.model_dump() for row in study_report.rows_of(spec, of_all)]
        storage.write_table(
            storage.join(begun.place, f"{name}.parquet"), pa.Table.from_pylist(rows)
        )
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "study.png")
        study_report.draw(result, picture)
        storage.write_bytes(storage.join(begun.place, picture.name), picture.read_bytes())
    place = storage.join(begun.place, RESULT)
    storage.write_bytes(place, result.model_dump_json(indent=1).encode())
    return result, place

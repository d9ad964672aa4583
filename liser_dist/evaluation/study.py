"""Runs a study, which shows how far a student gets with few labels.

A method is what a student learns from: labels alone, one teacher, or both.

1. the labels are checked and split                     study_splits.py
2. the backbones compute embeddings of all clips once   pipeline/fill_store.py
3. the cells run as Ray tasks                           study_cell.py
4. tables, intervals and a chart are written            study_report.py

A cell is one label share, fold and seed, with a student for each method. Each finished cell stores
its predictions in the run's folder; a study that is resumed runs only the cells that have none.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from liser_dist import storage
from liser_dist.cluster.capacity import Capacity
from liser_dist.cluster.connect import pool_selector
from liser_dist.cluster.ray_errors import unwrap_ray_error
from liser_dist.config.study import StudySpec
from liser_dist.console import output
from liser_dist.errors import CapacityError, CheckpointError
from liser_dist.evaluation import study_report
from liser_dist.evaluation.study_cell import (
    Cell,
    CellPredictions,
    MethodPredictions,
    Study,
    run_cell,
)
from liser_dist.evaluation.study_report import StudyResult
from liser_dist.evaluation.study_splits import CellSplit, check_labels, draw_splits
from liser_dist.pipeline.fill_store import fill_store
from liser_dist.pipeline.plan import DistillPlan, for_run
from liser_dist.pipeline.tables import to_examples, to_table
from liser_dist.records import Example
from liser_dist.runs import tracking
from liser_dist.runs.folder import RESULT, Run, find_unfinished_run, start_run, teachers_at_start

CELL_BYTES = 600 * 2**20  # memory of a cell's process, without its clips


def run_study(job: DistillPlan) -> tuple[StudyResult, str]:
    """Run a study, or resume it.

    Returns:
        The result, and the path of `result.json`.

    Raises:
        LiserError: The user can fix the cause; see `errors`.
    """
    spec = job.spec
    assert isinstance(spec, StudySpec)
    run = find_unfinished_run(spec, job.shards)
    if run is not None:
        output.print(f"resuming the study {run.place}")
        job = for_run(job, run)
    check_labels(spec, job.shards)
    store, labelled = fill_store(job, sets_with_targets=("labelled", "test"))
    splits = draw_splits(spec, labelled["labelled"], labelled.get("test", []))
    # The run's folder is created only now, because all user errors are known by now.
    run = run or start_run(spec, spec.output, spec.name, job.shards)
    teachers_at_start(run.place, job.identities)  # records those of a new run
    require_same_targets(store.path, run.place)
    layers = {name: facts.layers for name, facts in job.teachers.items()}
    study = Study(spec, store, job.shards["unlabelled"], layers)
    clips = to_table([*labelled["labelled"], *labelled.get("test", [])], Example)
    with tracking.tracked(spec.track, spec.model_dump(mode="json"), run) as trackers:
        predictions = run_cells(study, splits, clips, run.place)
        result, place = write_study(spec, predictions, run, job.started)
        for row in result.students:
            trackers.log({f"test/{row.method}_uar": row.uar}, round(10_000 * row.label_share))
    return result, place


def require_cell_fits(spec: StudySpec, capacity: Capacity) -> None:
    """Check that some node has the CPUs that a cell reserves.

    Raises:
        CapacityError: No node has.
    """
    room = capacity.of(spec.resources.pools.students)
    most = max(node.amounts.get("CPU", 0.0) for node in room.nodes)
    if spec.study.cell_cpus > most:
        raise CapacityError(
            f"`study.cell_cpus` is {spec.study.cell_cpus:g}, but no node of {room.where} has "
            f"more than {most:g} CPUs: lower `study.cell_cpus`"
        )


def require_same_targets(store: str, run_place: str) -> None:
    """Check that a resumed study uses the same backbones as its finished cells.

    Raises:
        CheckpointError: It does not.
    """
    file, now = storage.join(run_place, "targets"), store.rpartition("/")[2]
    if not storage.exists(file):
        storage.write_bytes(file, now.encode())
    if (before := storage.read_bytes(file).decode()) != now:
        raise CheckpointError(
            f"the study {run_place} was started with other backbones, or other settings of them "
            f"(fingerprint in the target store: {before} then, {now} now): restore those, or give "
            "another `name`"
        )


# ---------------------------------------------------------------- cells


def run_cells(
    study: Study, splits: Mapping[Cell, CellSplit], clips: pa.Table, run_place: str
) -> dict[Cell, CellPredictions]:
    """Run all cells that the run's folder has no predictions of, as Ray tasks.

    Args:
        study: Spec, target store and shards.
        splits: The split of every cell.
        clips: All labelled clips.
        run_place: The run's folder.

    Returns:
        The predictions of all cells, those finished earlier included.

    Raises:
        LiserError: A cell failed.
    """
    predictions = {
        cell: stored
        for cell in splits
        if (stored := _read_predictions(run_place, cell)) is not None
    }
    left = [cell for cell in splits if cell not in predictions]
    axes = study.spec.study
    output.print(
        f"running {len(left)} of {len(splits)} cells (one for each label share, fold and seed), "
        f"each with {len(axes.methods)} methods"
    )
    study_ref, clips_ref = ray.put(study), ray.put(clips)
    selector = pool_selector(study.spec.resources.pools.students)
    remote = ray.remote(num_cpus=axes.cell_cpus, label_selector=selector)(_run_cell)
    running = {}
    for cell in left:
        task = remote.options(memory=estimate_memory(splits[cell], clips))
        running[task.remote(study_ref, cell, splits[cell], clips_ref)] = cell
    while running:
        finished, _ = ray.wait(list(running))
        cell = running.pop(finished[0])
        try:
            predictions[cell], seconds = ray.get(finished[0])
        except ray.exceptions.RayError as error:
            raise unwrap_ray_error(error) from error
        storage.write_table(_cell_file(run_place, cell), _to_table(predictions[cell]))
        progress = f"{len(predictions)}/{len(splits)} cells"
        _print_cell(study.spec, cell, predictions[cell], progress, seconds)
    return predictions


def estimate_memory(split: CellSplit, clips: pa.Table) -> float:
    """Return the bytes that a cell needs, but at most the memory of the largest node.

    A cell holds its clips three times (rows of the table, records, and embeddings as float32), and
    torch with the students.
    """
    share = (len(split.train) + len(split.test)) / max(1, clips.num_rows)
    most = max(node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"])
    return float(min(CELL_BYTES + 3 * share * clips.nbytes, most))


def _run_cell(
    study: Study, cell: Cell, split: CellSplit, clips: pa.Table
) -> tuple[CellPredictions, float]:
    """Run one cell in a Ray task; returns its predictions and the seconds it took."""
    import torch

    started = time.monotonic()
    torch.set_num_threads(max(1, int(study.spec.study.cell_cpus)))
    train, test = (to_examples(clips.take(rows)) for rows in (split.train, split.test))
    return run_cell(study, cell, train, test), time.monotonic() - started


def _print_cell(
    spec: StudySpec, cell: Cell, predictions: CellPredictions, progress: str, seconds: float
) -> None:
    rows = study_report.score_cells(spec.study.corpus, {cell: predictions.students})
    scores = " · ".join(f"{study_report.method_title(row.method)} {row.uar:.0%}" for row in rows)
    fold = "" if spec.study.folds is None else f", fold {cell.fold}"
    output.print(
        f"{progress} · {100 * cell.label_share:g} % of the labels{fold}, seed {cell.seed}: UAR "
        f"{scores} · {seconds:.0f} s"
    )


# ---------------------------------------------------------------- stored predictions


def _cell_file(run_place: str, cell: Cell) -> str:
    return storage.join(run_place, "cells", f"{cell.name}.parquet")


def _to_table(predictions: CellPredictions) -> pa.Table:
    """Return a table with one row per clip and student or teacher."""
    return pa.Table.from_pylist(
        [
            {"who": role, "method": of_method.method, "key": key, "speaker": speaker,
             "label": int(label), "logits": logits.tolist()}
            for role, methods in predictions._asdict().items()
            for of_method in methods
            for key, speaker, label, logits in zip(
                of_method.keys, of_method.speakers, of_method.labels, of_method.logits, strict=True
            )
        ]
    )  # fmt: skip


def _read_predictions(run_place: str, cell: Cell) -> CellPredictions | None:
    """Return the stored predictions of a cell; None if it has not finished."""
    file = _cell_file(run_place, cell)
    if not storage.exists(file):
        return None
    table = pq.read_table(io.BytesIO(storage.read_bytes(file)))
    return CellPredictions(*(list(_split_methods(table, role)) for role in CellPredictions._fields))


def _split_methods(table: pa.Table, role: str) -> Iterator[MethodPredictions]:
    of_role = table.filter(pa.compute.equal(table["who"], role))
    for method in dict.fromkeys(of_role["method"].to_pylist()):
        rows = of_role.filter(pa.compute.equal(of_role["method"], method))
        yield MethodPredictions(
            method,
            rows["key"].to_pylist(),
            rows["speaker"].to_pylist(),
            rows["label"].to_numpy(),
            np.array(rows["logits"].to_pylist(), np.float32),
        )


# ---------------------------------------------------------------- result


def write_study(
    spec: StudySpec, predictions: Mapping[Cell, CellPredictions], run: Run, started: float
) -> tuple[StudyResult, str]:
    """Write `study.parquet`, `teachers.parquet`, `study.png` and, last, `result.json`.

    Returns:
        The result, and the path of `result.json`.
    """
    students = {cell: of_cell.students for cell, of_cell in predictions.items()}
    teachers = {cell: of_cell.teachers for cell, of_cell in predictions.items()}
    axes, emotions = spec.study, len(spec.emotions)
    resampled = study_report.Resampled(axes, emotions, students)
    result = StudyResult(
        name=spec.name,
        corpus=axes.corpus,
        cells=len(predictions),
        test_speakers=resampled.speakers,
        students=resampled.summarise(),
        teachers=study_report.Resampled(axes, emotions, teachers).summarise(),
        gains=study_report.compare_methods(axes, resampled),
        chance=study_report.chance_level(students),
        seconds=time.time() - started,
        spec_hash=spec.spec_hash,
    )
    for name, methods in (("study", students), ("teachers", teachers)):
        rows = [row.model_dump() for row in study_report.score_cells(axes.corpus, methods)]
        storage.write_table(storage.join(run.place, f"{name}.parquet"), pa.Table.from_pylist(rows))
    with tempfile.TemporaryDirectory() as folder:
        chart = Path(folder, "study.png")
        study_report.draw_study(result, chart)
        storage.write_bytes(storage.join(run.place, chart.name), chart.read_bytes())
    place = storage.join(run.place, RESULT)
    storage.write_bytes(place, result.model_dump_json(indent=1).encode())
    return result, place

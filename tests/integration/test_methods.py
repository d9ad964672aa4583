"""The method on a real Ray: a study, a teacher trained on few labels, and both evaluated."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from liser_dist.data.shards import write_shards
from tests.films import small_film
from tests.hub_models import save
from tests.integration.conftest import ROOT, SMALL, Finished, merged

EMOTIONS = ("sad", "happy", "angry")
Run = Callable[..., Finished]


@pytest.fixture
def run(ray_cluster: dict[str, str], tmp_path: Path) -> Run:
    def run(name: str, spec: dict[str, Any]) -> Finished:
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(spec | {"name": name, "output": str(tmp_path / "runs")}))
        command = [sys.executable, ROOT / "jobs" / f"{name}.py", file]
        return Finished(
            subprocess.run(
                command, env=ray_cluster, capture_output=True, text=True, timeout=300, check=False
            )
        )

    return run


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> str:
    """24 labelled clips of four speakers, whose whole pictures are taken for faces."""
    place = tmp_path_factory.mktemp("people")
    samples = (
        (
            f"{who}-{emotion}-{take}",
            small_film(100 * number + 10 * n + take),
            {
                "emotion": emotion,
                "speaker": who,
                "intensity": "high" if take else "low",
                "faces": [[0.0, 0, 0, 48, 48]],
            },
        )
        for number, who in enumerate(("ann", "bob", "cas", "dan"))
        for n, emotion in enumerate(EMOTIONS)
        for take in range(2)
    )
    write_shards(samples, str(place), clips_per_shard=8)
    return str(place)


def study_spec(people: str, clips: Path, tmp_path: Path) -> dict[str, Any]:
    folds = tmp_path / "folds.yaml"
    folds.write_text("1: [ann, bob]\n2: [cas, dan]\n")
    models = {name: save(name, tmp_path / name) for name in ("wavlm-encoder", "vit-encoder")}
    return merged(
        SMALL,
        {
            "emotions": list(EMOTIONS),
            "data": {"unlabelled": str(clips), "labelled": people},
            "teachers": {
                "speech": {"kind": "backbone", "model": str(models["wavlm-encoder"])},
                "face": {"kind": "backbone", "model": str(models["vit-encoder"])},
            },
            "loss": {"embedding": 1.0},
            "targets": {"store": str(tmp_path / "store")},
            "study": {
                "corpus": "people", "label_shares": [0.1], "seeds": [0], "folds": str(folds),
                "resamples": 50,
            },
        },
    )  # fmt: skip


@pytest.mark.long
def test_a_study_is_scored_by_fold_and_goes_on_where_it_ended(
    run: Run, people: str, clips: Path, tmp_path: Path
) -> None:
    spec = study_spec(people, clips, tmp_path)
    first = run("study", spec)
    assert first.code == 0, first.err
    assert "both embeddings" in first.out
    table = pq.read_table(first.place / "study.parquet")
    assert table.column_names == [
        "corpus", "method", "label_share", "fold", "seed", "uar", "war", "macro_f1",
    ]  # fmt: skip
    assert table.num_rows == 6 * 2
    assert (first.place / "study.png").stat().st_size > 10_000
    cells = sorted((first.place / "cells").iterdir())
    tested = [set(pq.read_table(cell)["speaker"].to_pylist()) for cell in cells]
    assert tested == [{"ann", "bob"}, {"cas", "dan"}]

    (first.place / "result.json").unlink()
    cells[0].unlink()
    kept = cells[1].stat().st_mtime_ns
    second = run("study", spec)
    assert second.code == 0, second.err
    assert second.place == first.place
    assert "running 1 of 2 cells" in second.out
    assert cells[1].stat().st_mtime_ns == kept
    assert pq.read_table(second.place / "study.parquet").equals(table)


@pytest.mark.long
def test_a_teacher_that_two_workers_trained_is_the_one_that_jobs_load(
    run: Run, people: str, tmp_path: Path
) -> None:
    common = {name: SMALL[name] for name in ("clip", "resources")} | {"emotions": list(EMOTIONS)}
    folder = save("wav2vec2-encoder", tmp_path / "backbone")
    trained = run(
        "train_teacher",
        common
        | {
            "backbone": str(folder),
            "data": {"labelled": people, "validation_share": 0.5},
            "tune": {"layers": 1, "epochs": 2, "learning_rate": 1e-3},
            "workers": 2,
        },
    )
    assert trained.code == 0, trained.err
    result = trained.result
    assert (result["labelled_clips"], result["validation"]["clips"]) == (12, 12)
    assert len(result["layer_shares"]) == 3
    evaluated = run(
        "evaluate",
        common
        | {
            "data": {"labelled": people},
            "model": {"kind": "huggingface", "model": result["teacher"]},
            "batch_size": 8,
        },
    )
    assert evaluated.code == 0, evaluated.err
    found = evaluated.result
    assert found["clips"] == 24
    assert set(found["by_intensity"]) == {"high", "low"}
    rows = pq.read_table(trained.place / "answers.parquet").to_pylist()
    unseen = {row["key"].partition("-")[0] for row in rows}
    recalls = [found["by_speaker"][name] for name in unseen]
    right = sum(EMOTIONS[int(np.argmax(row["shares"]))] == row["emotion"] for row in rows)
    assert right == round(sum(one["war"] * one["clips"] for one in recalls))


def test_labels_that_no_teacher_can_learn_from_are_told_without_a_traceback(
    run: Run, people: str, tmp_path: Path
) -> None:
    refused = run(
        "train_teacher",
        {name: SMALL[name] for name in ("clip", "resources")}
        | {
            "emotions": ["bored", "tired"],
            "backbone": str(save("wavlm-encoder", tmp_path / "backbone")),
            "data": {"labelled": people},
        },
    )
    assert refused.code == 2
    assert "emotion 'happy' is not one of the job's `emotions` (8)" in refused.err
    assert "Traceback" not in refused.err

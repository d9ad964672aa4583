"""Predictions are stored as probabilities that say what they are; older files are read as well."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import softmax

from liser_dist.records import Example
from liser_dist.runs.predictions import PREDICTIONS_FILE, Predictions, probabilities_of

EMOTIONS = ("sad", "happy", "angry")
LOGITS = {  # as the student and a teacher give them: of which the second has log-probabilities
    "distilled": np.array([[3.0, -1.0, 0.5], [0.0, 0.0, 2.0]], np.float32),
    "face_teacher": np.array(
        [[np.log(0.6), np.log(0.1), -np.inf], [np.nan, np.nan, -np.inf]], np.float32
    ),
}
CLIPS = [
    Example(key=f"k{n}", shard="s", index=n, epoch=0, emotion=EMOTIONS[n], speaker="ann")
    for n in range(2)
]


def written(run: Path) -> pa.Table:
    predictions = {name: probabilities_of(logits) for name, logits in LOGITS.items()}
    Predictions(CLIPS, EMOTIONS, predictions).write(str(run))
    return pq.read_table(run / PREDICTIONS_FILE)


def test_the_file_holds_probabilities_and_names_the_emotions_in_their_order(tmp_path: Path) -> None:
    table = written(tmp_path)
    metadata = table.schema.metadata
    assert json.loads(metadata[b"emotions"]) == list(EMOTIONS)
    assert metadata[b"values"].startswith(b"probabilities of the emotions")
    rows = np.array([table[name].to_pylist() for name in LOGITS])
    sums = rows.sum(axis=2)
    np.testing.assert_allclose(sums[~np.isnan(sums)], 1)
    np.testing.assert_allclose(rows[1, 0], [6 / 7, 1 / 7, 0], rtol=1e-6)
    assert np.isnan(rows[1, 1]).all()


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written(tmp_path)
    read = Predictions.read(str(tmp_path), ("of", "the", "spec"))
    assert read is not None
    assert read.emotions == list(EMOTIONS)
    assert [clip.key for clip in read.clips] == ["k0", "k1"]
    for name, logits in LOGITS.items():
        np.testing.assert_array_equal(read.probabilities[name], probabilities_of(logits))
    clips, probabilities = read.of("face_teacher")
    assert ([clip.key for clip in clips], probabilities.shape) == (["k0"], (1, 3))


def test_a_file_of_an_earlier_version_which_holds_logits_gives_the_same(tmp_path: Path) -> None:
    table = written(tmp_path)
    for name, logits in LOGITS.items():
        column = table.column_names.index(name)
        table = table.set_column(column, name, pa.array(list(logits)))
    pq.write_table(table.replace_schema_metadata(None), tmp_path / PREDICTIONS_FILE)
    read = Predictions.read(str(tmp_path), EMOTIONS)
    assert read is not None
    assert read.emotions == EMOTIONS
    for name, logits in LOGITS.items():
        np.testing.assert_array_equal(read.probabilities[name], probabilities_of(logits))


def test_the_likeliest_emotion_is_that_of_the_logits() -> None:
    logits = np.random.default_rng(0).standard_normal((5000, 6)).astype(np.float32)
    near = np.nextafter(logits[:, 0], np.float32(9))  # the next larger number
    logits[:, 1] = near
    probabilities = probabilities_of(logits)
    assert (probabilities.argmax(axis=1) == logits.argmax(axis=1)).all()
    np.testing.assert_allclose(probabilities, softmax(logits, axis=1), rtol=1e-5)


def test_a_run_without_a_test_set_has_none(tmp_path: Path) -> None:
    assert Predictions.read(str(tmp_path), EMOTIONS) is None

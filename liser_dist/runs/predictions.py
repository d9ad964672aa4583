"""Stores what a run's models predict for labelled clips, in `answers.parquet`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.special import softmax

from liser_dist import storage
from liser_dist.records import Example, Row

PREDICTIONS_FILE = "answers.parquet"
_CLIP_COLUMNS = ("key", "shard", "index", "emotion", "speaker", "intensity")
# Keys of the schema's metadata. A file of an earlier version has none of them, and holds logits.
_EMOTIONS, _VALUES = b"emotions", b"values"
_MEANING = (
    "probabilities of the emotions, in the order of `emotions`; 0 for an emotion that the model "
    "does not know, NaN for a clip without input for it"
)
Probabilities = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Predictions:
    """The probabilities that several models give for the same labelled clips, a row per clip.

    Attributes:
        clips: The clips with their labels, without audio and faces.
        emotions: The emotions, in the order of the probabilities.
        probabilities: [clips, emotions] of each model, by name. NaN where the clip has no input for
            the model, 0 for emotions that it does not know.
    """

    clips: Sequence[Example]
    emotions: Sequence[str]
    probabilities: Mapping[str, Probabilities]

    def of(self, model: str) -> tuple[list[Example], Probabilities]:
        """Return the clips that a model predicted, and its probabilities for them."""
        probabilities = self.probabilities[model]
        rows = np.flatnonzero(~np.isnan(probabilities).any(axis=1))
        return [self.clips[row] for row in rows.tolist()], probabilities[rows]

    def write(self, run: str) -> None:
        """Write the predictions to the folder of a run.

        Raises:
            StorageError: They cannot be written.
        """
        table = pa.Table.from_pylist([_clip_row(clip) for clip in self.clips], schema=_CLIPS)
        for name, of_model in self.probabilities.items():
            table = table.append_column(name, pa.array(list(of_model)))
        storage.write_table(
            storage.join(run, PREDICTIONS_FILE), with_emotions(table, self.emotions)
        )

    @classmethod
    def read(cls, run: str, emotions: Sequence[str]) -> Self | None:
        """Read the predictions of a run.

        Args:
            run: The folder of the run.
            emotions: The emotions of the run's spec, for a file that does not name them.

        Returns:
            None if the run has none: it has no test set, or is not finished.
        """
        path = storage.join(run, PREDICTIONS_FILE)
        if not storage.exists(path):
            return None
        table = pq.read_table(io.BytesIO(storage.read_bytes(path)))
        clips = [Example(**row, epoch=0) for row in table.select(_CLIP_COLUMNS).to_pylist()]
        models = [name for name in table.column_names if name not in _CLIP_COLUMNS]
        values = {name: np.stack(table[name].to_numpy()) for name in models}
        metadata = table.schema.metadata or {}
        if _EMOTIONS in metadata:
            return cls(clips, json.loads(metadata[_EMOTIONS]), values)
        # A file of an earlier version: logits, in the order of the spec's emotions.
        return cls(clips, emotions, {name: probabilities_of(v) for name, v in values.items()})


def probabilities_of(logits: NDArray[np.floating[Any]]) -> Probabilities:
    """Return the probabilities [clips, emotions] of logits.

    They are computed in float64, so that equal probabilities come from equal logits only.
    """
    return np.asarray(softmax(logits.astype(np.float64), axis=1))


def with_emotions(table: pa.Table, emotions: Sequence[str]) -> pa.Table:
    """Return a table of probabilities with their meaning and order in the schema's metadata."""
    return table.replace_schema_metadata({_EMOTIONS: json.dumps(list(emotions)), _VALUES: _MEANING})


_CLIPS = pa.schema((name, pa.int64() if name == "index" else pa.string()) for name in _CLIP_COLUMNS)


def _clip_row(clip: Example) -> Row:
    row = clip.provenance() | clip.labels()
    return {name: row[name] for name in _CLIP_COLUMNS}

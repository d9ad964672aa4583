"""What each student and teacher said of a run's test clips: `answers.parquet`, a row a clip."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from liser_dist import storage
from liser_dist.records import Example

ANSWERS = "answers.parquet"
_OF_CLIP = ("key", "shard", "index", "emotion", "speaker", "intensity")
Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Answers:
    """Of clips, in one order.

    Attributes:
        clips: without sound and picture.
        logits: of each model [clips, emotions]; NaN where the clip showed it nothing, -inf for
            emotions that it does not know.
    """

    clips: Sequence[Example]
    logits: Mapping[str, Logits]

    def of(self, model: str) -> tuple[list[Example], Logits]:
        """The clips of which a model said something, and what."""
        logits = self.logits[model]
        said = np.flatnonzero(~np.isnan(logits).any(axis=1))
        return [self.clips[row] for row in said.tolist()], logits[said]

    def write(self, run: str) -> None:
        """Raises StorageError."""
        columns: dict[str, list[object]] = {
            name: [getattr(clip, name) for clip in self.clips] for name in _OF_CLIP
        }
        said = {name: pa.array(list(logits)) for name, logits in self.logits.items()}
        storage.write_table(storage.join(run, ANSWERS), pa.table(columns | said))

    @classmethod
    def read(cls, run: str) -> Self | None:
        """None where the run has none: no test set, or it is not finished."""
        place = storage.join(run, ANSWERS)
        if not storage.exists(place):
            return None
        table = pq.read_table(io.BytesIO(storage.read_bytes(place)))
        clips = [Example(**row, epoch=0) for row in table.select(_OF_CLIP).to_pylist()]
        models = [name for name in table.column_names if name not in _OF_CLIP]
        return cls(clips, {name: np.stack(table[name].to_numpy()) for name in models})

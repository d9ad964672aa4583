"""What the folder of a run holds, read for people: of one that is not finished, what there is."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liser_dist import storage
from liser_dist.answers import Answers
from liser_dist.committed import list_checkpoints, load_ledger, read_digests, read_file
from liser_dist.ledger import Ledger
from liser_dist.opinions import Opinions
from liser_dist.pictures import SECOND
from liser_dist.results import DistillResult, read_record
from liser_dist.runs import RESULT
from liser_dist.spec import DistillSpec

Curves = Mapping[str, NDArray[np.float64]]  # by name: [n, 2] steps and values


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Of one run.

    Attributes:
        result: None where it is not finished.
        checkpoint: the newest; None where there is none yet.
        label: how it is called on a page.
        versions: of its unlabelled shards, by their places.
    """

    place: str
    spec: DistillSpec
    result: DistillResult | None
    checkpoint: str | None
    ledger: Ledger
    opinions: Opinions
    answers: Answers | None
    curves: Curves
    label: str
    versions: Mapping[str, str]

    @property
    def reasons(self) -> Counter[str]:
        """Distinct unlabelled clips that no epoch trained."""
        return self.ledger.reasons()


def read_run(place: str, label: str) -> RunFacts:
    """Raises LiserError."""
    place = storage.resolve(place)
    spec = read_record(storage.join(place, "spec.json"), DistillSpec)
    shards = json.loads(storage.read_bytes(storage.join(place, "shards.json")))
    result = storage.join(place, RESULT)
    checkpoint = next(reversed(list_checkpoints(place)), None)
    opinions = Opinions([False] * len(spec.emotions))
    if checkpoint is not None:
        state = json.loads(read_file(checkpoint, "state.json", read_digests(checkpoint)))
        opinions = Opinions.from_json(state["opinions"]) if "opinions" in state else opinions
    return RunFacts(
        place=place,
        spec=spec,
        result=read_record(result, DistillResult) if storage.exists(result) else None,
        checkpoint=checkpoint,
        ledger=load_ledger(checkpoint) if checkpoint is not None else Ledger(),
        opinions=opinions,
        answers=Answers.read(place),
        curves=read_curves(storage.join(place, "tensorboard")),
        label=label,
        versions={one["place"]: one["version"] for one in shards.get("unlabelled", ())},
    )


def labels_of(places: Sequence[str]) -> list[str]:
    """NAME/NUMBER of each run, and more of its place where that does not tell them apart.

    The second is marked, as its curves are.
    """
    parts = [storage.resolve(place).rstrip("/").split("/") for place in places]
    longest = max(map(len, parts))
    enough = (n for n in range(2, longest) if len({tuple(p[-n:]) for p in parts}) == len(parts))
    shown = next(enough, longest)
    names = ["/".join(part[-shown:]) for part in parts]
    return [names[0], *(name + SECOND for name in names[1:])]


def read_curves(folder: str) -> Curves:
    """Of TensorBoard files; none where there are none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not storage.exists(folder):
        return {}
    with tempfile.TemporaryDirectory(prefix="liser-curves-") as copied:
        for file in storage.list_files(folder):
            name = file.place.rpartition("/")[2]
            Path(copied, name).write_bytes(storage.read_bytes(file.place))
        events: Any = EventAccumulator(copied, size_guidance={"scalars": 0})
        events.Reload()
        return {
            name: np.array([[event.step, event.value] for event in events.Scalars(name)])
            for name in events.Tags()["scalars"]
        }

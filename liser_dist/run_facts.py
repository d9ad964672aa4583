"""What the folder of a run holds, read for people: of one that is not finished, what there is."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
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
from liser_dist.results import DistillResult
from liser_dist.runs import RESULT
from liser_dist.spec import DistillSpec

Curves = Mapping[str, NDArray[np.float64]]  # by name: [n, 2] steps and values


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Of one run.

    Attributes:
        result: None where it is not finished.
        checkpoint: the newest; None where there is none yet.
    """

    place: str
    spec: DistillSpec
    result: DistillResult | None
    checkpoint: str | None
    ledger: Ledger
    opinions: Opinions
    answers: Answers | None
    curves: Curves

    @property
    def label(self) -> str:
        """NAME/NUMBER."""
        return "/".join(self.place.rstrip("/").split("/")[-2:])

    @property
    def reasons(self) -> Counter[str]:
        """Distinct unlabelled clips that no epoch trained."""
        return self.ledger.reasons()


def read_run(place: str) -> RunFacts:
    """Raises LiserError."""
    place = storage.resolve(place)
    spec = DistillSpec.model_validate_json(storage.read_bytes(storage.join(place, "spec.json")))
    result = storage.join(place, RESULT)
    checkpoint = next(reversed(list_checkpoints(place)), None)
    opinions = Opinions(len(spec.emotions))
    if checkpoint is not None:
        state = json.loads(read_file(checkpoint, "state.json", read_digests(checkpoint)))
        opinions = Opinions.from_json(state["opinions"]) if "opinions" in state else opinions
    return RunFacts(
        place=place,
        spec=spec,
        result=DistillResult.model_validate_json(storage.read_bytes(result))
        if storage.exists(result)
        else None,
        checkpoint=checkpoint,
        ledger=load_ledger(checkpoint) if checkpoint is not None else Ledger(),
        opinions=opinions,
        answers=Answers.read(place),
        curves=read_curves(storage.join(place, "tensorboard")),
    )


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

"""Reads a run's folder for a report; if the run is unfinished, reads what exists so far."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from liser_dist import storage
from liser_dist.config.base import first_mistake, without_removed
from liser_dist.config.distill import DistillSpec
from liser_dist.errors import CheckpointError
from liser_dist.plots import SECOND_RUN
from liser_dist.runs.checkpoint_files import (
    list_checkpoints,
    load_ledger,
    read_digests,
    read_verified,
)
from liser_dist.runs.curves import read_scalars
from liser_dist.runs.disagreement import DisagreementRecord
from liser_dist.runs.folder import RESULT
from liser_dist.runs.ledger import Ledger
from liser_dist.runs.predictions import Predictions
from liser_dist.runs.results import DistillResult, read_record

LoggedCurves = Mapping[str, NDArray[np.float64]]  # by name: [n, 2] steps and values


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """Everything a report shows of one run.

    Attributes:
        place: Path or URI of the run's folder.
        spec: Spec of the run.
        settings: The content of the spec, with settings that were removed since the run.
        result: Result of the run; None if it is not finished.
        checkpoint: Path of the newest checkpoint; None if there is none yet.
        ledger: Accounting of the unlabelled clips in the checkpoint.
        disagreement: How often, and on which clips, the teachers disagree.
        predictions: What each model predicted on the test clips; None if that was not stored.
        curves: Curves logged for TensorBoard.
        label: Name of the run on the page.
        versions: Versions of the unlabelled shards when the run began, by path.
    """

    place: str
    spec: DistillSpec
    settings: Mapping[str, Any]
    result: DistillResult | None
    checkpoint: str | None
    ledger: Ledger
    disagreement: DisagreementRecord
    predictions: Predictions | None
    curves: LoggedCurves
    label: str
    versions: Mapping[str, str]

    @property
    def reasons(self) -> Counter[str]:
        """Rejection reasons of the distinct unlabelled clips that no epoch trained."""
        return self.ledger.reasons()


def read_run(place: str, label: str) -> RunData:
    """Read a run's folder.

    Raises:
        CheckpointError: A file was written by another version, or is damaged.
        StorageError: A file cannot be read.
    """
    place = storage.resolve(place)
    spec, settings = _read_spec(storage.join(place, "spec.json"))
    shards = json.loads(storage.read_bytes(storage.join(place, "shards.json")))
    result = storage.join(place, RESULT)
    checkpoint = next(reversed(list_checkpoints(place)), None)
    disagreement = DisagreementRecord([False] * len(spec.emotions))
    if checkpoint is not None:
        state = json.loads(read_verified(checkpoint, "state.json", read_digests(checkpoint)))
        if "opinions" in state:
            disagreement = DisagreementRecord.from_json(state["opinions"])
    return RunData(
        place=place,
        spec=spec,
        settings=settings,
        result=read_record(result, DistillResult) if storage.exists(result) else None,
        checkpoint=checkpoint,
        ledger=load_ledger(checkpoint) if checkpoint is not None else Ledger(),
        disagreement=disagreement,
        predictions=Predictions.read(place, spec.emotions),
        curves={name: scalars[:, 1:] for name, scalars in read_scalars(place).items()},
        label=label,
        versions={shard["place"]: shard["version"] for shard in shards.get("unlabelled", ())},
    )


def _read_spec(path: str) -> tuple[DistillSpec, dict[str, Any]]:
    """Return the spec of a run, and its content with the settings that were removed since."""
    known, removed = without_removed(DistillSpec, json.loads(storage.read_bytes(path)))
    try:
        spec = DistillSpec.model_validate(known)
    except ValidationError as error:
        raise CheckpointError(
            f"{path} was written by another version of liser_dist ({first_mistake(error)}) and "
            "cannot be read by this one: install the version that wrote it, or run the job again"
        ) from error
    settings: dict[str, Any] = spec.model_dump(mode="json")
    for name, value in removed.items():
        *sections, field = name.split(".")
        target = settings
        for section in sections:
            target = target[section]
        target[field] = value
    return spec, settings


def label_runs(places: Sequence[str]) -> list[str]:
    """Return NAME/NUMBER of each run, with more parent folders where that is ambiguous.

    The label of the second run ends with SECOND_RUN, like the names of its curves.
    """
    parts = [storage.resolve(place).rstrip("/").split("/") for place in places]
    longest = max(map(len, parts))
    unique = (n for n in range(2, longest) if len({tuple(p[-n:]) for p in parts}) == len(parts))
    length = next(unique, longest)
    names = ["/".join(part[-length:]) for part in parts]
    return [names[0], *(name + SECOND_RUN for name in names[1:])]

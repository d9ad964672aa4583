"""The folder of a run: OUTPUT/NAME/001, then 002, and which of them a job goes on with.

    spec.json            the job's resolved spec
    shards.json          the shards of each set as they were when the run began
    mark                 a name that no other run has
    checkpoints/  rejections/  tensorboard/  training.json
    result.json          written last: without it the run is not finished, and the job goes on

A job goes on with the newest run under its name, unless that is finished.
"""

from __future__ import annotations

import fcntl
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from liser_dist import storage
from liser_dist.errors import CheckpointError, StorageError
from liser_dist.fields import Spec, differences, fingerprint
from liser_dist.shards import Shard
from liser_dist.spec import DistillSpec

logger = logging.getLogger(__name__)

RESULT = "result.json"
MARK = "mark"
# What a run may be gone on with otherwise than it was begun.
CHANGEABLE = (
    "output",
    "resources",
    "budget",
    "track",
    "targets.store",
    "train.workers",
    "train.resize_every_s",
    "train.max_failures",
    "train.checkpoint_every",
    "train.checkpoint_every_s",
    "train.keep",
    "study.cell_cpus",
    "study.resamples",
)
Sets = Mapping[str, Sequence[Shard]]  # by name: unlabelled, labelled, validation, test


@dataclass(frozen=True, slots=True)
class Run:
    place: str
    mark: str  # no other run has it, one of the same place neither
    shards: Sets  # as they were when the run began
    goes_on: bool
    lock: IO[str] | None  # held as long as the job runs; on disk only


def open_run(spec: DistillSpec, shards: Sets) -> Run:
    """The unfinished run that the job goes on with, else a new one. Raises as `unfinished_run`."""
    return unfinished_run(spec, shards) or begin_run(spec, shards)


def unfinished_run(spec: DistillSpec, shards: Sets) -> Run | None:
    """The newest run under the job's name, if it is not finished.

    Raises:
        CheckpointError: it is another job's, or another job is at work on it, or its shards were
            replaced.
    """
    folder = storage.join(spec.output, spec.name)
    places = (storage.join(folder, f"{n:03d}") for n in sorted(_numbers(folder), reverse=True))
    newest = next((p for p in places if storage.exists(storage.join(p, "shards.json"))), None)
    if newest is None or storage.exists(storage.join(newest, RESULT)):
        return None
    lock = _lock(newest)
    _require_same_spec(newest, spec)
    return Run(newest, _mark_of(newest), _same_shards(newest, shards), True, lock)


def begin_run(spec: DistillSpec, shards: Sets) -> Run:
    """A new run, with a number of its own."""
    place = _claim(spec.output, spec.name)
    lock = _lock(place)
    found = {name: [asdict(shard) for shard in of_set] for name, of_set in shards.items()}
    _write_json(storage.join(place, "spec.json"), spec.model_dump(mode="json"))
    mark = uuid.uuid4().hex
    storage.write_bytes(storage.join(place, MARK), mark.encode())
    _write_json(storage.join(place, "shards.json"), found)
    return Run(place, mark, shards, False, lock)


def _mark_of(place: str) -> str:
    """Of an earlier version's run, which has none, its place."""
    file = storage.join(place, MARK)
    return storage.read_bytes(file).decode() if storage.exists(file) else fingerprint(place)


def new_run(spec: Spec, output: str, name: str) -> str:
    """The place of a run that nothing goes on with: it is short."""
    place = _claim(output, name)
    _write_json(storage.join(place, "spec.json"), spec.model_dump(mode="json"))
    return place


def _numbers(folder: str) -> list[int]:
    return [int(entry) for entry in storage.list_folders(folder) if entry.isdigit()]


def _claim(output: str, name: str) -> str:
    folder = storage.join(output, name)
    for number in count(max(_numbers(folder), default=0) + 1):
        place = storage.join(folder, f"{number:03d}")
        if storage.claim(place):
            return place  # else another job was faster
    raise AssertionError


def _write_json(place: str, content: Any) -> None:
    storage.write_bytes(place, json.dumps(content, indent=1).encode())


def _read_json(place: str) -> Any:
    return json.loads(storage.read_bytes(place))


def _lock(place: str) -> IO[str] | None:
    """Raises CheckpointError when another job has the run; the kernel lets go with the process."""
    if storage.is_remote(place):
        return None
    try:
        file = Path(place, ".lock").open("w")  # noqa: SIM115 (held until the process ends)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CheckpointError(
            f"another job is at work on the run {place}: wait for it, or give another `name`"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot lock {place}: {error}; check the disk of `output`") from error
    return file


def _require_same_spec(place: str, spec: DistillSpec) -> None:
    theirs = _read_json(storage.join(place, "spec.json"))
    with suppress(ValidationError):  # an earlier version's lacks what came later: its defaults
        theirs = type(spec).model_validate(theirs).model_dump(mode="json")
    ours = json.loads(spec.model_dump_json())
    found = [text for field, text in differences(theirs, ours) if not _is_changeable(field)]
    if found:
        raise CheckpointError(
            f"the unfinished run {place} was begun by another spec: {'; '.join(found)}; make "
            "them the same to go on with it, or give another `name`, or remove the folder"
        )


def _is_changeable(field: str) -> bool:
    return any(field == known or field.startswith(f"{known}.") for known in CHANGEABLE)


def _same_shards(place: str, found: Sets) -> Sets:
    """The shards with which the run began. Those that came later are left to a later run."""
    begun = {
        name: [Shard(**shard) for shard in shards]
        for name, shards in _read_json(storage.join(place, "shards.json")).items()
    }
    for name, shards in begun.items():
        now = {shard.place: shard.version for shard in found.get(name, ())}
        for shard in shards:
            if now.get(shard.place) != shard.version:
                what = "was replaced" if shard.place in now else "is no longer there"
                raise CheckpointError(
                    f"`data.{name}`: the shard {shard.place} {what} since the run {place} began; "
                    "put it back to go on, or give another `name` to begin anew"
                )
        if later := len(now) - len(shards):
            logger.warning("data.%s: %d shards came after the run began: not in it", name, later)
    return begun

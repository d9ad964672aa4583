"""Creates the folder of a run, OUTPUT/NAME/001, then 002, or finds the one that a job resumes.

    jobs/001             claimed by the job that started the run; 002 by the first that resumed it
    spec.json            the job's resolved spec
    shards.json          the shards of each set when the run started
    teachers.json        the teachers' weights when the run started
    mark                 an identifier that no other run has
    attempts/  checkpoints/  rejections/  tensorboard/  training.json
    result.json          written last: a run without it is unfinished

A job resumes the newest run of its name; if that run is finished, it starts a new one. It writes
nothing before it has claimed the run: of two jobs that claim the same run at the same time, one is
refused and has changed nothing. A run on disk is also locked until its job ends. S3 has no such
lock: there a job is refused only if another one claimed the run in the last 10 s, and two jobs on
different clusters that start at different times are not kept apart.
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

from pydantic import TypeAdapter, ValidationError

from liser_dist import storage
from liser_dist.config.base import (
    Spec,
    differences,
    fingerprint,
    may_change_on_resume,
    without_removed,
)
from liser_dist.config.distill import DistillSpec
from liser_dist.config.teachers import TeacherIdentity
from liser_dist.data.shard_list import Shard
from liser_dist.errors import CheckpointError, StorageError

logger = logging.getLogger(__name__)

RESULT = "result.json"
_SPEC, _SHARDS, TEACHERS, _MARK, _JOBS = (
    "spec.json", "shards.json", "teachers.json", "mark", "jobs",
)  # fmt: skip
_IDENTITIES = TypeAdapter(dict[str, TeacherIdentity])
_JUST_CLAIMED_S = 10.0
ShardSets = Mapping[str, Sequence[Shard]]  # by name: unlabelled, labelled, validation, test


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of a run, opened for writing by a job."""

    place: str
    mark: str  # an identifier that no other run has, not even a later one in the same folder
    shards: ShardSets  # as they were when the run started
    resumed: bool
    lock: IO[str] | None  # held until the job's process ends; None for a run on S3


def open_run(spec: DistillSpec, shards: ShardSets) -> Run:
    """Return the unfinished run that the job resumes, or a new one.

    Raises:
        CheckpointError: as `find_unfinished_run`.
    """
    # One listing for both, as another job may start a run between two.
    numbers = _numbers(storage.join(spec.output, spec.name))
    run = _resume(spec, shards, numbers)
    return run or _start(spec, spec.output, spec.name, shards, numbers)


def find_unfinished_run(spec: DistillSpec, shards: ShardSets) -> Run | None:
    """Return the newest run of the job's name if it is unfinished, and lock it.

    Raises:
        CheckpointError: the run was started with another spec, another job is writing to it, or
            its shards were replaced.
    """
    return _resume(spec, shards, _numbers(storage.join(spec.output, spec.name)))


def _resume(spec: DistillSpec, shards: ShardSets, numbers: Sequence[int]) -> Run | None:
    folder = storage.join(spec.output, spec.name)
    places = (storage.join(folder, f"{number:03d}") for number in sorted(numbers, reverse=True))
    for newest in places:
        if storage.exists(storage.join(newest, _SHARDS)):
            break
        if not storage.exists(storage.join(newest, RESULT)):  # else a short run's
            _require_settled(newest)
    else:
        return None
    if storage.exists(storage.join(newest, RESULT)):
        return None
    lock = _lock(newest)
    _require_same_spec(newest, spec)
    at_start = _shards_at_start(newest, shards)
    _claim_next_job(newest)
    return Run(newest, _mark_of(newest), at_start, True, lock)


def start_run(spec: Spec, output: str, name: str, shards: ShardSets) -> Run:
    """Create the folder of a new run, and lock it.

    Raises:
        CheckpointError: another job started it at the same time.
    """
    return _start(spec, output, name, shards, _numbers(storage.join(output, name)))


def _start(spec: Spec, output: str, name: str, shards: ShardSets, numbers: Sequence[int]) -> Run:
    place = _claim(output, name, numbers, alone=True)
    lock = _lock(place)
    content = {name: [asdict(shard) for shard in of_set] for name, of_set in shards.items()}
    _write_json(storage.join(place, _SPEC), spec.model_dump(mode="json"))
    mark = uuid.uuid4().hex
    storage.write_bytes(storage.join(place, _MARK), mark.encode())
    _write_json(storage.join(place, _SHARDS), content)
    return Run(place, mark, shards, False, lock)


def start_short_run(spec: Spec, output: str, name: str) -> str:
    """Create the folder of a run that is never resumed, and return its path."""
    place = _claim(output, name, _numbers(storage.join(output, name)), alone=False)
    _write_json(storage.join(place, _SPEC), spec.model_dump(mode="json"))
    return place


def _mark_of(place: str) -> str:
    """Return a run's mark. Runs of an earlier version have none: their path stands for it."""
    file = storage.join(place, _MARK)
    return storage.read_bytes(file).decode() if storage.exists(file) else fingerprint(place)


def _numbers(folder: str) -> list[int]:
    return [int(entry) for entry in storage.list_folders(folder) if entry.isdigit()]


def _claim(output: str, name: str, numbers: Sequence[int], alone: bool) -> str:
    """Create the folder of the next run of a name, and return its path.

    Args:
        output: The folder of all runs.
        name: The name of the run.
        numbers: Those of the runs so far.
        alone: Raise CheckpointError if another job claims the same run at the same time; else
            take the number after it.
    """
    folder = storage.join(output, name)
    for number in count(max(numbers, default=0) + 1):
        place = storage.join(folder, f"{number:03d}")
        if not storage.exists(place) and storage.claim(_job(place, 1)):
            return place
        if alone and number in _numbers(folder):  # otherwise it is a file
            raise _claimed_by_another(place)
    raise AssertionError


def _claim_next_job(place: str) -> None:
    """Claim a run for the job that resumes it.

    Raises:
        CheckpointError: another job has done so at the same time or a moment ago.
    """
    last = _last_job(place)
    if last and storage.is_remote(place):  # on disk the lock says more
        _require_older(_job(place, last), place)
    if not storage.claim(_job(place, last + 1)):
        raise _claimed_by_another(place)


def _require_settled(place: str) -> None:
    """Raise CheckpointError if another job has claimed a run a moment ago."""
    if last := _last_job(place):
        _require_older(_job(place, last), place)
    elif not storage.is_remote(place):  # the folder is created just before the claim
        _require_older(place, place)


def _require_older(claim: str, place: str) -> None:
    if storage.age_s(claim) < _JUST_CLAIMED_S:
        raise _claimed_by_another(place)


def _job(place: str, number: int) -> str:
    return storage.join(place, _JOBS, f"{number:03d}")


def _last_job(place: str) -> int:
    """Return the number of the last job that claimed the run; 0 for an earlier version's."""
    folder = storage.join(place, _JOBS)
    files = storage.list_files(folder) if storage.exists(folder) else []
    names = [file.place.rpartition("/")[2] for file in files]
    return max((int(name) for name in names if name.isdigit()), default=0)


def _claimed_by_another(place: str) -> CheckpointError:
    return CheckpointError(
        f"another job has just started the run {place}: wait for it to end, or give another "
        f"`name`; if it has ended, try again in {_JUST_CLAIMED_S:g} s"
    )


def _write_json(place: str, content: Any) -> None:
    storage.write_bytes(place, json.dumps(content, indent=1).encode())


def _read_json(place: str) -> Any:
    return json.loads(storage.read_bytes(place))


def _lock(place: str) -> IO[str] | None:
    """Lock a run on disk until this process ends, when the kernel releases the lock.

    Raises:
        CheckpointError: another job holds the lock.
    """
    if storage.is_remote(place):
        return None
    try:
        file = Path(place, ".lock").open("w")  # noqa: SIM115 (held until the process ends)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CheckpointError(
            f"another job is writing to the run {place}: wait for it to end, or give another `name`"
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot lock the run {place}: {error}; check that the disk of `output` "
            "is writable and not full"
        ) from error
    return file


def _require_same_spec(place: str, spec: Spec) -> None:
    """Raise CheckpointError unless the run's saved spec differs in resumable fields alone.

    Fields that an earlier version did not have are compared by their defaults.
    """
    kind, current = type(spec), json.loads(spec.model_dump_json())
    saved, removed = without_removed(kind, _read_json(storage.join(place, _SPEC)))
    with suppress(ValidationError):
        saved = kind.model_validate(saved).model_dump(mode="json")
    changed = [
        f"`{field}` was {before!r} and is now {now!r}"
        for field, before, now in differences(saved, current)
        if not may_change_on_resume(kind, field) and field not in removed
    ]
    lost = [
        f"`{field}: {value}`"
        for field, value in removed.items()
        if not may_change_on_resume(kind, field)
    ]
    if lost:
        raise CheckpointError(
            f"the unfinished run {place} was started with {', '.join(lost)}, which this version "
            "does not support: resume it with the version that started it, or give another `name`"
        )
    if changed:
        raise CheckpointError(
            f"the unfinished run {place} was started with another spec: {'; '.join(changed)}. Use "
            "the same values to resume it, or give another `name`, or remove the folder"
        )


def _shards_at_start(place: str, current: ShardSets) -> ShardSets:
    """Return the shards with which a run started. Later ones are left to another run.

    Raises:
        CheckpointError: one of them was replaced or removed since.
    """
    at_start = {
        name: [Shard(**shard) for shard in shards]
        for name, shards in _read_json(storage.join(place, _SHARDS)).items()
    }
    for name, shards in at_start.items():
        versions = {shard.place: shard.version for shard in current.get(name, ())}
        for shard in shards:
            if versions.get(shard.place) != shard.version:
                change = "was replaced" if shard.place in versions else "is no longer there"
                raise CheckpointError(
                    f"`data.{name}`: the shard {shard.place} {change} since the run {place} "
                    "started: put it back to resume, or give another `name` to start a new run"
                )
        if later := len(versions) - len(shards):
            logger.warning(
                "data.%s: %s added after the run started; this run does not use %s",
                name,
                "1 shard was" if later == 1 else f"{later} shards were",
                "it" if later == 1 else "them",
            )
    return at_start


def teachers_at_start(
    place: str, planned: Mapping[str, TeacherIdentity]
) -> dict[str, TeacherIdentity]:
    """Return the teachers with which a run started.

    A run that has no record of them, because it is new or of an earlier version, starts with those
    planned, and they are recorded. A run goes on with the commit of a hub model with which it
    started, whatever its branch is now.

    Args:
        place: The folder of the run.
        planned: The teachers as they are now, by name.

    Raises:
        CheckpointError: The files of a teacher were replaced since.
        StorageError: The record cannot be read or written.
    """
    file = storage.join(place, TEACHERS)
    if not storage.exists(file):
        storage.write_bytes(file, _IDENTITIES.dump_json(dict(planned), indent=1))
        return dict(planned)
    at_start = _IDENTITIES.validate_json(storage.read_bytes(file))
    for name, before in at_start.items():
        now = planned[name]
        if now.weights == before.weights:
            continue
        if now.commit is None or before.commit is None:
            raise CheckpointError(
                f"`teachers.{name}`: the model {now.model!r} has been replaced since the run "
                f"{place} started: {before.describe_change(now.weights)}"
            )
        logger.warning(
            "teachers.%s: %s is now at commit %s; this run keeps using %s, with which it started",
            name, now.model, now.commit, before.commit,
        )  # fmt: skip
    return at_start

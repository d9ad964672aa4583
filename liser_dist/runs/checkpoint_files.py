"""Reads, writes and removes the files of checkpoints, without loading torch.

The marker of a checkpoint holds the digests of its other files. It is written last: a folder
without it is not a checkpoint.

Each start of a run's train workers is an attempt, and attempts are numbered in order. The worker
with rank 0 writes the checkpoints. If a network failure cuts it off from the cluster, it may still
write to the run's folder after its successor has started. The names of checkpoints therefore hold
the number of the attempt, a checkpoint of a later attempt counts as newer, and no attempt removes
checkpoints of a later one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from liser_dist import storage
from liser_dist.config.base import first_mistake
from liser_dist.config.distill import DistillSpec
from liser_dist.errors import CheckpointError, MissingError, StorageError
from liser_dist.runs.ledger import Ledger

logger = logging.getLogger(__name__)

COMMITTED = "COMMITTED"
LEDGER = "ledger.json"
# step-00001200-a003, and with -2 at the end if the attempt saved that step before. Earlier versions
# wrote no attempt.
_NAME = re.compile(r"step-(\d{8,})(?:-a(\d+))?(?:-(\d+))?")
_T = TypeVar("_T")


class Position(NamedTuple):
    """Where a checkpoint stands among those of its run: that of a newer one is greater."""

    attempt: int  # 0 for those of earlier versions
    step: int
    copy: int  # from the second on that an attempt saves at the step


def position_of(path: str) -> Position | None:
    """Return the position of a checkpoint from its path; None if the name is not that of one."""
    match = _NAME.fullmatch(path.rstrip("/").rpartition("/")[2])
    if match is None:
        return None
    step, attempt, copy = match.groups(default="0")
    return Position(int(attempt), int(step), int(copy))


def _list_positions(run: str) -> dict[str, Position]:
    """Return the positions of a run's checkpoints by path, oldest first, committed or not.

    Other folders, such as those that a user made, are left out.
    """
    folder = storage.join(run, "checkpoints")
    paths = [storage.join(folder, name) for name in storage.list_folders(folder)]
    found = {path: position for path in paths if (position := position_of(path)) is not None}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def start_attempt(run: str) -> int:
    """Begin an attempt of the run, and return its number.

    Raises:
        StorageError: The run's folder cannot be read or written.
    """
    folder = storage.join(run, "attempts")
    begun: list[storage.StoredFile] = []
    if storage.exists(folder):
        begun = storage.list_files(folder, patience_s=storage.PATIENCE_S)
    names = [file.place.rpartition("/")[2] for file in begun]
    numbers = [int(name) for name in names if name.isdigit()]
    numbers += [position.attempt for position in _list_positions(run).values()]
    number = max(numbers, default=0) + 1
    while not storage.claim(storage.join(folder, f"{number:03d}")):
        number += 1
    return number


def new_checkpoint_path(run: str, step: int, attempt: int) -> str:
    """Return a path for a checkpoint of a step, at which no checkpoint has been committed."""
    first = path = storage.join(run, "checkpoints", f"step-{step:08d}-a{attempt:03d}")
    copy = 1
    while storage.exists(storage.join(path, COMMITTED)):
        copy += 1
        path = f"{first}-{copy}"
    return path


def write_checkpoint(path: str, files: Mapping[str, bytes]) -> None:
    """Write the files of a checkpoint, then commit it by writing the marker.

    Raises:
        StorageError: A file cannot be written.
    """
    for name, content in files.items():
        storage.write_bytes(storage.join(path, name), content)
    digests = {name: _digest(content) for name, content in files.items()}
    storage.write_bytes(storage.join(path, COMMITTED), json.dumps(digests, indent=1).encode())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_digests(path: str) -> dict[str, str]:
    """Return the digest of each file of a committed checkpoint.

    Raises:
        CheckpointError: There is no committed checkpoint at the path, or its marker is damaged.
    """
    try:
        digests: dict[str, str] = json.loads(_read(path, COMMITTED))
    except ValueError as error:
        raise CheckpointError(
            f"the checkpoint {path} is damaged: {COMMITTED} is not JSON; use another checkpoint"
        ) from error
    return digests


def read_verified(path: str, name: str, digests: Mapping[str, str]) -> bytes:
    """Return the content of a file of a checkpoint, checked against its digest.

    Raises:
        CheckpointError: The file is missing, or not as it was written.
    """
    content = _read(path, name)
    if _digest(content) != digests.get(name):
        raise CheckpointError(
            f"the checkpoint {path} is damaged: {name} does not match its digest; use another "
            "checkpoint"
        )
    return content


def _read(path: str, name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(path, name))
    except MissingError as error:
        raise CheckpointError(
            f"no complete checkpoint at {path}: {error}; give a folder such as "
            "runs/NAME/001/checkpoints/step-00001000-a001"
        ) from error


def list_checkpoints(run: str) -> list[str]:
    """Return the paths of a run's committed checkpoints, oldest first."""
    return [path for path in _list_positions(run) if storage.exists(storage.join(path, COMMITTED))]


def newest_checkpoint(run: str, load: Callable[[str], _T]) -> tuple[str, _T] | None:
    """Load the newest checkpoint of a run that can be used, with a warning for each that cannot.

    Args:
        run: The folder of the run.
        load: Loads what is wanted from the path of a checkpoint.

    Returns:
        The path and what `load` returned; None if the run has no checkpoint.

    Raises:
        CheckpointError: The run has checkpoints, and none of them can be used.
        StorageError: They cannot be reached, which does not mean that they are damaged.
    """
    paths = list_checkpoints(run)
    for path in reversed(paths):
        try:
            return path, load(path)
        except CheckpointError as error:
            logger.warning("%s. Trying the next older checkpoint", error)
    if paths:
        raise CheckpointError(
            f"every checkpoint of the run {run} is unusable (see the warnings above): "
            f"{', '.join(paths)}; restore one of them, or remove them all to train from the start"
        )
    return None


def is_intact(path: str) -> bool:
    """Return whether every file of a checkpoint matches its digest; log a warning otherwise.

    Raises:
        StorageError: The checkpoint cannot be reached.
    """
    try:
        load_ledger(path)
    except CheckpointError as error:
        logger.warning("the last checkpoint of a trained run cannot be used: %s", error)
        return False
    return True


def load_ledger(path: str) -> Ledger:
    """Return the ledger of a checkpoint, after checking all of its files.

    Raises:
        CheckpointError: There is no checkpoint, or a file of it is not as it was written.
    """
    digests = read_digests(path)
    files = {name: read_verified(path, name, digests) for name in digests}
    return parse_ledger(path, files[LEDGER])


def parse_ledger(path: str, content: bytes) -> Ledger:
    """Return the ledger in a checkpoint's ledger file.

    Raises:
        CheckpointError: Another version of this package wrote the ledger.
    """
    try:
        return Ledger.from_json(json.loads(content))
    except KeyError as error:
        raise CheckpointError(
            f"the checkpoint {path} was written by another version of liser_dist: its ledger has "
            f"no {error}; resume the run with that version, or start a new one under another `name`"
        ) from error


def remove_old(run: str, attempt: int, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what was never committed.

    Each checkpoint also holds the best weights so far, so none of those are lost. What a later
    attempt has written stays.
    """
    own = [p for p, position in _list_positions(run).items() if position.attempt <= attempt]
    committed = [path for path in own if storage.exists(storage.join(path, COMMITTED))]
    for path in own:
        if path not in committed[-keep:]:
            remove_quietly(path)


def remove_later(run: str, restored: str, attempt: int) -> None:
    """Remove the checkpoints after the one from which an attempt resumes, which cannot be used.

    Args:
        run: The folder of the run.
        restored: Path of the checkpoint from which the attempt resumes.
        attempt: The attempt; what it or a later one has written stays.
    """
    positions = _list_positions(run)
    for path, position in positions.items():
        if positions[restored] < position and position.attempt < attempt:
            remove_quietly(path)


def remove_quietly(path: str) -> None:
    """Remove a file or a checkpoint; if that fails, log a warning and leave it."""
    try:
        # The marker goes first, so that a half-removed folder is not taken for a checkpoint.
        storage.remove(storage.join(path, COMMITTED), storage.CHECK_PATIENCE_S)
        storage.remove(path, storage.CHECK_PATIENCE_S)
    except StorageError as error:
        logger.warning("a file that is no longer needed stays in place: %s", error)


def read_checkpoint_spec(path: str, digests: Mapping[str, str]) -> DistillSpec:
    """Return the spec of the run that wrote a checkpoint, of this or an earlier version.

    Raises:
        CheckpointError: The file is damaged, or has fields that no earlier version had.
    """
    try:
        return DistillSpec.from_saved(read_verified(path, "spec.json", digests))
    except ValidationError as error:
        raise CheckpointError(
            f"the checkpoint {path} was written by another version of liser_dist "
            f"({first_mistake(error)}) and cannot be read by this one: install the version that "
            "wrote it, or give another checkpoint"
        ) from error


def require_same_student(spec: DistillSpec) -> None:
    """Check that the checkpoint at `start_from` holds the same student as the job.

    Raises:
        CheckpointError: It cannot be read, or its student, emotions or sample rate differ.
    """
    if spec.start_from is None:
        return
    if not storage.exists(spec.start_from, storage.CHECK_PATIENCE_S):
        raise CheckpointError(
            f"`start_from`: no checkpoint at {spec.start_from}: give a folder "
            "runs/NAME/N/checkpoints/step-..."
        )
    saved = read_checkpoint_spec(spec.start_from, read_digests(spec.start_from))
    compared = {
        "student": (spec.student.model_dump(), saved.student.model_dump()),
        "emotions": (spec.emotions, saved.emotions),
        "clip.sample_rate_hz": (spec.clip.sample_rate_hz, saved.clip.sample_rate_hz),
    }
    for field, (value, saved_value) in compared.items():
        if value != saved_value:
            raise CheckpointError(
                f"`start_from` {spec.start_from} holds another student: its `{field}` is "
                f"{saved_value}, the job's is {value}; make them the same, or leave `start_from` "
                "out"
            )

"""Checkpoints as files: written one by one and then committed, and not believed without that.

The marker of a checkpoint holds the digests of its other files. Nothing here knows tensors, so that
who asks for the ledger alone need not load torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from liser_dist import storage
from liser_dist.errors import CheckpointError, MissingError, StorageError
from liser_dist.ledger import Ledger
from liser_dist.spec import DistillSpec

logger = logging.getLogger(__name__)

COMMITTED = "COMMITTED"
LEDGER = "ledger.json"
T = TypeVar("T")


def new_place(run: str, step: int) -> str:
    """Where a checkpoint of a step goes: never over one that was committed."""
    first = place = storage.join(run, "checkpoints", f"step-{step:08d}")
    number = 1
    while storage.exists(storage.join(place, COMMITTED)):
        number += 1
        place = f"{first}-{number}"
    return place


def step_of(place: str) -> int:
    return int(place.rpartition("step-")[2][:8])


def write_checkpoint(place: str, files: Mapping[str, bytes]) -> None:
    """Write a checkpoint and then commit it. Raises StorageError."""
    for name, content in files.items():
        storage.write_bytes(storage.join(place, name), content)
    digests = {name: _digest(content) for name, content in files.items()}
    storage.write_bytes(storage.join(place, COMMITTED), json.dumps(digests, indent=1).encode())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_digests(place: str) -> dict[str, str]:
    """Of each file of a committed checkpoint. Raises CheckpointError."""
    try:
        found: dict[str, str] = json.loads(_read(place, COMMITTED))
    except ValueError as error:
        raise CheckpointError(
            f"the checkpoint {place} is damaged: its marker is no JSON"
        ) from error
    return found


def read_file(place: str, name: str, digests: Mapping[str, str]) -> bytes:
    """One file's content. Raises CheckpointError where it is not as it was written."""
    content = _read(place, name)
    if _digest(content) != digests.get(name):
        raise CheckpointError(f"the checkpoint {place} is damaged: {name} is not as it was written")
    return content


def _read(place: str, name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(place, name))
    except MissingError as error:
        raise CheckpointError(
            f"no checkpoint at {place}: {error}; give a folder runs/NAME/N/checkpoints/step-..."
        ) from error


def list_checkpoints(run: str) -> list[str]:
    """The committed checkpoints of a run, oldest first."""
    folder = storage.join(run, "checkpoints")
    places = [storage.join(folder, name) for name in storage.list_folders(folder)]
    return [place for place in places if storage.exists(storage.join(place, COMMITTED))]


def newest(run: str, load: Callable[[str], T]) -> tuple[str, T] | None:
    """The newest checkpoint of a run that is whole, as `load` reads it; broken ones are told.

    Raises:
        CheckpointError: there are checkpoints, and all are broken.
        StorageError: they cannot be reached, which does not make them broken.
    """
    places = list_checkpoints(run)
    for place in reversed(places):
        try:
            return place, load(place)
        except CheckpointError as error:
            logger.warning("%s; the one before it is taken", error)
    if places:
        raise CheckpointError(
            f"every checkpoint of the run {run} is damaged: {', '.join(places)}; restore one, or "
            "remove them to begin at the first clip"
        )
    return None


def is_whole(place: str) -> bool:
    """Whether a checkpoint can be read; if not, that is told. Raises StorageError."""
    try:
        load_ledger(place)
    except CheckpointError as error:
        logger.warning("%s", error)
        return False
    return True


def load_ledger(place: str) -> Ledger:
    """Of a checkpoint all of whose files are as they were written. Raises CheckpointError."""
    digests = read_digests(place)
    files = {name: read_file(place, name, digests) for name in digests}
    return Ledger.from_json(json.loads(files[LEDGER]))


def remove_old(run: str, step: int, keep: int) -> None:
    """Keep the newest up to a step; the best weights by validation are in each of them.

    With the old ones goes what was never committed.
    """
    folder = storage.join(run, "checkpoints")
    kept = [place for place in list_checkpoints(run) if step_of(place) <= step][-keep:]
    for name in storage.list_folders(folder):
        place = storage.join(folder, name)
        if place not in kept and step_of(place) <= step:
            remove_quietly(place)


def remove_later(run: str, step: int) -> None:
    """Remove what is of a later step than the one gone on from: a history that was given up."""
    for place in list_checkpoints(run):
        if step_of(place) > step:
            remove_quietly(place)


def remove_quietly(place: str) -> None:
    """What cannot be removed stays: it does no harm."""
    try:
        storage.remove(storage.join(place, COMMITTED))  # first: half a checkpoint is none
        storage.remove(place)
    except StorageError as error:
        logger.warning("%s", error)


def read_spec(place: str, digests: Mapping[str, str]) -> DistillSpec:
    """Of the run that a checkpoint is of. Raises CheckpointError."""
    try:
        return DistillSpec.model_validate_json(read_file(place, "spec.json", digests))
    except ValidationError as error:
        raise CheckpointError(f"the spec in {place} is of another version of this tool") from error


def require_same_student(spec: DistillSpec) -> None:
    """Raise CheckpointError when `start_from` holds another student than the job's."""
    if spec.start_from is None:
        return
    other = read_spec(spec.start_from, read_digests(spec.start_from))
    for field in ("student", "emotions", "clip.sample_rate_hz"):
        ours, theirs = _field(spec, field), _field(other, field)
        if ours != theirs:
            raise CheckpointError(
                f"`start_from` {spec.start_from} holds another student: its `{field}` is "
                f"{_shown(theirs)}, the job's is {_shown(ours)}; make them the same, or leave "
                "`start_from` out"
            )


def _field(spec: DistillSpec, dotted: str) -> Any:
    value: Any = spec
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def _shown(value: Any) -> str:
    return str(value.model_dump()) if hasattr(value, "model_dump") else str(value)

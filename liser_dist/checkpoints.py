"""Checkpoints: the weights and the ledger of the clips in them, together.

A checkpoint is a folder, written file by file and then committed: without its marker it does not
exist. Only tensors and JSON are in it. Training does not wait for it to be written, nor end when it
cannot be.

    step-00001200/
      spec.json             the resolved spec of its run
      students.safetensors  every student in training
      best.safetensors      of each kind of student, the best by validation so far
      optimizer.pt          tensors and numbers alone
      state.json            step, scores, what else the loop needs
      ledger.json           which clips are in the weights
      COMMITTED             digests of the others
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from liser_dist import storage
from liser_dist.errors import CheckpointError, MissingError, StorageError
from liser_dist.ledger import Ledger, Rejection
from liser_dist.rejections import part_place, write_part
from liser_dist.spec import DistillSpec
from liser_dist.students import Student

logger = logging.getLogger(__name__)

COMMITTED = "COMMITTED"
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    spec: DistillSpec
    students: Tensors
    best: dict[str, Tensors]  # by kind of student: "distilled", and each of the spec's `compare`
    optimizer: Mapping[str, Any]
    state: Mapping[str, Any]
    ledger: Ledger


def _new_place(run: str, step: int) -> str:
    """Where a checkpoint of a step goes: never over one that was committed."""
    first = place = storage.join(run, "checkpoints", f"step-{step:08d}")
    number = 1
    while storage.exists(storage.join(place, COMMITTED)):
        number += 1
        place = f"{first}-{number}"
    return place


def step_of(place: str) -> int:
    return int(place.rpartition("step-")[2][:8])


def pack_checkpoint(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of a checkpoint, by name: what it holds now, whatever is trained meanwhile."""
    optimizer = io.BytesIO()
    torch.save(checkpoint.optimizer, optimizer)
    best = {
        f"{kind}/{name}": tensor
        for kind, tensors in checkpoint.best.items()
        for name, tensor in tensors.items()
    }
    return {
        "spec.json": checkpoint.spec.model_dump_json(indent=1).encode(),
        "students.safetensors": save_tensors(checkpoint.students),
        "best.safetensors": save_tensors(best),
        "optimizer.pt": optimizer.getvalue(),
        "state.json": json.dumps(checkpoint.state, indent=1).encode(),
        "ledger.json": json.dumps(checkpoint.ledger.to_json()).encode(),
    }


def write_checkpoint(place: str, files: Mapping[str, bytes]) -> None:
    """Write a checkpoint and then commit it. Raises StorageError."""
    for name, content in files.items():
        storage.write_bytes(storage.join(place, name), content)
    digests = {name: _digest(content) for name, content in files.items()}
    storage.write_bytes(storage.join(place, COMMITTED), json.dumps(digests, indent=1).encode())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


class CheckpointWriter:
    """Writes a run's checkpoints in the background, one at a time.

    One that cannot be written is told, and training goes on; `finish` raises when it was the last.

    Attributes:
        newest: the place of the last that was kept.
    """

    def __init__(self, run: str, keep: int) -> None:
        self._run, self._keep = run, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        self._rejections: list[Rejection] = []  # told to no part yet
        self.newest: str | None = None

    @property
    def busy(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def save(self, step: int, checkpoint: Checkpoint, then: Callable[[], None]) -> None:
        """Begin to write, and to do something more after it. Waits for the one before."""
        self._wait()
        self._rejections += checkpoint.ledger.take_rejections()
        files = pack_checkpoint(checkpoint)
        self._writing = self._thread.submit(self._write, step, files, then)

    def finish(self) -> None:
        """Wait for the last. Raises StorageError when it was not kept."""
        self._thread.shutdown()
        if self._writing is not None:
            self._writing.result()

    def _wait(self) -> None:
        if self._writing is not None:
            wait([self._writing])

    def _write(self, step: int, files: Mapping[str, bytes], then: Callable[[], None]) -> None:
        place = None
        try:
            place = _new_place(self._run, step)
            write_part(self._run, step, self._rejections)
            write_checkpoint(place, files)
        except StorageError as error:
            logger.error("the checkpoint of step %d is lost, training goes on: %s", step, error)
            self._take_back(step, place)
            raise
        self._rejections.clear()
        self.newest = place
        try:
            remove_old(self._run, step, self._keep)
            then()
        except StorageError as error:
            logger.warning("%s", error)

    def _take_back(self, step: int, place: str | None) -> None:
        """What there is of a checkpoint may be what fills the disk; its part comes once more."""
        if place is not None:
            _remove_quietly(place)
        if self._rejections:
            _remove_quietly(part_place(self._run, step))


def load_checkpoint(place: str) -> Checkpoint:
    """Read a committed checkpoint. Raises CheckpointError, also where a file is not as written."""
    digests = _read_digests(place)
    spec = _read_spec(place, digests)
    best: dict[str, Tensors] = {}
    for name, tensor in load_tensors(_read(place, "best.safetensors", digests)).items():
        kind, _, weight = name.partition("/")
        best.setdefault(kind, {})[weight] = tensor
    optimizer = io.BytesIO(_read(place, "optimizer.pt", digests))
    return Checkpoint(
        spec=spec,
        students=load_tensors(_read(place, "students.safetensors", digests)),
        best=best,
        # Who reads it may have no GPU: the first node, say.
        optimizer=torch.load(optimizer, weights_only=True, map_location="cpu"),
        state=json.loads(_read(place, "state.json", digests)),
        ledger=Ledger.from_json(json.loads(_read(place, "ledger.json", digests))),
    )


def _read_digests(place: str) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(_read_file(place, COMMITTED))
    except ValueError as error:
        raise CheckpointError(
            f"the checkpoint {place} is damaged: its marker is no JSON"
        ) from error
    return found


def _read(place: str, name: str, digests: Mapping[str, str]) -> bytes:
    content = _read_file(place, name)
    if _digest(content) != digests.get(name):
        raise CheckpointError(f"the checkpoint {place} is damaged: {name} is not as it was written")
    return content


def _read_file(place: str, name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(place, name))
    except MissingError as error:
        raise CheckpointError(
            f"no checkpoint at {place}: {error}; give a folder runs/NAME/N/checkpoints/step-..."
        ) from error


def _read_spec(place: str, digests: Mapping[str, str]) -> DistillSpec:
    try:
        return DistillSpec.model_validate_json(_read(place, "spec.json", digests))
    except ValidationError as error:
        raise CheckpointError(f"the spec in {place} is of another version of this tool") from error


def list_checkpoints(run: str) -> list[str]:
    """The committed checkpoints of a run, oldest first."""
    folder = storage.join(run, "checkpoints")
    places = [storage.join(folder, name) for name in storage.list_folders(folder)]
    return [place for place in places if storage.exists(storage.join(place, COMMITTED))]


def load_newest(run: str) -> tuple[str, Checkpoint] | None:
    """The newest checkpoint of a run that is whole, and its place; broken ones are told.

    Raises:
        CheckpointError: there are checkpoints, and all are broken.
        StorageError: they cannot be reached, which does not make them broken.
    """
    places = list_checkpoints(run)
    for place in reversed(places):
        try:
            return place, load_checkpoint(place)
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
        load_checkpoint(place)
    except CheckpointError as error:
        logger.warning("%s", error)
        return False
    return True


def remove_old(run: str, step: int, keep: int) -> None:
    """Keep the newest up to a step; the best weights by validation are in each of them.

    With the old ones goes what was never committed.
    """
    folder = storage.join(run, "checkpoints")
    kept = [place for place in list_checkpoints(run) if step_of(place) <= step][-keep:]
    for name in storage.list_folders(folder):
        place = storage.join(folder, name)
        if place not in kept and step_of(place) <= step:
            _remove_quietly(place)


def remove_later(run: str, step: int) -> None:
    """Remove what is of a later step than the one gone on from: a history that was given up."""
    for place in list_checkpoints(run):
        if step_of(place) > step:
            _remove_quietly(place)


def _remove_quietly(place: str) -> None:
    """What cannot be removed stays: it does no harm."""
    try:
        storage.remove(storage.join(place, COMMITTED))  # first: half a checkpoint is none
        storage.remove(place)
    except StorageError as error:
        logger.warning("%s", error)


def load_student(place: str, kind: str = "distilled") -> tuple[Student, tuple[str, ...]]:
    """The best student of a checkpoint, ready to answer, and the emotions it knows.

    Raises CheckpointError.
    """
    digests = _read_digests(place)
    spec = _read_spec(place, digests)
    tensors = load_tensors(_read(place, "best.safetensors", digests))
    weights = {
        name.removeprefix(f"{kind}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{kind}/") and "/projections." not in name
    }
    if not weights:
        raise CheckpointError(f"the checkpoint {place} holds no student {kind!r}")
    if spec.student.kind == "counting":
        raise CheckpointError(f"the student of {place} counts clips and answers nothing")
    student = Student(spec.student, len(spec.emotions), spec.clip.sample_rate_hz)
    student.load_state_dict(weights)
    return student.eval(), spec.emotions


def require_same_student(spec: DistillSpec) -> None:
    """Raise CheckpointError when `start_from` holds another student than the job's."""
    if spec.start_from is None:
        return
    other = _read_spec(spec.start_from, _read_digests(spec.start_from))
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

"""Identifies the weights of a teacher, and checks that every process loads the same ones.

The identity is a digest of the files, or the commit of a hub repository.

The process that submits a job identifies each teacher once. Other processes load the teacher hours
later, on other machines: on a node that joins, in an actor that is restarted, in a resumed run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from liser_dist.config.teachers import BackboneTeacher, HuggingFaceTeacher, TeacherIdentity
from liser_dist.errors import TeacherError
from liser_dist.teachers.model_files import (
    SETTINGS_FILES,
    WEIGHTS_FILES,
    digest_file,
    find_folder,
    local_folder,
)


def require_same_weights(model: str, digest: str, identity: TeacherIdentity) -> None:
    """Check that a model's files are those that were identified.

    Args:
        model: what messages call the model.
        digest: SHA-256 of its files now.
        identity: what they must be.

    Raises:
        TeacherError: they are others.
    """
    if digest != identity.digest:
        raise TeacherError(
            f"teacher model {model!r} has been replaced since this run started: "
            f"{identity.describe_change(digest)}"
        )


# ---------------------------------------------------------------- Hugging Face models


def identify_model(kind: str, place: str, revision: str | None = None) -> TeacherIdentity:
    """Return the digest of a folder's files, or the commit that a hub repository has now.

    Args:
        kind: the kind of teacher.
        place: a folder or hub name.
        revision: branch, tag or commit of a hub repository.

    Raises:
        TeacherError: as `find_folder`.
    """
    folder = find_folder(place, SETTINGS_FILES, revision)
    if local_folder(place) is None:  # the hub's cache has a folder for each commit
        return TeacherIdentity(kind=kind, model=place, revision=revision, commit=folder.name)
    return TeacherIdentity(kind=kind, model=place, digest=_digest_folder(folder))


def revision_to_read(
    spec: HuggingFaceTeacher | BackboneTeacher, identity: TeacherIdentity | None
) -> str | None:
    """Return the commit of an identified teacher, or else the revision that its spec asks for."""
    return spec.revision if identity is None else identity.commit


@contextmanager
def verified(place: str, identity: TeacherIdentity | None) -> Iterator[None]:
    """Check that a model that is loaded meanwhile has the given weights.

    A folder's digest is computed before. If a file's time, size or inode has changed afterwards, it
    is computed again. So what was loaded is what has this digest, unless somebody replaces a file
    and restores it, all of it during the loading. A hub commit needs no check: it is what was
    downloaded.

    Args:
        place: a folder or hub name.
        identity: what the teacher must be; None: nothing is checked.

    Raises:
        TeacherError: the folder has other weights.
    """
    if identity is None or identity.commit is not None:
        yield
        return
    folder = find_folder(place, SETTINGS_FILES)
    before = _stamps(folder)
    require_same_weights(place, _digest_folder(folder), identity)
    yield
    if _stamps(folder) != before:
        require_same_weights(place, _digest_folder(folder), identity)


def _files_of(folder: Path) -> list[Path]:
    """Return the files of a model that are loaded, by name."""
    return sorted({file for pattern in WEIGHTS_FILES for file in folder.glob(pattern)})


def _digest_folder(folder: Path) -> str:
    parts = [f"{file.name} {digest_file(file)}" for file in _files_of(folder)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _stamps(folder: Path) -> list[tuple[str, int, int, int]]:
    status = [(file.name, file.stat()) for file in _files_of(folder)]
    return [(name, each.st_mtime_ns, each.st_size, each.st_ino) for name, each in status]

"""The spec of the synthetic corpus; adds the corpus's shards and teachers to a job's spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from liser_dist.config.base import EMOTIONS, Count, RawPlace, Spec, fingerprint

SYNTHETIC_VERSION = 1  # increased with every change in how the synthetic corpus is generated


class SyntheticSpec(Spec):
    """The synthetic corpus and two teachers for it, generated in `place` if not there yet.

    Stands in for data that cannot be shipped: its shards and teachers fill in `data` and `teachers`
    where these are not given. The corpus depends on the job's seed; the teachers' backbones do not,
    just as a public model would not.
    """

    place: RawPlace = Field(
        "~/.cache/liser_dist/synthetic",
        description="Folder in which synthetic corpora and their teachers' backbones are generated "
        "and kept. Every node must be able to read it.",
    )
    seed: int | None = Field(None, description="Seed of the corpus. null: the job's own `seed`.")
    labelled_per_emotion: Count = Field(2, description="Number of labelled clips for each emotion.")
    unlabelled_clips: Count = Field(1440, description="Number of unlabelled clips.")
    validation_clips: Count = Field(120, description="Number of validation clips.")
    test_clips: Count = Field(240, description="Number of test clips.")
    clips_per_shard: Count = Field(60, description="Number of clips in each shard.")
    backbone_clips: Count = Field(
        2400, description="Number of clips on which each teacher's backbone is trained."
    )

    @property
    def root(self) -> Path:
        """Folder of this corpus: its name depends on all fields but `place`."""
        made_of = {**self.model_dump(exclude={"place"}), "version": SYNTHETIC_VERSION}
        return Path(self.place).expanduser() / f"corpus-{fingerprint(made_of)}"

    @property
    def backbones(self) -> Path:
        """Folder of the backbones of its teachers, "speech" and "face"."""
        name = f"backbones-{self.backbone_clips}-v{SYNTHETIC_VERSION}"
        return Path(self.place).expanduser() / name

    def places(self) -> dict[str, str]:
        """Return the paths of the four shard sets: labelled, unlabelled, validation, test."""
        return {
            name: str(self.root / name) for name in ("labelled", "unlabelled", "validation", "test")
        }

    def teachers(self) -> dict[str, str]:
        """Return the folders of the two teachers, whose heads are fitted on the labelled set."""
        return {name: str(self.root / "teachers" / name) for name in ("speech", "face")}


def fill_in_synthetic(given: Any) -> Any:
    """Return a job's fields with the synthetic corpus's shards and teachers filled in.

    What the job gives itself stays as it is, as does a job whose fields are wrong.
    """
    if not isinstance(given, dict) or not isinstance(given.get("synthetic"), dict):
        return given
    parts = [given.get(name) or {} for name in ("data", "teachers")]
    seed = str(given.get("seed", 0))
    if not (all(isinstance(part, dict) for part in parts) and seed.isdigit()):
        return given  # reported when the fields themselves are validated
    try:
        synthetic = SyntheticSpec.model_validate(given["synthetic"])
    except ValidationError:
        return given
    if synthetic.seed is None:
        synthetic = synthetic.model_copy(update={"seed": int(seed)})
    data, teachers = parts
    return {
        **given,
        "synthetic": synthetic.model_dump(),
        "data": {**synthetic.places(), **data},
        "teachers": {**teachers, **_with_synthetic_teachers(synthetic, teachers)},
    }


def _with_synthetic_teachers(
    synthetic: SyntheticSpec, given: dict[str, Any]
) -> dict[str, dict[str, Any] | None]:
    """Return both teachers, with the synthetic corpus's own filled in where the job gives none."""
    labels = {name: name for name in EMOTIONS}
    teachers: dict[str, dict[str, Any] | None] = {}
    for name, folder in synthetic.teachers().items():
        own = {"kind": "huggingface", "model": folder, "labels": labels}
        given_teacher = given.get(name, {})
        kind = given_teacher.get("kind", own["kind"]) if isinstance(given_teacher, dict) else None
        if kind == "backbone":
            teachers[name] = {"model": str(synthetic.backbones / name), **given_teacher}
        else:
            teachers[name] = {**own, **given_teacher} if kind == own["kind"] else given_teacher
    return teachers

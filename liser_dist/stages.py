"""The stages that a clip passes, as Ray Data runs them: Sample -> Clip -> Example.

`Decode` is an actor that needs a CPU, and `Teach` one that may need a GPU.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from liser_dist import metrics
from liser_dist.allocation import keep_freed_tables
from liser_dist.errors import LiserError
from liser_dist.records import Clip, Example, Sample, Targets, stable_hash
from liser_dist.spec import ClipSpec, DistillSpec
from liser_dist.tables import to_table
from liser_dist.targets import TargetStore, labelled_view, stretches
from liser_dist.windows import Windows

if TYPE_CHECKING:
    from liser_dist.batches import Batcher
    from liser_dist.teachers import Teacher

logger = logging.getLogger(__name__)

TRIED_BEFORE = "when it was first tried"


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where what is taught is kept, and the actors that write it there."""

    store: TargetStore
    writers: Sequence[Any]


class Decode:
    """Sample -> Clip, with a guarded child process that survives nothing but is replaced."""

    def __init__(self, clip: ClipSpec, windows: Windows, desk: Any) -> None:
        from liser_dist.guard import ClipDecoder

        keep_freed_tables()
        self.windows, self.desk = windows, desk
        self.decoder = ClipDecoder(clip)

    def __call__(self, samples: pa.Table) -> pa.Table:
        with metrics.busy("decode"):
            return self._decode(samples)

    def _decode(self, samples: pa.Table) -> pa.Table:
        clips = [Sample.from_row(row) for row in samples.to_pylist()]
        clips = self._with_known_verdicts(clips)
        work = [(sample, self.windows.start_share(sample)) for sample in clips]
        decoded = list(self.decoder.decode_all(work))
        metrics.count_decoded(Counter(str(clip.reason) or metrics.DECODED for clip in decoded))
        self._report(clips, decoded)
        return to_table(decoded, Clip)

    def _with_known_verdicts(self, samples: list[Sample]) -> list[Sample]:
        """A clip that was rejected before, in this epoch or an earlier one, is not tried again.

        Ray runs a task once more whose actor died: its rows must come out as they did.
        """
        asked = [(sample.shard, sample.index) for sample in samples]
        verdicts = ray.get(self.desk.verdicts.remote(asked))
        known = []
        for sample in samples:
            reason = verdicts.get((sample.shard, sample.index))
            known.append(
                dataclasses.replace(sample, reason=reason, detail=TRIED_BEFORE, video=b"")
                if reason and not sample.rejected
                else sample
            )
        return known

    def _report(self, samples: Sequence[Sample], clips: Sequence[Clip]) -> None:
        verdicts = {
            (clip.shard, clip.index): str(clip.reason)
            for sample, clip in zip(samples, clips, strict=True)
            if clip.rejected and not sample.rejected
        }
        if verdicts:
            # Waited for, so that a later epoch's look-up finds it.
            ray.get(self.desk.reject.remote(verdicts))


class Teach:
    """Clip -> Example: both teachers over one copy of the clip."""

    def __init__(
        self,
        spec: DistillSpec,
        labelled: bool,
        taught: Collection[str] | None,
        keeping: Keeping | None,
        kept_alone: bool,
    ) -> None:
        if not ray.get_gpu_ids():
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray would leave them in sight
        from liser_dist.teachers import load_teacher, take_threads

        keep_freed_tables()
        take_threads(spec.teachers, max(1, int(spec.resources.teacher_cpus)))
        self.spec, self.labelled, self.taught = spec, labelled, taught
        self.keeping, self.kept_alone = keeping, kept_alone
        self.heard = _batcher(spec) if spec.targets.input == "log_mel" else None
        self.failure: LiserError | None = None
        try:
            self.teachers = {
                name: load_teacher(teacher, spec.emotions, spec.clip)
                for name in ("speech", "face")
                if (teacher := getattr(spec.teachers, name)) is not None
            }
        except LiserError as error:
            # Ray keeps the text alone of what an actor's start raises: told at the first clip.
            self.failure = error

    def __call__(self, rows: pa.Table) -> pa.Table:
        if self.failure is not None:
            raise self.failure
        with metrics.busy("teach"):
            taught = self._teach_all(rows)
        metrics.count_taught(len(taught))
        return taught

    def _teach_all(self, rows: pa.Table) -> pa.Table:
        clips = [Clip.from_row(row, self.spec.clip.face_px) for row in rows.to_pylist()]
        # A target must not depend on the clips beside it, in a deterministic run to the last bit.
        size = 1 if self.spec.deterministic else self.spec.teachers.batch_size
        groups = (clips[first : first + size] for first in range(0, len(clips), size))
        examples = [example for group in groups for example in self._teach(group)]
        if px := self.spec.student.seen_px:
            examples = _with_faces(examples, clips, px)
        if self.heard is not None:
            examples = [self.heard.with_mel(example) for example in examples]
        table = to_table(examples, Example)
        if self.keeping is not None and self.keeping.writers:
            self._keep(table, self.keeping)
        return table.select(["key"]) if self.kept_alone else table

    def _keep(self, table: pa.Table, keeping: Keeping) -> None:
        """Hands the rows to the writers, and waits until they have them.

        So whoever has seen a row, and then asks the writers to finish, finds it in the store.
        """
        answers = [
            keeping.writers[stable_hash(str(stretch)) % len(keeping.writers)].add.remote(
                stretch, rows
            )
            for stretch, rows in stretches(table, self._view)
        ]
        try:
            ray.get(answers)
        except ray.exceptions.RayActorError:
            logger.warning("a writer of the target store was lost; what it held is taught again")

    def _view(self, shard: str, epoch: int) -> str:
        assert self.keeping is not None
        if self.labelled:
            return labelled_view(taught=self.taught is None or shard in self.taught)
        return self.keeping.store.view(epoch)

    def _teach(self, clips: list[Clip]) -> Iterator[Example]:
        silence = [Targets()] * len(clips)
        said = {name: self._ask(teacher, clips) for name, teacher in self.teachers.items()}
        speech, face = said.get("speech", silence), said.get("face", silence)
        for clip, heard, seen in zip(clips, speech, face, strict=True):
            if not self.spec.loss.uses_embeddings:
                heard, seen = _without_embedding(heard), _without_embedding(seen)
            yield Example.of(clip, heard, seen)

    def _ask(self, teacher: Teacher, clips: list[Clip]) -> list[Targets]:
        """One `Targets` for each clip; empty where it is of a shard that need not be taught."""
        asked = [
            n for n, clip in enumerate(clips) if self.taught is None or clip.shard in self.taught
        ]
        targets = [Targets()] * len(clips)
        for number, said in zip(asked, teacher.teach([clips[n] for n in asked]), strict=True):
            targets[number] = said
        return targets


def _batcher(spec: DistillSpec) -> Batcher:
    from liser_dist.batches import Batcher

    return Batcher.of(spec)


def _without_embedding(said: Targets) -> Targets:
    return dataclasses.replace(said, embedding=said.embedding[:0])


def _with_faces(examples: list[Example], clips: list[Clip], px: int) -> list[Example]:
    from liser_dist.faces import shrink_faces

    return [
        dataclasses.replace(example, faces=shrink_faces(clip, px))
        for example, clip in zip(examples, clips, strict=True)
    ]

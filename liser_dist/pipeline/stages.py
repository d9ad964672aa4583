"""Decodes clips and computes their targets: the stages of the pipeline that run as actors.

`Decode` turns a Sample (a clip as it is in its shard) into a Clip, and needs a CPU. `Teach` turns a
Clip into an Example (the student's input with the teachers' targets), and may need a GPU.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray

from liser_dist.cluster.prometheus import DECODED, busy, count_decoded, count_taught
from liser_dist.config.stream import ClipSpec, StreamSpec
from liser_dist.data.process import reuse_freed_memory_for_arrow
from liser_dist.errors import LiserError
from liser_dist.pipeline.store import labelled_view
from liser_dist.pipeline.store_writer import StoreWriters
from liser_dist.pipeline.tables import to_table
from liser_dist.pipeline.windows import Windows
from liser_dist.records import Clip, Example, Sample, Targets

if TYPE_CHECKING:
    from liser_dist.students.features import AudioInput
    from liser_dist.teachers.model_teacher import Teacher

logger = logging.getLogger(__name__)

REJECTED_BEFORE = "the clip was rejected when it was first decoded"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOptions:
    """How one dataset treats the clips of its shards.

    Attributes:
        labelled: The clips have labels; the window in their middle is used.
        shards_with_targets: Shards whose clips get targets; None: all shards.
        writers: Where every row is stored as well; None: nowhere.
        keys_only: The dataset gives the keys alone, and only the store gets the rest.
    """

    labelled: bool = False
    shards_with_targets: Collection[str] | None = None
    writers: StoreWriters | None = None
    keys_only: bool = False

    def has_targets(self, shard: str) -> bool:
        """Return whether the teachers compute targets for the clips of a shard."""
        return self.shards_with_targets is None or shard in self.shards_with_targets

    def view(self, shard: str, epoch: int) -> str:
        """Return the view under which the store keeps the clips of a shard in an epoch."""
        assert self.writers is not None
        if self.labelled:
            return labelled_view(with_targets=self.has_targets(shard))
        return self.writers.store.view(epoch)


class Decode:
    """Decodes samples in a child process, which is replaced when a clip crashes it."""

    def __init__(self, clip: ClipSpec, windows: Windows, coordinator: Any) -> None:
        from liser_dist.data.clip_decoder import ClipDecoder

        reuse_freed_memory_for_arrow()
        self.windows, self.coordinator = windows, coordinator
        self.decoder = ClipDecoder(clip)

    def __call__(self, samples: pa.Table) -> pa.Table:
        """Return a row of Clip for each row of Sample, in the same order."""
        with busy("decode"):
            return self._decode(samples)

    def _decode(self, samples: pa.Table) -> pa.Table:
        clips = [Sample.from_row(row) for row in samples.to_pylist()]
        clips = self._mark_known_rejections(clips)
        work = [(sample, self.windows.start_share(sample)) for sample in clips]
        decoded = list(self.decoder.decode_all(work))
        count_decoded(Counter(str(clip.reason) or DECODED for clip in decoded))
        self._report_rejections(clips, decoded)
        return to_table(decoded, Clip)

    def _mark_known_rejections(self, samples: list[Sample]) -> list[Sample]:
        """Mark clips that were rejected before, in this epoch or an earlier one.

        They are not decoded again: Ray repeats a task whose actor died, and its rows must come out
        as they did.
        """
        ids = [(sample.shard, sample.index) for sample in samples]
        reasons = ray.get(self.coordinator.known_rejections.remote(ids))
        marked = []
        for sample in samples:
            reason = reasons.get((sample.shard, sample.index))
            marked.append(
                dataclasses.replace(sample, reason=reason, detail=REJECTED_BEFORE, video=b"")
                if reason and not sample.rejected
                else sample
            )
        return marked

    def _report_rejections(self, samples: Sequence[Sample], clips: Sequence[Clip]) -> None:
        reasons = {
            (clip.shard, clip.index): str(clip.reason)
            for sample, clip in zip(samples, clips, strict=True)
            if clip.rejected and not sample.rejected
        }
        if reasons:
            # Wait, so that the look-up of a later epoch finds the reasons.
            ray.get(self.coordinator.reject.remote(reasons))


class Teach:
    """Computes the targets of all teachers from one copy of each clip."""

    def __init__(self, stream: StreamSpec, options: RowOptions) -> None:
        if not ray.get_gpu_ids():
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray leaves GPUs of other actors visible
        reuse_freed_memory_for_arrow()
        self.stream, self.options = stream, options
        self.audio_input = _audio_input(stream) if stream.student_input.audio == "log_mel" else None
        self.teachers: Mapping[str, Teacher] = {}
        self.load_error: LiserError | None = None
        try:
            self.teachers = _load_teachers(stream)
        except LiserError as error:
            # Ray passes on only the text of what an actor's constructor raises. The first call
            # raises the error instead, and it arrives as it is.
            self.load_error = error

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Return a row of Example for each row of Clip, in the same order."""
        if self.load_error is not None:
            raise self.load_error
        with busy("teach"):
            examples = to_table(self._compute_examples(rows), Example)
            if self.options.writers is not None:
                self.options.writers.add(examples, self.options.view)
        count_taught(len(examples))
        return examples.select(["key"]) if self.options.keys_only else examples

    def _compute_examples(self, rows: pa.Table) -> list[Example]:
        clips = [Clip.from_row(row, self.stream.clip.face_px) for row in rows.to_pylist()]
        # In a deterministic run a target must not depend, to the last bit, on the other clips of
        # its batch.
        size = 1 if self.stream.deterministic else self.stream.teacher_batch_size
        batches = (clips[first : first + size] for first in range(0, len(clips), size))
        examples = [example for batch in batches for example in self._teach(batch)]
        if px := self.stream.student_input.face_px:
            examples = _with_faces(examples, clips, px)
        if self.audio_input is not None:
            examples = [self.audio_input.replace_waveform(example) for example in examples]
        return examples

    def _teach(self, clips: list[Clip]) -> Iterator[Example]:
        computed = {name: self._targets_of(each, clips) for name, each in self.teachers.items()}
        for row, clip in enumerate(clips):
            targets = {name: of_clips[row] for name, of_clips in computed.items()}
            if not self.stream.embeddings:
                targets = {name: _without_embedding(each) for name, each in targets.items()}
            yield Example.from_clip(clip, targets)

    def _targets_of(self, teacher: Teacher, clips: list[Clip]) -> list[Targets]:
        """Return one `Targets` per clip, empty for clips of shards that get none."""
        rows = [row for row, clip in enumerate(clips) if self.options.has_targets(clip.shard)]
        targets = [Targets()] * len(clips)
        computed = teacher.teach([clips[row] for row in rows])
        for row, of_clip in zip(rows, computed, strict=True):
            targets[row] = of_clip
        return targets


def _load_teachers(stream: StreamSpec) -> dict[str, Teacher]:
    from liser_dist.teachers.teachers import load_teacher, naming_field, set_threads

    set_threads(stream.teachers.values(), max(1, int(stream.resources.teacher_cpus)))
    teachers: dict[str, Teacher] = {}
    for name, spec in stream.teachers.items():
        identity = stream.identities.get(name)
        with naming_field(stream.teacher_field(name)):
            teachers[name] = load_teacher(spec, stream.emotions, stream.clip, identity)
    return teachers


def _audio_input(stream: StreamSpec) -> AudioInput:
    from liser_dist.students.features import AudioInput

    clip = stream.clip
    return AudioInput(clip.sample_rate_hz, stream.student_input.mels, clip.window_s)


def _without_embedding(targets: Targets) -> Targets:
    return dataclasses.replace(targets, embedding=targets.embedding[:0])


def _with_faces(examples: list[Example], clips: list[Clip], px: int) -> list[Example]:
    from liser_dist.data.faces import shrink_faces

    return [
        dataclasses.replace(example, faces=shrink_faces(clip, px))
        for example, clip in zip(examples, clips, strict=True)
    ]

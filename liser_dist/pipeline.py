"""Shards -> examples, as one Ray Dataset over all epochs of a run.

1. `_read`   a ShardVisit to its Samples         tasks
2. `Decode`  Sample to Clip                      CPU actors, a guarded child each
3. `Teach`   Clip to Example                     GPU actors, both teachers in each

No stage changes the number of rows: a rejected clip travels on, empty but for its reason. Ray ends
a pipeline's actors with each execution, which is why the epochs are one dataset.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray
from pyroaring import BitMap
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionOptions
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from liser_dist.desk import Desk, Progress
from liser_dist.errors import LiserError
from liser_dist.records import Clip, Example, Provenance, Sample, Targets, stable_hash
from liser_dist.shards import ShardVisit, read_samples
from liser_dist.spec import ClipSpec, DistillSpec
from liser_dist.teacher_spec import TeachersSpec

if TYPE_CHECKING:
    from liser_dist.teachers import Teacher

# Blocks are what Ray schedules, moves and splits: small ones keep the first batch near and the
# object store empty, larger ones cost the scheduler less.
BLOCK_BYTES = 2**20
DECODE_ROWS = 16
TRIED_BEFORE = "when it was first tried"


def schema_of(record: type[Provenance]) -> pa.Schema:
    """One Arrow column a field: arrays and bytes are binary."""
    plain = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    return pa.schema(
        (field.name, plain.get(str(field.type), pa.binary()))
        for field in dataclasses.fields(record)
    )


def _table(records: Sequence[Provenance], kind: type[Provenance]) -> pa.Table:
    return pa.Table.from_pylist([record.to_row() for record in records], schema=schema_of(kind))


def open_desk() -> Any:
    """The run's desk, as an actor on the job's own node: it lives as long as the job."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(Desk).options(scheduling_strategy=here, **options).remote()


def read_progress(desk: Any) -> Progress:
    found: Progress = ray.get(desk.progress.remote())
    return found


class ForgetBlocks(ExecutionCallback):
    """Ray Data would remember every block of every stage until the end: 200 MB a million clips."""

    def on_execution_step(self, executor: Any) -> None:
        for stage in executor._topology or ():
            getattr(stage, "_output_blocks_stats", []).clear()


def build_examples(
    spec: DistillSpec,
    visits: Sequence[ShardVisit],
    desk: Any,
    *,
    labelled: bool = False,
    taught: Collection[str] | None = None,
) -> Dataset:
    """The stream of a run: one row a clip of each visit, but for those that it has finished.

    `taught`: the shards whose clips the teachers are asked about; all, when not given. Nothing
    runs until the dataset is read.
    """
    context = DataContext.get_current()
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options = execution_options(spec)
    context.custom_execution_callback_classes = [ForgetBlocks]
    resources = spec.resources
    items = [
        {"epoch": v.epoch, "shard": v.shard, "version": v.version,
         "finished": v.finished.serialize()}
        for v in visits
    ]  # fmt: skip
    return (
        ray.data.from_items(items, override_num_blocks=max(1, len(items)))
        .map_batches(
            _read,
            fn_kwargs={"labelled": labelled},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=resources.reader_cpus,
            compute=ray.data.TaskPoolStrategy(size=resources.readers),
        )
        .map_batches(
            Decode,
            fn_constructor_kwargs={
                "clip": spec.clip, "seed": spec.seed, "epochs": spec.train.epochs,
                "centred": labelled, "desk": desk,
            },
            batch_size=DECODE_ROWS,
            batch_format="pyarrow",
            num_cpus=resources.decoder_cpus,
            compute=_pool(resources.decoders),
        )
        .map_batches(
            Teach,
            fn_constructor_kwargs={
                "teachers": spec.teachers, "emotions": spec.emotions, "clip": spec.clip,
                "embeddings": spec.loss.embedding > 0, "one_by_one": spec.deterministic,
                "threads": max(1, int(resources.teacher_cpus)), "taught": taught,
            },
            batch_size=spec.teachers.batch_size,
            batch_format="pyarrow",
            num_cpus=resources.teacher_cpus,
            num_gpus=resources.teacher_gpus or None,
            compute=_pool(resources.teachers),
        )
    )  # fmt: skip


def _pool(bounds: tuple[int, int]) -> ActorPoolStrategy:
    least, most = bounds
    return ActorPoolStrategy(min_size=least, max_size=most)


def execution_options(spec: DistillSpec) -> ExecutionOptions:
    return ExecutionOptions(preserve_order=spec.deterministic)


def _read(visits: pa.Table, labelled: bool) -> Iterator[pa.Table]:
    """Rows of Sample. Small tables, so that decoding starts before the shard is read."""
    for item in visits.to_pylist():
        visit = ShardVisit(**{**item, "finished": BitMap.deserialize(item["finished"])})
        rows: list[Provenance] = []
        for sample in read_samples(visit, labelled=labelled):
            rows.append(sample)
            if len(rows) == DECODE_ROWS:
                yield _table(rows, Sample)
                rows = []
        yield _table(rows, Sample)


class Decode:
    """Sample -> Clip, with a guarded child process that survives nothing but is replaced."""

    def __init__(self, clip: ClipSpec, seed: int, epochs: int, centred: bool, desk: Any) -> None:
        from liser_dist.guard import ClipDecoder

        self.clip, self.seed, self.epochs, self.centred = clip, seed, epochs, centred
        self.desk = desk
        self.decoder = ClipDecoder(clip)

    def __call__(self, samples: pa.Table) -> pa.Table:
        clips = [Sample.from_row(row) for row in samples.to_pylist()]
        clips = self._with_known_verdicts(clips)
        work = [(sample, self._start_share(sample)) for sample in clips]
        decoded = list(self.decoder.decode_all(work))
        self._report(clips, decoded)
        return _table(decoded, Clip)

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

    def _start_share(self, sample: Sample) -> float:
        """Where a longer clip's window lies: 0 at its start, 1 at its end."""
        if self.centred:
            return 0.5
        if self.clip.windows == "even":
            return (sample.epoch + 0.5) / self.epochs
        return stable_hash(f"{self.seed}/{sample.epoch}/{sample.key}") / 2**64

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
        teachers: TeachersSpec,
        emotions: Sequence[str],
        clip: ClipSpec,
        embeddings: bool,
        one_by_one: bool,
        threads: int,
        taught: Collection[str] | None,
    ) -> None:
        """`one_by_one`: a target must not depend on the clips beside it, to the last bit."""
        if not ray.get_gpu_ids():
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray would leave them in sight
        import torch

        from liser_dist.teachers import load_teacher

        torch.set_num_threads(threads)
        self.face_px, self.embeddings, self.one_by_one = clip.face_px, embeddings, one_by_one
        self.taught = taught
        self.failure: LiserError | None = None
        try:
            self.teachers = {
                name: load_teacher(spec, emotions, clip)
                for name, spec in (("speech", teachers.speech), ("face", teachers.face))
                if spec is not None
            }
        except LiserError as error:
            # Ray keeps the text alone of what an actor's start raises: told at the first clip.
            self.failure = error

    def __call__(self, rows: pa.Table) -> pa.Table:
        if self.failure is not None:
            raise self.failure
        clips = [Clip.from_row(row, self.face_px) for row in rows.to_pylist()]
        groups = [[clip] for clip in clips] if self.one_by_one else [clips]
        examples = [example for group in groups for example in self._teach(group)]
        return _table(examples, Example)

    def _teach(self, clips: list[Clip]) -> Iterator[Example]:
        silence = [Targets()] * len(clips)
        said = {name: self._ask(teacher, clips) for name, teacher in self.teachers.items()}
        speech, face = said.get("speech", silence), said.get("face", silence)
        for clip, heard, seen in zip(clips, speech, face, strict=True):
            if not self.embeddings:
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


def _without_embedding(said: Targets) -> Targets:
    return dataclasses.replace(said, embedding=said.embedding[:0])


def to_examples(batch: pa.Table) -> list[Example]:
    return [Example.from_row(row) for row in batch.to_pylist()]


def read_all(examples: Dataset) -> list[Example]:
    """Every example of a small dataset, by shard and index. Raises LiserError."""
    try:
        rows = [
            example
            for batch in examples.iter_batches(batch_size=64, batch_format="pyarrow")
            for example in to_examples(batch)
        ]
    except ray.exceptions.RayError as error:
        raise ours_in(error) from error
    return sorted(rows, key=lambda example: (example.shard, example.index))


def ours_in(error: BaseException) -> BaseException:
    """The LiserError that a task or worker raised, out of what Ray wrapped it in; else `error`."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, LiserError):
            return getattr(one, "cause", one)  # Ray's own double of it carries its traceback
        if id(one) not in seen:
            seen.add(id(one))
            inner = [getattr(one, "cause", None), one.__cause__]
            inner += [getattr(one, "controller_failure", None)]
            inner += list((getattr(one, "worker_failures", None) or {}).values())
            waiting += [other for other in inner if isinstance(other, BaseException)]
    return error

"""How large and fast a model is, alone in a process on one core.

Each is measured in a process of its own, so that what another loaded does not count, and without a
GPU, for a student is to run where there is none.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np

from liser_dist import storage
from liser_dist.errors import TeacherError
from liser_dist.model_folder import WEIGHTS_FILES, find_folder
from liser_dist.records import Clip, to_floats
from liser_dist.results import Record
from liser_dist.spec import ClipSpec
from liser_dist.teacher_spec import (
    AnyTeacher,
    BackboneTeacher,
    HuggingFaceTeacher,
    MockTeacher,
    OnnxTeacher,
    StudentTeacher,
)

WARM_UP, MOST, PATIENCE_S = 3, 300, 60.0
ENOUGH = 100  # windows, for what 99 of 100 take
Hear = Callable[[Clip], object]


class Footprint(Record):
    size_bytes: int  # of the weights' files
    load_s: float  # with the libraries that it needs
    windows: int  # of window_s each, on which the times were taken
    real_time_factor: float  # seconds for a second of sound, of which each is heard window_s times
    p99_ms: float | None  # from a streamed second to its answer, in 99 of 100 cases; None: too few
    memory_bytes: int  # resident, beyond a Python with numpy


def of_student(folder: Path, int8: bool, clips: Sequence[Clip], hop_s: float) -> Footprint:
    """`clips`: whole windows, one after the other. A window is heard every `hop_s`."""
    name = "model.int8.onnx" if int8 else "model.onnx"
    size_bytes = (folder / name).stat().st_size
    return _measured(partial(_load_student, folder, int8), clips, hop_s, size_bytes)


def of_teacher(
    spec: AnyTeacher,
    emotions: Sequence[str],
    clip: ClipSpec,
    clips: Sequence[Clip],
    hop_s: float,
) -> Footprint:
    """Of crops and sound that are there: decoding and finding faces is not in it.

    Raises TeacherError.
    """
    load = partial(_load_teacher, spec, emotions, clip)
    return _measured(load, clips, hop_s, _weights_bytes(spec))


def _weights_bytes(spec: AnyTeacher) -> int:
    match spec:
        case MockTeacher():
            return 0
        case OnnxTeacher():
            place = spec.model
        case StudentTeacher():
            place = storage.join(spec.model, "best.safetensors")
        case HuggingFaceTeacher() | BackboneTeacher():
            place = str(find_folder(spec.model, WEIGHTS_FILES))
    endings = (".onnx", ".safetensors")
    return sum(f.size_bytes for f in storage.list_files(place) if f.place.endswith(endings))


def _measured(
    load: Callable[[], Hear], clips: Sequence[Clip], hop_s: float, size_bytes: int
) -> Footprint:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_alone) as process:
        try:
            load_s, times_s, memory_bytes = process.submit(_listen, load, clips).result()
        except BrokenProcessPool as error:
            text = "the process that measured it was killed: was there enough memory?"
            raise TeacherError(text) from error
    enough = len(times_s) >= ENOUGH
    return Footprint(
        size_bytes=size_bytes,
        load_s=load_s,
        windows=len(times_s),
        real_time_factor=float(np.mean(times_s)) / hop_s,
        p99_ms=1000 * float(np.quantile(times_s, 0.99)) if enough else None,
        memory_bytes=memory_bytes,
    )


# ---------------------------------------------------------------- in the child


def _alone() -> None:
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _listen(load: Callable[[], Hear], clips: Sequence[Clip]) -> tuple[float, list[float], int]:
    """Seconds to load; seconds of each window; bytes."""
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    started = time.perf_counter()
    hear = load()
    load_s = time.perf_counter() - started
    times_s: list[float] = []
    for number in range(WARM_UP + MOST):
        began = time.perf_counter()
        hear(clips[number % len(clips)])
        times_s.append(time.perf_counter() - began)
        if number > WARM_UP and began - started > PATIENCE_S:
            break
    return load_s, times_s[WARM_UP:], process.memory_info().rss - before


# What they import is part of what is measured.


def _load_student(folder: Path, int8: bool) -> Hear:
    from liser_dist.predict import ExportedStudent

    student = ExportedStudent(folder, int8)
    return lambda clip: student.infer(to_floats(clip.waveform)[None])


def _load_teacher(spec: AnyTeacher, emotions: Sequence[str], clip: ClipSpec) -> Hear:
    import torch

    from liser_dist.teachers import load_teacher

    torch.set_num_threads(1)
    teacher = load_teacher(spec, emotions, clip)
    return lambda one: teacher.teach([one])

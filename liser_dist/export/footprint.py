"""Measures a model's file size, load time, latency and memory on one CPU core.

Each model runs in a process of its own, so that libraries loaded for another do not count, and
without a GPU, because students are meant to run where there is none.
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

from liser_dist.config.base import Record
from liser_dist.config.stream import ClipSpec
from liser_dist.config.teachers import TeacherSpec
from liser_dist.errors import TeacherError
from liser_dist.records import Clip, to_floats

_WARM_UP, _MAX_WINDOWS, _TIME_LIMIT_S = 3, 300, 60.0
_MIN_WINDOWS_FOR_P99 = 100
_Model = Callable[[Clip], object]


class Footprint(Record):
    """Size, speed and memory of one model.

    Attributes:
        size_bytes: Size of the weights' files.
        load_s: Seconds to load the model, including the imports it needs.
        windows: Number of windows that were timed.
        real_time_factor: Seconds of computation per second of audio, where a window is computed
            every hop.
        p99_ms: 99th percentile of the latency of one window; None if too few were timed.
        memory_bytes: Resident memory beyond that of Python with numpy.
    """

    size_bytes: int
    load_s: float
    windows: int
    real_time_factor: float
    p99_ms: float | None
    memory_bytes: int


def measure_student(folder: Path, int8: bool, clips: Sequence[Clip], hop_s: float) -> Footprint:
    """Measure an exported model.

    Args:
        folder: The exported folder.
        int8: Whether to measure the model with 8-bit weights.
        clips: Clips with a full window of audio each.
        hop_s: Seconds of audio between two windows of a stream.
    """
    name = "model.int8.onnx" if int8 else "model.onnx"
    size_bytes = (folder / name).stat().st_size
    return _measure(partial(_load_student, folder, int8), clips, hop_s, size_bytes)


def measure_teacher(
    spec: TeacherSpec,
    emotions: Sequence[str],
    clip: ClipSpec,
    clips: Sequence[Clip],
    hop_s: float,
) -> Footprint:
    """Measure a teacher on decoded clips; decoding and face detection are not included.

    Raises:
        TeacherError: The teacher cannot be loaded, or the measuring process was killed.
    """
    load = partial(_load_teacher, spec, emotions, clip)
    # Late: the measuring child imports this module, and what it loads would not be measured.
    from liser_dist.teachers.teachers import weights_bytes

    return _measure(load, clips, hop_s, weights_bytes(spec))


def _measure(
    load: Callable[[], _Model], clips: Sequence[Clip], hop_s: float, size_bytes: int
) -> Footprint:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_use_one_core) as process:
        try:
            load_s, times_s, memory_bytes = process.submit(_time_windows, load, clips).result()
        except BrokenProcessPool as error:
            raise TeacherError(
                "the process that measures the speed of a model was killed, probably because it "
                "ran out of memory: export on a machine with more of it"
            ) from error
    enough = len(times_s) >= _MIN_WINDOWS_FOR_P99
    return Footprint(
        size_bytes=size_bytes,
        load_s=load_s,
        windows=len(times_s),
        real_time_factor=float(np.mean(times_s)) / hop_s,
        p99_ms=1000 * float(np.quantile(times_s, 0.99)) if enough else None,
        memory_bytes=memory_bytes,
    )


# ---------------------------------------------------------------- in the child process


def _use_one_core() -> None:
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _time_windows(
    load: Callable[[], _Model], clips: Sequence[Clip]
) -> tuple[float, list[float], int]:
    """Return the seconds to load the model, the seconds for each window, and the bytes in use."""
    import psutil

    process = psutil.Process()
    before = process.memory_info().rss
    load_start = time.perf_counter()
    model = load()
    load_s = time.perf_counter() - load_start
    times_s: list[float] = []
    for number in range(_WARM_UP + _MAX_WINDOWS):
        start = time.perf_counter()
        model(clips[number % len(clips)])
        times_s.append(time.perf_counter() - start)
        if number > _WARM_UP and start - load_start > _TIME_LIMIT_S:
            break
    return load_s, times_s[_WARM_UP:], process.memory_info().rss - before


# The loaders import late, because their imports are part of what is measured.


def _load_student(folder: Path, int8: bool) -> _Model:
    from liser_dist.export.predict import ExportedStudent

    student = ExportedStudent(folder, int8)
    return lambda clip: student.infer(to_floats(clip.waveform)[None])


def _load_teacher(spec: TeacherSpec, emotions: Sequence[str], clip: ClipSpec) -> _Model:
    import torch

    from liser_dist.teachers.teachers import load_teacher

    torch.set_num_threads(1)
    teacher = load_teacher(spec, emotions, clip)
    return lambda window: teacher.teach([window])

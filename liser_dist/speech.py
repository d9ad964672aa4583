"""How much of a waveform is speech, by silero-vad's ONNX model.

The model file comes from the `silero-vad` package, which is never imported: it loads torch, which
a decoding process has no other use for.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liser_dist.records import to_floats

RATE_HZ = 16000  # the model's own
FRAME = 512  # samples that get one probability
CONTEXT = 64  # samples before them that the model sees too
THRESHOLD = 0.5  # silero-vad's default
FRAMES_AT_ONCE = 512  # what bounds the model's memory


def speech_s(waveform: NDArray[np.int16], sample_rate_hz: int) -> float:
    """Seconds of the waveform [samples] that are speech.

    Raises:
        ImportError: onnxruntime or silero-vad is not installed.
    """
    probabilities = _speech_probabilities(_at_model_rate(waveform, sample_rate_hz))
    return float((probabilities >= THRESHOLD).sum()) * FRAME / RATE_HZ


def _speech_probabilities(sound: NDArray[np.float32]) -> NDArray[np.float32]:
    """[samples at 16 kHz, -1..1] -> [frames of 32 ms], as the model's own loop would give them."""
    session = _model()
    count = -(-len(sound) // FRAME)
    padded = np.zeros(CONTEXT + count * FRAME, np.float32)
    padded[CONTEXT : CONTEXT + len(sound)] = sound
    frames = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME]
    hidden = cell = np.zeros((1, 1, 128), np.float32)
    parts = [np.empty(0, np.float32)]
    for first in range(0, count, FRAMES_AT_ONCE):
        inputs = {"input": frames[first : first + FRAMES_AT_ONCE], "h": hidden, "c": cell}
        part, hidden, cell = session.run(["speech_probs", "hn", "cn"], inputs)
        parts.append(part)
    return np.concatenate(parts, dtype=np.float32)


def _at_model_rate(waveform: NDArray[np.int16], sample_rate_hz: int) -> NDArray[np.float32]:
    """By straight lines: what aliases stays below what decides on speech."""
    sound = to_floats(waveform)
    if sample_rate_hz == RATE_HZ:
        return sound
    count = int(len(sound) * RATE_HZ / sample_rate_hz)
    where = np.arange(count) * (sample_rate_hz / RATE_HZ)
    return np.interp(where, np.arange(len(sound)), sound).astype(np.float32)


@functools.cache
def _model() -> Any:
    import onnxruntime

    package = importlib.util.find_spec("silero_vad")
    if package is None or not package.submodule_search_locations:
        raise ImportError("`clip.min_speech_s` needs the package silero-vad")
    file = Path(package.submodule_search_locations[0]) / "data" / "silero_vad_16k_sequence.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

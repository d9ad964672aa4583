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
    detector = SpeechDetector()
    return np.concatenate([detector.hear(sound), detector.end()])


class SpeechDetector:
    """Hears a sound piece by piece, and says of each 32 ms how likely they are speech.

    Raises:
        ImportError: onnxruntime or silero-vad is not installed.
    """

    def __init__(self) -> None:
        self._session = _model()
        self._hidden = self._cell = np.zeros((1, 1, 128), np.float32)
        self._waiting = np.zeros(CONTEXT, np.float32)  # what no frame has had yet, and its context

    def hear(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        """[samples at 16 kHz, -1..1] -> [frames that are whole by now]."""
        heard = np.concatenate([self._waiting, sound])
        count = (len(heard) - CONTEXT) // FRAME
        self._waiting = heard[count * FRAME :]
        if not count:
            return np.empty(0, np.float32)
        frames = np.lib.stride_tricks.sliding_window_view(heard, CONTEXT + FRAME)[::FRAME]
        return np.concatenate(
            [
                self._judge(frames[first : first + FRAMES_AT_ONCE])
                for first in range(0, count, FRAMES_AT_ONCE)
            ]
        )

    def end(self) -> NDArray[np.float32]:
        """The last frame, filled up with silence, if there is something in it."""
        rest = len(self._waiting) - CONTEXT
        return self.hear(np.zeros(FRAME - rest, np.float32)) if rest else np.empty(0, np.float32)

    def _judge(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs = {"input": frames, "h": self._hidden, "c": self._cell}
        said, self._hidden, self._cell = self._session.run(["speech_probs", "hn", "cn"], inputs)
        return np.asarray(said, np.float32)


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

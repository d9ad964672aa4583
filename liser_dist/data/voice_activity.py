"""Detects speech in a waveform with silero-vad's ONNX model.

The model file comes from the `silero-vad` package, which is never imported: importing it would load
torch, which a decoding process does not need.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from liser_dist.records import to_floats

_RATE_HZ = 16000  # the model's sample rate
FRAME_SAMPLES = 512  # samples that get one probability
_CONTEXT_SAMPLES = 64  # samples before a frame that the model gets, too
_THRESHOLD = 0.5  # silero-vad's default
_FRAMES_AT_ONCE = 512  # bounds the model's memory


def speech_s(waveform: NDArray[np.int16], sample_rate_hz: int) -> float:
    """Return how many seconds of a waveform [samples] are speech.

    Raises:
        ImportError: onnxruntime or silero-vad is not installed.
    """
    detector = SpeechDetector()
    sound = _resample(waveform, sample_rate_hz)
    probabilities = np.concatenate([detector.feed(sound), detector.finish()])
    return float((probabilities >= _THRESHOLD).sum()) * FRAME_SAMPLES / _RATE_HZ


class SpeechDetector:
    """Gives the probability of speech for each 32 ms of a sound that comes piece by piece.

    Raises:
        ImportError: onnxruntime or silero-vad is not installed.
    """

    def __init__(self) -> None:
        self._session = _load_model()
        self._hidden = self._cell = np.zeros((1, 1, 128), np.float32)
        self._pending = np.zeros(_CONTEXT_SAMPLES, np.float32)  # an unfinished frame with context

    def feed(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        """Add samples at 16 kHz in -1..1; return the probabilities of the completed frames."""
        pending = np.concatenate([self._pending, sound])
        count = (len(pending) - _CONTEXT_SAMPLES) // FRAME_SAMPLES
        self._pending = pending[count * FRAME_SAMPLES :]
        if not count:
            return np.empty(0, np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(
            pending, _CONTEXT_SAMPLES + FRAME_SAMPLES
        )
        frames = windows[::FRAME_SAMPLES]
        return np.concatenate(
            [
                self._run_model(frames[first : first + _FRAMES_AT_ONCE])
                for first in range(0, count, _FRAMES_AT_ONCE)
            ]
        )

    def finish(self) -> NDArray[np.float32]:
        """Return the probability of the last frame, padded with silence, if there is one."""
        rest = len(self._pending) - _CONTEXT_SAMPLES
        if not rest:
            return np.empty(0, np.float32)
        return self.feed(np.zeros(FRAME_SAMPLES - rest, np.float32))

    def _run_model(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs = {"input": frames, "h": self._hidden, "c": self._cell}
        outputs = self._session.run(["speech_probs", "hn", "cn"], inputs)
        probabilities, self._hidden, self._cell = outputs
        return np.asarray(probabilities, np.float32)


def _resample(waveform: NDArray[np.int16], sample_rate_hz: int) -> NDArray[np.float32]:
    """Resample to the model's rate by linear interpolation.

    Its aliasing stays below the frequencies that decide on speech.
    """
    sound = to_floats(waveform)
    if sample_rate_hz == _RATE_HZ:
        return sound
    count = int(len(sound) * _RATE_HZ / sample_rate_hz)
    positions = np.arange(count) * (sample_rate_hz / _RATE_HZ)
    return np.interp(positions, np.arange(len(sound)), sound).astype(np.float32)


@functools.cache
def _load_model() -> Any:
    import onnxruntime

    package = importlib.util.find_spec("silero_vad")
    if package is None or not package.submodule_search_locations:
        raise ImportError("`clip.min_speech_s` needs silero-vad: run `pip install silero-vad`")
    file = Path(package.submodule_search_locations[0]) / "data" / "silero_vad_16k_sequence.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

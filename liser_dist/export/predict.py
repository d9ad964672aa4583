"""Predicts emotions over time for audio or video files, or for audio samples from a pipe.

    python predict.py FILE...              a table for each file
    python predict.py --json FILE...       a line of JSON for each window
    ffmpeg -i INPUT -f s16le -ac 1 -ar 16000 - | python predict.py --stream

The script loads the student from the folder that it is in, and needs only the packages of
requirements.txt. A file is processed like a stream, window by window: a prediction depends on no
later audio.
"""

# ruff: noqa: E402
from __future__ import annotations

import time

_STARTED_S = time.perf_counter()  # before the imports, which take most of the start-up time

import argparse
import json
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import onnxruntime

DEFAULT_HOP_S = 1.0  # between window starts; less if the student's window is shorter
SILENCE_PEAK = 1e-3  # -60 dB; a model would assign an emotion to silence, too

_log = logging.getLogger(__name__)
_MIN_HOP_S = 0.01
_PIPE_CHUNK_S = 0.1
# A gap between audio frames that is filled with zeros; longer, and the timestamps were reset.
_MIN_GAP_S, _MAX_GAP_S = 0.1, 3600.0
_MISSING_S = 0.5  # less audio than the header declares by this much: the file is truncated
# First bytes of media files, which raw samples do not start with.
_FILE_SIGNATURES = (b"RIFF", b"ID3", b"OggS", b"fLaC", b"\x1aE\xdf\xa3")
_EXIT_USER_ERROR = 2
_Floats = Any  # numpy array of float32
Consumer = Callable[[str, Iterable["Prediction"]], None]  # given a file name and its predictions


class InputError(ValueError):
    """A mistake the user can fix: an unreadable file, or a folder that is not an export."""


@dataclass(frozen=True)
class Prediction:
    """What the student predicts for one window.

    Attributes:
        start_s: Start of the window, in seconds from the start of the file or stream.
        end_s: End of the window.
        emotion: The most probable emotion; None for a silent window.
        probabilities: Probability of each emotion; empty for a silent window.
        embedding: Embedding [dim]; empty for a silent window.
    """

    start_s: float
    end_s: float
    emotion: str | None
    probabilities: dict[str, float]
    embedding: _Floats


class ExportedStudent:
    """A student loaded from a folder that jobs/export.py wrote.

    Args:
        folder: The exported folder.
        int8: Whether to load the model with 8-bit weights.

    Raises:
        InputError: The folder is not an exported student, or a file in it is damaged.
    """

    def __init__(self, folder: str | Path, int8: bool = False) -> None:
        model = Path(folder) / ("model.int8.onnx" if int8 else "model.onnx")
        for file in (Path(folder) / "config.json", model):
            if not file.is_file():
                raise InputError(
                    f"{folder} is not an exported student, because {file.name} is missing: give a "
                    "folder that jobs/export.py wrote, or export the run first"
                )
        try:
            config = json.loads((Path(folder) / "config.json").read_text())
            self.emotions: list[str] = config["emotions"]
            self.rate_hz: int = config["sample_rate_hz"]
            self.window_s: float = config["window_s"]
            self.min_audio_s: float = config["least_s"]
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1  # more threads do not speed up so small a model
            self._session = onnxruntime.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises many types
            raise InputError(
                f"{folder} is not an exported student, or it is damaged ({error}): export it again"
            ) from error

    def predict(self, file: str | Path, hop_s: float | None = None) -> list[Prediction]:
        """Return the predictions for an audio or video file, one per window.

        Args:
            file: Any file that FFmpeg can read.
            hop_s: Seconds between window starts; 1 s by default.

        Raises:
            InputError: The file cannot be read, or holds too little audio.
        """
        return list(self.predict_stream(read_audio(file, self.rate_hz), hop_s))

    def predict_stream(
        self, audio: Iterable[_Floats], hop_s: float | None = None
    ) -> Iterator[Prediction]:
        """Yield a prediction every `hop_s`, as soon as its window is complete.

        Args:
            audio: Chunks of samples [samples] in -1..1 at `rate_hz`, of any length.
            hop_s: Seconds between window starts; 1 s by default.

        Raises:
            InputError: There is too little audio, or a sample is NaN or infinite.
        """
        hop_s = min(DEFAULT_HOP_S, self.window_s) if hop_s is None else hop_s
        if not _MIN_HOP_S <= hop_s <= self.window_s:
            bounds = f"{_MIN_HOP_S:g} to {self.window_s:g}"
            raise InputError(
                f"--hop-s {hop_s:g} is out of range: give a value from {bounds} seconds"
            )
        for start, window in split_windows(
            audio, self.rate_hz, self.window_s, hop_s, self.min_audio_s
        ):
            yield self._predict_window(start, window)

    def infer(self, waveforms: _Floats) -> tuple[_Floats, _Floats]:
        """Run the model on a batch.

        Args:
            waveforms: Samples [batch, samples] in -1..1 at `rate_hz`.

        Returns:
            Probabilities [batch, emotions] and embeddings [batch, dim].
        """
        probabilities, embeddings = self._session.run(None, {"waveform": waveforms})
        return probabilities, embeddings

    def _predict_window(self, start: int, window: _Floats) -> Prediction:
        times = (start / self.rate_hz, (start + len(window)) / self.rate_hz)
        if np.abs(window).max() < SILENCE_PEAK:
            return Prediction(*times, None, {}, np.empty(0, np.float32))
        batch, embeddings = self.infer(window[None])
        probabilities = dict(zip(self.emotions, batch[0].tolist(), strict=True))
        emotion = max(probabilities, key=probabilities.__getitem__)
        return Prediction(*times, emotion, probabilities, embeddings[0])


def split_windows(
    audio: Iterable[_Floats], rate_hz: int, window_s: float, hop_s: float, min_audio_s: float
) -> Iterator[tuple[int, _Floats]]:
    """Cut a stream of chunks into windows; the last window holds the remainder.

    Yields:
        The index of the window's first sample, and its samples.

    Raises:
        InputError: There is less than `min_audio_s` of audio, or a sample is NaN or infinite.
    """
    window, hop = round(window_s * rate_hz), round(hop_s * rate_hz)
    buffer = np.empty(0, np.float32)
    start = ended = 0
    for chunk in audio:
        if not np.isfinite(chunk).all():
            at = (start + len(buffer)) / rate_hz
            raise InputError(
                f"the audio has NaN or infinite samples after {at:.1f} s: encode the file again"
            )
        buffer = np.concatenate([buffer, np.clip(chunk, -1, 1)])
        while len(buffer) >= window:
            yield start, buffer[:window]
            ended = start + window
            start, buffer = start + hop, buffer[hop:]
    if start + len(buffer) > ended and len(buffer) >= min_audio_s * rate_hz:
        yield start, buffer
    elif not ended:
        amount = f"only {len(buffer) / rate_hz:.2f} s of audio" if len(buffer) else "no audio"
        raise InputError(f"the input has {amount}; the student needs at least {min_audio_s:g} s")


def read_audio(file: str | Path, rate_hz: int) -> Iterator[_Floats]:
    """Yield the audio of a file, mono, as chunks [samples] in -1..1 at `rate_hz`.

    The first chunk starts with the file, and gaps are filled with zeros, so that times are those of
    the film.

    Raises:
        InputError: The file cannot be opened or decoded, or has no audio.
    """
    try:
        with open(file, "rb") as stream, av.open(stream, metadata_errors="replace") as media:
            audio = media.streams.best("audio")
            if audio is None or audio.codec_context is None:
                raise InputError("the file has no audio stream that FFmpeg can decode")
            if audio.rate < rate_hz:
                _log.warning(
                    "%s: the audio is sampled at %d Hz, below the student's %d Hz; it lacks "
                    "frequencies above %d Hz, and predictions may be worse",
                    file, audio.rate, rate_hz, audio.rate // 2,
                )  # fmt: skip
            yield from _read_stream(media, audio, rate_hz)
    except av.FFmpegError as error:
        raise InputError(
            f"FFmpeg cannot read the file as audio or video: {error.strerror}"
        ) from error
    except OSError as error:
        raise InputError(f"the file cannot be opened: {error.strerror}") from error


def _read_stream(media: Any, audio: Any, rate_hz: int) -> Iterator[_Floats]:
    """Yield the resampled audio of one stream, with zeros in its gaps."""
    start_s, decoded_s = (media.start_time or 0) / av.time_base, 0.0
    resampler: Any = None
    resampled_format = None
    for frame in _decode_frames(media, audio):
        gap_s = 0.0 if frame.time is None else frame.time - start_s - decoded_s
        if _MIN_GAP_S < gap_s < _MAX_GAP_S:
            yield np.zeros(round(gap_s * rate_hz), np.float32)
            decoded_s += gap_s
        decoded_s += frame.samples / frame.sample_rate
        frame_format = (frame.format.name, frame.layout.name, frame.sample_rate)
        if frame_format != resampled_format:  # the first frame, or the format changes midway
            resampler, resampled_format = av.AudioResampler("flt", "mono", rate_hz), frame_format
        for chunk in resampler.resample(frame):
            yield chunk.to_ndarray()[0]
    for chunk in resampler.resample(None) if resampler is not None else ():
        yield chunk.to_ndarray()[0]
    declared_s = float((audio.duration or 0) * (audio.time_base or 0))
    if declared_s - decoded_s > _MISSING_S:
        _log.warning("%s: the audio, and so the predictions, end at %.1f s of %.1f s; the file is "
                     "damaged or truncated",
                     media.name, decoded_s, declared_s)  # fmt: skip


def _decode_frames(media: Any, audio: Any) -> Iterator[Any]:
    """Yield the frames of the stream; a damaged packet leaves a gap."""
    for packet in media.demux(audio):
        with suppress(av.error.InvalidDataError):
            yield from packet.decode()


def read_pcm(stream: IO[bytes], rate_hz: int) -> Iterator[_Floats]:
    """Yield raw 16-bit samples (s16le, mono, `rate_hz`) as they arrive, as chunks in -1..1.

    Raises:
        InputError: The stream is a media file and not raw samples.
    """
    chunks = iter(partial(stream.read, 2 * round(_PIPE_CHUNK_S * rate_hz)), b"")
    for number, pcm in enumerate(chunks):
        if not number and (pcm.startswith(_FILE_SIGNATURES) or pcm[4:8] == b"ftyp"):
            raise InputError(
                "stdin holds a media file, not raw samples: pass the file name instead of --stream"
            )
        yield np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2").astype(np.float32) / 32768


# ---------------------------------------------------------------- command line


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `run_command` reads."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="audio or video file")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="read raw samples from stdin: s16le, mono, at the rate in config.json (16 kHz by "
        "default)",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per window")
    parser.add_argument("--hop-s", type=float, help="seconds between window starts (default 1)")
    parser.add_argument("--int8", action="store_true", help="use the model with 8-bit weights")


def print_predictions(
    predictions: Iterable[Prediction], name: str, emotions: Sequence[str], as_json: bool
) -> Iterator[Prediction]:
    """Print each prediction as it arrives, because a stream may be read live, and yield it."""
    width = 2 + max(map(len, (*emotions, "(silence)")))
    for number, prediction in enumerate(predictions):
        start_s, end_s = prediction.start_s, prediction.end_s
        if as_json:
            record = {
                "file": name,
                "start_s": round(start_s, 3),
                "end_s": round(end_s, 3),
                "emotion": prediction.emotion,
                "probabilities": {
                    emotion: round(probability, 4)
                    for emotion, probability in prediction.probabilities.items()
                },
            }
            line = json.dumps(record)
        else:
            if not number:
                header = "".join(f"{emotion:>{width}}" for emotion in emotions)
                print(f"{name}\n{'from s':>8}{'to s':>8}  {'':<{width}}{header}")
            emotion = f"{prediction.emotion or '(silence)':<{width}}"
            cells = "".join(f"{value:>{width}.2f}" for value in prediction.probabilities.values())
            line = f"{start_s:8.2f}{end_s:8.2f}  {emotion}{cells}"
        print(line, flush=True)
        yield prediction


def discard(_: str, predictions: Iterable[Prediction]) -> None:
    """Consume predictions that need nothing beyond being printed."""
    deque(predictions, maxlen=0)


def run_command(
    options: argparse.Namespace, folder: str | Path, consume: Consumer = discard
) -> int:
    """Predict for each file, or for the pipe, and print the predictions.

    Args:
        options: Arguments of a parser with `add_options`.
        folder: The exported student.
        consume: Called with each file's name and its predictions.

    Returns:
        The exit status.
    """
    imports_s = time.perf_counter() - _STARTED_S
    status = 0
    # File names may hold characters that the terminal cannot encode.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        if bool(options.files) == options.stream:
            raise InputError("give either one or more files, or --stream")
        student = ExportedStudent(folder, options.int8)
        model_s = time.perf_counter() - _STARTED_S - imports_s
        print(f"load times: imports {imports_s:.2f} s, model {model_s:.2f} s", file=sys.stderr)
        for name in options.files or ["stream"]:
            pcm = read_pcm(sys.stdin.buffer, student.rate_hz) if options.stream else None
            audio = pcm or read_audio(name, student.rate_hz)
            predictions = student.predict_stream(audio, options.hop_s)
            try:
                consume(name, print_predictions(predictions, name, student.emotions, options.json))
            except InputError as error:  # continue with the next file
                print(f"error: {name}: {error}", file=sys.stderr)
                status = _EXIT_USER_ERROR
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = _EXIT_USER_ERROR
    except KeyboardInterrupt:
        status = 130  # the shell's convention for a program stopped by Ctrl-C
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


if __name__ == "__main__":
    command_line = argparse.ArgumentParser(description="Predict emotions over time from speech.")
    add_options(command_line)
    sys.exit(run_command(command_line.parse_args(), Path(__file__).parent))

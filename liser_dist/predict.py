"""Emotions over time: of audio or video files, or of sound that comes through a pipe.

    python predict.py FILE...              a table for each file
    python predict.py --json FILE...       a line of JSON for each window
    ffmpeg -i INPUT -f s16le -ac 1 -ar 16000 - | python predict.py --stream

It takes the student in its own folder, and what requirements.txt names. Of a file it hears what it
would hear of a stream, window by window: nothing that comes later enters an answer.
"""

# ruff: noqa: E402
from __future__ import annotations

import time

_STARTED_S = time.perf_counter()  # before the imports, which take longer than the rest

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

log = logging.getLogger(__name__)
HOP_S = 1.0  # from window to window; the window's own length, where that is shorter
LEAST_HOP_S = 0.01
SILENCE = 1e-3  # no sample louder, -60 dB: a model would name an emotion all the same
PIECE_S = 0.1  # of a pipe, read at once
GAP_S, LONGEST_GAP_S = 0.1, 3600.0  # in a film's sound; longer, and its clock was set anew
MISSING_S = 0.5  # of sound that a file's header says there is
# How files begin, of which samples would not.
FILES = (b"RIFF", b"ID3", b"OggS", b"fLaC", b"\x1aE\xdf\xa3")
EXIT_USER_MISTAKE = 2
Floats = Any  # numpy array of float32
Use = Callable[[str, Iterable["Answer"]], None]  # of a file's name and its answers


class InputError(ValueError):
    """What the user can mend: a file that cannot be heard, a folder that is no student."""


@dataclass(frozen=True)
class Answer:
    """What the student says of a window."""

    start_s: float
    end_s: float
    emotion: str | None  # None: silence
    probabilities: dict[str, float]  # empty: silence
    embedding: Floats  # [dim], or empty


class ExportedStudent:
    """A folder that jobs/export.py wrote, ready to answer.

    Raises InputError where the folder is none.
    """

    def __init__(self, folder: str | Path, int8: bool = False) -> None:
        model = Path(folder) / ("model.int8.onnx" if int8 else "model.onnx")
        for file in (Path(folder) / "config.json", model):
            if not file.is_file():
                raise InputError(
                    f"{folder} is no exported student, for it has no {file.name}: give the folder "
                    "that jobs/export.py wrote, or export the run first"
                )
        try:
            config = json.loads((Path(folder) / "config.json").read_text())
            self.emotions: list[str] = config["emotions"]
            self.rate_hz: int = config["sample_rate_hz"]
            self.window_s: float = config["window_s"]
            self.least_s: float = config["least_s"]
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1  # so small a model gains nothing by more
            self._session = onnxruntime.InferenceSession(
                str(model), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's are of many types
            raise InputError(
                f"{folder} is no exported student, or a damaged one ({error}): export it again"
            ) from error

    def predict(self, file: str | Path, hop_s: float | None = None) -> list[Answer]:
        """Of an audio or video file. Raises InputError."""
        return list(self.listen(read_file(file, self.rate_hz), hop_s))

    def listen(self, sound: Iterable[Floats], hop_s: float | None = None) -> Iterator[Answer]:
        """Pieces of sound [samples], in -1..1 at `rate_hz` -> an answer every `hop_s`.

        Raises InputError: it is too short, or has samples that are no numbers.
        """
        hop_s = min(HOP_S, self.window_s) if hop_s is None else hop_s
        if not LEAST_HOP_S <= hop_s <= self.window_s:
            bounds = f"{LEAST_HOP_S:g} to {self.window_s:g}"
            raise InputError(f"a window every {hop_s:g} s (--hop-s): give {bounds}")
        for start, heard in windows(sound, self.rate_hz, self.window_s, hop_s, self.least_s):
            yield self._answer(start, heard)

    def infer(self, waveforms: Floats) -> tuple[Floats, Floats]:
        """[batch, samples] -> probabilities [batch, emotions], embeddings [batch, dim]."""
        probabilities, embeddings = self._session.run(None, {"waveform": waveforms})
        return probabilities, embeddings

    def _answer(self, start: int, heard: Floats) -> Answer:
        times = (start / self.rate_hz, (start + len(heard)) / self.rate_hz)
        if np.abs(heard).max() < SILENCE:
            return Answer(*times, None, {}, np.empty(0, np.float32))
        probabilities, embeddings = self.infer(heard[None])
        shares = dict(zip(self.emotions, probabilities[0].tolist(), strict=True))
        return Answer(*times, max(shares, key=shares.__getitem__), shares, embeddings[0])


def windows(
    sound: Iterable[Floats], rate_hz: int, window_s: float, hop_s: float, least_s: float
) -> Iterator[tuple[int, Floats]]:
    """Pieces of any length -> (first sample, samples) of each window; the last is what is left."""
    window, hop = round(window_s * rate_hz), round(hop_s * rate_hz)
    held = np.empty(0, np.float32)
    start = ended = 0
    for piece in sound:
        if not np.isfinite(piece).all():
            at = (start + len(held)) / rate_hz
            raise InputError(f"samples that are no numbers (NaN or infinite), {at:.1f} s into it")
        held = np.concatenate([held, np.clip(piece, -1, 1)])
        while len(held) >= window:
            yield start, held[:window]
            ended = start + window
            start, held = start + hop, held[hop:]
    if start + len(held) > ended and len(held) >= least_s * rate_hz:
        yield start, held
    elif not ended:
        found = f"{len(held) / rate_hz:.2f} s of sound" if len(held) else "no sound"
        raise InputError(f"there is {found} in it; {least_s:g} s are needed")


def read_file(file: str | Path, rate_hz: int) -> Iterator[Floats]:
    """The sound of a file, mono, as pieces [samples]. Raises InputError.

    It begins with the film, and where it pauses there are zeros: times are those of the film.
    """
    try:
        with open(file, "rb") as stream, av.open(stream, metadata_errors="replace") as media:
            sound = media.streams.best("audio")
            if sound is None or sound.codec_context is None:
                raise InputError("there is no sound in it that FFmpeg can decode")
            if sound.rate < rate_hz:
                log.warning(
                    "%s: sound of %d Hz, and the student learned from %d Hz: it misses what is "
                    "above %d Hz", file, sound.rate, rate_hz, sound.rate // 2,
                )  # fmt: skip
            yield from _hear(media, sound, rate_hz)
    except av.FFmpegError as error:
        raise InputError(f"FFmpeg cannot read it as audio or video: {error.strerror}") from error
    except OSError as error:
        raise InputError(f"it cannot be opened: {error.strerror}") from error


def _hear(media: Any, sound: Any, rate_hz: int) -> Iterator[Floats]:
    begun_s, heard_s = (media.start_time or 0) / av.time_base, 0.0
    resampler: Any = None
    resampled = None
    for frame in _decode(media, sound):
        gap_s = 0.0 if frame.time is None else frame.time - begun_s - heard_s
        if GAP_S < gap_s < LONGEST_GAP_S:
            yield np.zeros(round(gap_s * rate_hz), np.float32)
            heard_s += gap_s
        heard_s += frame.samples / frame.sample_rate
        how = (frame.format.name, frame.layout.name, frame.sample_rate)
        if how != resampled:  # at first, and where a recording changes
            resampler, resampled = av.AudioResampler("flt", "mono", rate_hz), how
        for piece in resampler.resample(frame):
            yield piece.to_ndarray()[0]
    for piece in resampler.resample(None) if resampler is not None else ():
        yield piece.to_ndarray()[0]
    said_s = float((sound.duration or 0) * (sound.time_base or 0))
    if said_s - heard_s > MISSING_S:
        log.warning("%s: its sound ends after %.1f s of %.1f s: it is damaged or cut short",
                    media.name, heard_s, said_s)  # fmt: skip


def _decode(media: Any, sound: Any) -> Iterator[Any]:
    """Its frames; damaged packets are a pause."""
    for packet in media.demux(sound):
        with suppress(av.error.InvalidDataError):
            yield from packet.decode()


def read_pcm(stream: IO[bytes], rate_hz: int) -> Iterator[Floats]:
    """16-bit samples (s16le, mono, `rate_hz`) that come through a pipe, as they come.

    Raises InputError: it is a file.
    """
    pieces = iter(partial(stream.read, 2 * round(PIECE_S * rate_hz)), b"")
    for number, pcm in enumerate(pieces):
        if not number and (pcm.startswith(FILES) or pcm[4:8] == b"ftyp"):
            raise InputError("this is a file and not samples: give its name in place of --stream")
        yield np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2").astype(np.float32) / 32768


# ---------------------------------------------------------------- the command


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help="audio or video")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="s16le from stdin, mono, 16 kHz or what config.json says",
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON for each window")
    parser.add_argument("--hop-s", type=float, help="seconds from window to window; 1")
    parser.add_argument("--int8", action="store_true", help="the smaller of the two models")


def shown(
    answers: Iterable[Answer], name: str, emotions: Sequence[str], as_json: bool
) -> Iterator[Answer]:
    """The same, printed as they come: somebody may be waiting at the other end of a pipe."""
    width = 2 + max(map(len, (*emotions, "(silence)")))
    for number, one in enumerate(answers):
        if as_json:
            times = {"file": name, "start_s": round(one.start_s, 3), "end_s": round(one.end_s, 3)}
            shares = {emotion: round(share, 4) for emotion, share in one.probabilities.items()}
            line = json.dumps({**times, "emotion": one.emotion, "probabilities": shares})
        else:
            if not number:
                heads = "".join(f"{emotion:>{width}}" for emotion in emotions)
                print(f"{name}\n{'from s':>8}{'to s':>8}  {'':<{width}}{heads}")
            said = f"{one.emotion or '(silence)':<{width}}"
            found = "".join(f"{share:>{width}.2f}" for share in one.probabilities.values())
            line = f"{one.start_s:8.2f}{one.end_s:8.2f}  {said}{found}"
        print(line, flush=True)
        yield one


def forget(_: str, answers: Iterable[Answer]) -> None:
    """They were shown, and are of no further use."""
    deque(answers, maxlen=0)


def main(asked: argparse.Namespace, folder: str | Path, use: Use = forget) -> int:
    """Answers each file, or the pipe, and hands on what was shown; returns the exit status."""
    imported_s = time.perf_counter() - _STARTED_S
    status = 0
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names of files
    try:
        if bool(asked.files) == asked.stream:
            raise InputError("give files, or --stream")
        student = ExportedStudent(folder, asked.int8)
        loaded_s = time.perf_counter() - _STARTED_S - imported_s
        print(f"imports {imported_s:.2f} s, model {loaded_s:.2f} s", file=sys.stderr)
        for name in asked.files or ["stream"]:
            piped = read_pcm(sys.stdin.buffer, student.rate_hz) if asked.stream else None
            answers = student.listen(piped or read_file(name, student.rate_hz), asked.hop_s)
            try:
                use(name, shown(answers, name, student.emotions, asked.json))
            except InputError as error:  # the next file may be better
                print(f"error: {name}: {error}", file=sys.stderr)
                status = EXIT_USER_MISTAKE
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        status = EXIT_USER_MISTAKE
    except KeyboardInterrupt:
        status = 130  # as of any program that was interrupted
    except BrokenPipeError:  # whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Emotions over time, of what is said.")
    add_options(options)
    sys.exit(main(options.parse_args(), Path(__file__).parent))

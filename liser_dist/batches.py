"""Examples -> StudentBatch: padded, augmented, with the labels and what the teachers said.

What is random about a clip is drawn from (seed, epoch, key), so that it does not depend on which
worker sees it, nor on what was drawn before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from liser_dist.features import HOP_S, LogMel
from liser_dist.records import Example, stable_hash, to_floats
from liser_dist.spec import AugmentSpec, DistillSpec

Floats = NDArray[np.float32]
T = TypeVar("T")
NO_LABEL = -100  # what torch's cross entropy leaves out
NO_NUMBER = -1
TEACHERS = ("speech", "face")
# What RAVDESS and CREMA-D say, as shares; whatever else is no number is not known.
_INTENSITIES = {"normal": 0.5, "strong": 1.0, "low": 1 / 3, "medium": 2 / 3, "high": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherBatch:
    """What one teacher said of the clips of a batch."""

    logits: Tensor  # [batch, emotions], 0 where nothing was said
    kept: Tensor  # [batch] share of its probability on emotions of the job, 0 where nothing
    given: Tensor  # [batch] bool: it has logits for the clip
    embedding: Tensor  # [batch, dim], 0 where nothing
    embedded: Tensor  # [batch] bool: it has an embedding of the clip

    def silent(self) -> Self:
        """The same batch of which this teacher has said nothing."""
        return _each(self, torch.zeros_like)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentBatch:
    """What a student sees in a step, on one worker."""

    mel: Tensor  # [batch, frames, mels]
    frames: Tensor  # [batch] frames that hold sound
    faces: Tensor  # [batch, n, px, px] grey, 0 to 1; none of them for students that only hear
    seen: Tensor  # [batch, n] bool: there is one
    label: Tensor  # [batch] emotion, or NO_LABEL
    intensity: Tensor  # [batch] 0 to 1; 1 where it is not known
    clip: Tensor  # [batch] its number among the unlabelled clips of all epochs, or NO_NUMBER
    speech: TeacherBatch
    face: TeacherBatch

    def teacher(self, name: str) -> TeacherBatch:
        found: TeacherBatch = getattr(self, name)
        return found

    def with_teacher(self, name: str, said: TeacherBatch) -> Self:
        return replace(self, speech=said) if name == "speech" else replace(self, face=said)

    def to(self, device: torch.device) -> Self:
        return _each(self, lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, chosen: Tensor) -> Self:
        """The batch of these rows alone; shuffled, when they are."""
        return _each(self, lambda tensor: tensor[chosen])


def _each(record: Any, change: Any) -> Any:
    """The same record with every tensor changed."""
    changed = {}
    for column in fields(record):
        value = getattr(record, column.name)
        changed[column.name] = change(value) if isinstance(value, Tensor) else _each(value, change)
    return replace(record, **changed)


def intensity_of(text: str) -> float:
    """0 to 1; 1 where it is not known."""
    try:
        return min(1.0, max(0.0, _INTENSITIES.get(text) or float(text)))
    except ValueError:
        return 1.0


def played(waveform: Floats, speed: float) -> Floats:
    """So much faster: [samples] -> [samples / speed]."""
    at = np.arange(int(len(waveform) / speed)) * speed
    return np.interp(at, np.arange(len(waveform)), waveform).astype(np.float32)


def in_a_room(waveform: Floats, decay_s: float, rate_hz: int, draw: np.random.Generator) -> Floats:
    """The sound and what a room adds: noise that dies away by 60 dB in `decay_s`; as loud, as long.

    Polack's model of a room's late response (1988), with half of the energy in it.
    """
    from scipy.signal import fftconvolve  # heavy, and seldom wanted

    tail = draw.standard_normal(max(1, round(decay_s * rate_hz)))
    tail *= 10 ** (-3 * np.arange(len(tail)) / len(tail))
    response = np.concatenate([[1.0], tail / np.linalg.norm(tail)])
    heard = fftconvolve(waveform, response)[: len(waveform)]
    level = np.sqrt(np.mean(waveform**2) / max(1e-12, np.mean(heard**2)))
    return (heard * level).astype(np.float32)


def labelled_turn(clips: Sequence[T], wanted: int, step: int, seed: int) -> list[T]:
    """The labelled clips of a step, of all workers: a walk through seeded shuffles of them all."""
    wanted = min(wanted, len(clips))
    places = [divmod(place, len(clips)) for place in range(step * wanted, (step + 1) * wanted)]
    order = {
        lap: np.random.default_rng([seed, lap]).permutation(len(clips))
        for lap in {lap for lap, _ in places}
    }
    return [clips[order[lap][place]] for lap, place in places]


class Batcher:
    """Builds batches of examples for students that hear `sample_rate_hz` and see `mels` bands."""

    def __init__(
        self,
        features: LogMel,
        emotions: Sequence[str],
        embeddings: Mapping[str, int],
        augment: AugmentSpec,
        seed: int,
        window_samples: int,
        first_clips: Mapping[tuple[int, str], int] | None = None,
        faces: tuple[int, int] = (0, 0),
    ) -> None:
        """`embeddings`: the width of each teacher's embedding that the loss needs.

        `faces`: how many a student sees of a clip at most, and their size in pixels.

        `first_clips`: the number of each epoch's and shard's first clip, where they are numbered.
        """
        self.features = features
        self.emotions = list(emotions)
        self.embeddings = embeddings
        self.augment = augment
        self.seed = seed
        self.window_samples = window_samples
        self.first_clips = first_clips or {}
        self.most_faces, self.face_px = faces

    @classmethod
    def of(
        cls,
        spec: DistillSpec,
        embeddings: Mapping[str, int] | None = None,
        first_clips: Mapping[tuple[int, str], int] | None = None,
    ) -> Self:
        """A job's."""
        return cls(
            LogMel(spec.clip.sample_rate_hz, spec.student.mels),
            spec.emotions,
            embeddings or {},
            spec.augment,
            spec.seed,
            round(spec.clip.window_s * spec.clip.sample_rate_hz),
            first_clips,
            (spec.clip.faces if spec.student.seen_px else 0, spec.student.seen_px),
        )

    def batch(
        self, unlabelled: Sequence[Example], labelled: Sequence[Example] = (), epoch: int = 0
    ) -> StudentBatch:
        """Unlabelled clips (labels unseen), then labelled ones (teachers unheard).

        With no clip at all, one silent row that no loss counts: every worker takes every step.
        `epoch` draws the augmentation of labelled clips, which have no epoch of their own.
        """
        examples = [*unlabelled, *labelled]
        draws = [self._draw(clip.key, clip.epoch) for clip in unlabelled]
        draws += [self._draw(clip.key, epoch) for clip in labelled]
        mel, frames = self.heard(examples, draws)
        self._mask_bands_and_spans(mel, frames, draws)
        faces, seen = self.seen(examples, draws)
        label = [NO_LABEL] * len(unlabelled)
        label += [self.emotions.index(clip.emotion) for clip in labelled]
        taught = [*unlabelled, *(Example(**clip.provenance()) for clip in labelled)]
        return StudentBatch(
            mel=mel,
            frames=frames,
            faces=faces,
            seen=seen,
            label=torch.tensor(label or [NO_LABEL]),
            intensity=torch.tensor([intensity_of(clip.intensity) for clip in examples] or [1.0]),
            clip=torch.tensor(
                [*map(self._number, unlabelled), *([NO_NUMBER] * len(labelled))] or [NO_NUMBER]
            ),
            speech=self._teacher(taught, "speech"),
            face=self._teacher(taught, "face"),
        )

    def _number(self, clip: Example) -> int:
        first = self.first_clips.get((clip.epoch, clip.shard))
        return NO_NUMBER if first is None else first + clip.index

    def heard(
        self, examples: Sequence[Example], draws: Sequence[np.random.Generator] = ()
    ) -> tuple[Tensor, Tensor]:
        """[batch, frames, mels] and [batch] frames of sound; always of the window's length.

        `draws`: how loud and noisy each is made; as it is, without.
        """
        if any(clip.mel.size for clip in examples):
            return self._kept_mel(examples)
        waveforms = [to_floats(clip.waveform) for clip in examples]
        if draws:
            waveforms = [self._varied(*one) for one in zip(waveforms, draws, strict=True)]
        return self._mel(waveforms)

    def seen(
        self, examples: Sequence[Example], draws: Sequence[np.random.Generator] = ()
    ) -> tuple[Tensor, Tensor]:
        """[batch, n, px, px] from 0 to 1, and [batch, n] bool where there is a face.

        `draws`: which way each looks and in what light; as it is, without.
        """
        rows, px = max(1, len(examples)), self.face_px
        faces = torch.zeros(rows, self.most_faces, px, px)
        there = torch.zeros(rows, self.most_faces, dtype=torch.bool)
        for row, example in enumerate(examples):
            if not (example.faces.size and self.most_faces):
                continue
            pixels = torch.from_numpy(example.faces.astype(np.float32) / 255).reshape(-1, px, px)
            if draws:
                pixels = pixels.flip(2) if draws[row].uniform() < 0.5 else pixels
                pixels = (pixels * draws[row].uniform(0.8, 1.2)).clamp(max=1)
            faces[row, : len(pixels)], there[row, : len(pixels)] = pixels, True
        return faces, there

    def with_mel(self, clip: Example) -> Example:
        """The clip with its log-mel in place of the waveform; as it is when it was rejected."""
        if clip.rejected:
            return clip
        mel, frames = self._mel([to_floats(clip.waveform)])
        kept = mel[0, : int(frames[0])].numpy().astype(np.float16).ravel()
        return replace(clip, waveform=clip.waveform[:0], mel=kept)

    def _kept_mel(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """The same of clips that bring their log-mel."""
        silent, _ = self._mel([])
        mel = silent.repeat(len(examples), 1, 1)
        frames = torch.zeros(len(examples), dtype=torch.long)
        for row, clip in enumerate(examples):
            sound = torch.from_numpy(clip.mel.astype(np.float32)).reshape(-1, mel.shape[2])
            mel[row, : len(sound)], frames[row] = sound, len(sound)
        return mel, frames

    def _mel(self, waveforms: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
        padded = torch.zeros(max(1, len(waveforms)), self.window_samples)
        lengths = torch.zeros(len(padded), dtype=torch.long)
        for row, waveform in enumerate(waveforms):
            lengths[row] = len(waveform)
            padded[row, : len(waveform)] = torch.from_numpy(waveform)
        with torch.no_grad():
            return self.features(padded), self.features.frames(lengths)

    def _draw(self, key: str, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, stable_hash(key)])

    def _varied(self, waveform: Floats, draw: np.random.Generator) -> Floats:
        if self.augment.speed:
            waveform = played(waveform, 1 + draw.uniform(-1, 1) * self.augment.speed)
            waveform = waveform[: self.window_samples]
        if self.augment.reverberation_s:
            rate = int(self.features.spectrogram.sample_rate)
            waveform = in_a_room(
                waveform, draw.uniform() * self.augment.reverberation_s, rate, draw
            )
        gain_db = draw.uniform(-1, 1) * self.augment.gain_db
        waveform = waveform * np.float32(10 ** (gain_db / 20))
        if self.augment.noise_db:
            ratio_db = self.augment.noise_db + draw.uniform(0, 20)
            level = float(np.sqrt(np.mean(waveform**2))) * 10 ** (-ratio_db / 20)
            waveform = waveform + draw.standard_normal(len(waveform), np.float32) * level
        return waveform.astype(np.float32, copy=False)

    def _mask_bands_and_spans(
        self, mel: Tensor, frames: Tensor, draws: Sequence[np.random.Generator]
    ) -> None:
        """SpecAugment (Park et al., 2019): two bands and two spans of each clip set to its mean."""
        bands = round(self.augment.frequency_mask * mel.shape[2])
        span = round(self.augment.time_mask_s / HOP_S)
        if not bands and not span:
            return
        for row, draw in enumerate(draws):
            length = int(frames[row])
            mean = float(mel[row, :length].mean())
            for _ in range(2):
                width, start = draw.integers(0, bands + 1), draw.uniform()
                first = int(start * (mel.shape[2] - width))
                mel[row, :, first : first + width] = mean
                width, start = draw.integers(0, min(span, length // 2) + 1), draw.uniform()
                first = int(start * (length - width))
                mel[row, first : first + width] = mean

    def _teacher(self, examples: Sequence[Example], name: str) -> TeacherBatch:
        rows = max(1, len(examples))
        logits = torch.zeros(rows, len(self.emotions))
        embedding = torch.zeros(rows, self.embeddings.get(name, 0))
        kept, given, embedded = torch.zeros(rows), torch.zeros(rows), torch.zeros(rows)
        for row, example in enumerate(examples):
            said = getattr(example, f"{name}_logits")
            if said.size:
                logits[row] = torch.from_numpy(said.astype(np.float32))
                kept[row], given[row] = getattr(example, f"{name}_kept"), 1
            vector = getattr(example, f"{name}_embedding")
            if vector.size and embedding.shape[1]:
                embedding[row] = torch.from_numpy(vector.astype(np.float32))
                embedded[row] = 1
        return TeacherBatch(
            logits=logits,
            kept=kept,
            given=given.bool(),
            embedding=embedding,
            embedded=embedded.bool(),
        )

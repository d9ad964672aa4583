"""Builds the batches that students learn from: examples -> `StudentBatch`.

A batch is padded and augmented, and holds labels and teacher targets. What is random about a clip
is drawn from (seed, epoch, key): it depends neither on the worker that has the clip nor on earlier
draws.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from liser_dist.config.distill import DistillSpec
from liser_dist.config.student import AugmentSpec
from liser_dist.records import TEACHERS, Example, stable_hash, to_floats
from liser_dist.students.augmentation import augment_faces, augment_waveform, mask_mel
from liser_dist.students.features import AudioInput

_T = TypeVar("_T")
NO_LABEL = -100  # torch's cross entropy ignores it
# Intensity as RAVDESS and CREMA-D name it, as a share; any other text that is no number is unknown.
_INTENSITIES = {"normal": 0.5, "strong": 1.0, "low": 1 / 3, "medium": 2 / 3, "high": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherBatch:
    """The targets of one teacher for the clips of a batch."""

    logits: Tensor  # [batch, emotions], 0 where there are none
    mass: Tensor  # [batch] share of its probability on emotions of the job, 0 where there is none
    given: Tensor  # [batch] bool: it has logits for the clip
    embedding: Tensor  # [batch, dim], 0 where there is none
    embedded: Tensor  # [batch] bool: it has an embedding of the clip

    def emptied(self) -> Self:
        """Return a batch of the same shape without any target."""
        return self.map(torch.zeros_like)

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the batch with every tensor changed."""
        return replace(
            self,
            logits=change(self.logits),
            mass=change(self.mass),
            given=change(self.given),
            embedding=change(self.embedding),
            embedded=change(self.embedded),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentBatch:
    """The clips that one worker's students learn from in a step."""

    mel: Tensor  # [batch, frames, mels]
    frames: Tensor  # [batch] frames that hold audio
    faces: Tensor  # [batch, n, px, px] grey, 0 to 1; n = 0 for students without face input
    has_face: Tensor  # [batch, n] bool: the crop is there
    label: Tensor  # [batch] index of the emotion, or NO_LABEL
    intensity: Tensor  # [batch] of the labelled emotion, 0 to 1; 1 where it is unknown
    teachers: Mapping[str, TeacherBatch]  # by name, in the order of [teachers, ...] tensors

    def with_teachers(self, changed: Mapping[str, TeacherBatch]) -> Self:
        """Return the batch with the targets of these teachers replaced."""
        return replace(self, teachers={**self.teachers, **changed})

    def to(self, device: torch.device) -> Self:
        """Return the batch with every tensor on the device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def rows(self, chosen: Tensor) -> Self:
        """Return the batch of these rows alone, in the given order."""
        return self.map(lambda tensor: tensor[chosen])

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the batch with every tensor changed."""
        return replace(
            self,
            mel=change(self.mel),
            frames=change(self.frames),
            faces=change(self.faces),
            has_face=change(self.has_face),
            label=change(self.label),
            intensity=change(self.intensity),
            teachers={name: teacher.map(change) for name, teacher in self.teachers.items()},
        )


def intensity_of(text: str) -> float:
    """Return a labelled intensity as 0 to 1; 1 where it is unknown."""
    try:
        return min(1.0, max(0.0, _INTENSITIES.get(text) or float(text)))
    except ValueError:
        return 1.0


def labelled_batch(clips: Sequence[_T], size: int, step: int, seed: int, epochs: int) -> list[_T]:
    """Return the labelled clips of a step, for all workers together.

    The steps walk through seeded shuffles of all labelled clips, one after the other. None are left
    after so many epochs.
    """
    size = min(size, len(clips))
    end = min((step + 1) * size, epochs * len(clips))
    positions = [divmod(place, len(clips)) for place in range(step * size, end)]
    order = {
        lap: np.random.default_rng([seed, lap]).permutation(len(clips))
        for lap in {lap for lap, _ in positions}
    }
    return [clips[order[lap][position]] for lap, position in positions]


class Batcher:
    """Builds the batches of one job's students."""

    def __init__(
        self,
        audio: AudioInput,
        emotions: Sequence[str],
        embeddings: Mapping[str, int],
        augment: AugmentSpec,
        seed: int,
        faces: tuple[int, int] = (0, 0),
    ) -> None:
        """Set what all batches share.

        Args:
            audio: The students' audio input.
            emotions: The job's emotions, in the order of the logits.
            embeddings: Width of each teacher's embedding that the loss needs, by teacher.
            augment: Random changes of the input.
            seed: Seed of these changes.
            faces: Largest number of face crops per clip, and their size in pixels.
        """
        self.audio = audio
        self.emotions = list(emotions)
        self.embeddings = embeddings
        self.augment = augment
        self.seed = seed
        self.max_faces, self.face_px = faces

    @classmethod
    def from_spec(cls, spec: DistillSpec, embeddings: Mapping[str, int] | None = None) -> Self:
        """Return the batcher of a job."""
        clip, student = spec.clip, spec.student
        return cls(
            AudioInput(clip.sample_rate_hz, student.mels, clip.window_s),
            spec.emotions,
            embeddings or {},
            spec.augment,
            spec.seed,
            (clip.faces if student.seen_px else 0, student.seen_px),
        )

    def batch(
        self, unlabelled: Sequence[Example], labelled: Sequence[Example] = (), epoch: int = 0
    ) -> StudentBatch:
        """Return unlabelled clips without labels, then labelled clips without teacher targets.

        A batch without any clip has one silent row that no loss counts, because every worker takes
        every step.

        Args:
            unlabelled: Clips with targets; their epoch and key draw their augmentation.
            labelled: Clips with labels.
            epoch: Draws the augmentation of labelled clips, which have no epoch of their own.
        """
        examples = [*unlabelled, *labelled]
        draws = [self._draw(clip.key, clip.epoch) for clip in unlabelled]
        draws += [self._draw(clip.key, epoch) for clip in labelled]
        mel, frames = self.audio_input(examples, draws)
        mask_mel(mel, frames, self.augment, draws)
        faces, has_face = self.face_input(examples, draws)
        label = [NO_LABEL] * len(unlabelled)
        label += [self.emotions.index(clip.emotion) for clip in labelled]
        with_targets = [*unlabelled, *(Example(**clip.provenance()) for clip in labelled)]
        return StudentBatch(
            mel=mel,
            frames=frames,
            faces=faces,
            has_face=has_face,
            label=torch.tensor(label or [NO_LABEL]),
            intensity=torch.tensor([intensity_of(clip.intensity) for clip in examples] or [1.0]),
            teachers={name: self._teacher_batch(with_targets, name) for name in TEACHERS},
        )

    def audio_input(
        self, examples: Sequence[Example], draws: Sequence[np.random.Generator] = ()
    ) -> tuple[Tensor, Tensor]:
        """Return mel [batch, frames, mels], as long as the window, and [batch] frames of audio.

        `draws`: a generator for each example, to augment it; none: not augmented.
        """
        if any(clip.mel.size for clip in examples):
            return self.audio.from_stored(examples)
        waveforms = [to_floats(clip.waveform) for clip in examples]
        if draws:
            rate_hz, samples = self.audio.sample_rate_hz, self.audio.window_samples
            waveforms = [
                augment_waveform(waveform, self.augment, rate_hz, samples, draw)
                for waveform, draw in zip(waveforms, draws, strict=True)
            ]
        return self.audio.from_waveforms(waveforms)

    def face_input(
        self, examples: Sequence[Example], draws: Sequence[np.random.Generator] = ()
    ) -> tuple[Tensor, Tensor]:
        """Return face crops [batch, n, px, px] from 0 to 1, and [batch, n] bool: they exist.

        `draws`: a generator for each example, to augment it; none: not augmented.
        """
        rows, px = max(1, len(examples)), self.face_px
        faces = torch.zeros(rows, self.max_faces, px, px)
        has_face = torch.zeros(rows, self.max_faces, dtype=torch.bool)
        for row, example in enumerate(examples):
            if not (example.faces.size and self.max_faces):
                continue
            pixels = torch.from_numpy(example.faces.astype(np.float32) / 255).reshape(-1, px, px)
            if draws:
                pixels = augment_faces(pixels, draws[row])
            faces[row, : len(pixels)], has_face[row, : len(pixels)] = pixels, True
        return faces, has_face

    def _draw(self, key: str, epoch: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, stable_hash(key)])

    def _teacher_batch(self, examples: Sequence[Example], name: str) -> TeacherBatch:
        rows = max(1, len(examples))
        logits = torch.zeros(rows, len(self.emotions))
        embedding = torch.zeros(rows, self.embeddings.get(name, 0))
        mass, given, embedded = torch.zeros(rows), torch.zeros(rows), torch.zeros(rows)
        for row, example in enumerate(examples):
            targets = example.targets_from(name)
            if targets.logits.size:
                logits[row] = torch.from_numpy(targets.logits.astype(np.float32))
                mass[row], given[row] = targets.mass, 1
            if targets.embedding.size and embedding.shape[1]:
                embedding[row] = torch.from_numpy(targets.embedding.astype(np.float32))
                embedded[row] = 1
        return TeacherBatch(
            logits=logits,
            mass=mass,
            given=given.bool(),
            embedding=embedding,
            embedded=embedded.bool(),
        )

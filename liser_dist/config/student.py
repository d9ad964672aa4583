"""The student of a job: its kind, its inputs, the loss it learns from, and its augmentation."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from liser_dist.config.base import Count, Share, Spec, Weight

# ---------------------------------------------------------------- student


class Inputs(Spec):
    """What a student gets of a clip."""

    input: Literal["audio", "face", "both"] = Field(
        "audio", description="Which inputs the student has: audio, face crops, or both."
    )
    face_px: Annotated[int, Field(ge=16, le=224)] = Field(
        48,
        description="Width and height of the student's grey face crops, in pixels. There are "
        "`clip.faces` of them. Has no effect with `input: audio`.",
    )

    @property
    def uses_audio(self) -> bool:
        """Whether the student has audio input."""
        return self.input != "face"

    @property
    def seen_px(self) -> int:
        """Width of its face crops in pixels; 0 if it has no face input."""
        return 0 if self.input == "audio" else self.face_px


# How an export stores the weights of a student kind in 8 bits. ONNX Runtime quantises convolutions
# only with calibration clips (static), and LSTMs only without (dynamic).
Quantisation = Literal["static", "dynamic"]


class CnnStudent(Inputs):
    """Convolutions on the log-mel spectrogram, pooled over time."""

    answers: ClassVar[bool] = True
    quantisation: ClassVar[Quantisation] = "static"
    kind: Literal["cnn"] = Field("cnn", description="Selects this kind of student.")
    width: Annotated[int, Field(ge=8, le=512, multiple_of=8)] = Field(
        32,
        description="Number of channels of the second layer, a multiple of 8. The first has half, "
        "the others twice as many.",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Fraction of activations that are set to 0 in training."
    )
    mels: Count = Field(40, description="Number of mel bands of the student's input.")


class ResLstmStudent(Inputs):
    """Residual LSTM layers with attention over time; about 50,000 parameters by default."""

    answers: ClassVar[bool] = True
    quantisation: ClassVar[Quantisation] = "dynamic"
    kind: Literal["reslstm"] = Field("reslstm", description="Selects this kind of student.")
    width: Annotated[int, Field(ge=8, le=1024)] = Field(52, description="Width of each LSTM layer.")
    layers: Count = Field(2, description="Number of LSTM layers.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="Fraction of activations that are set to 0 in training."
    )
    mels: Count = Field(40, description="Number of mel bands of the student's input.")


class CountingStudent(Spec):
    """One weight for each clip, which is the number of times it was trained. For tests."""

    answers: ClassVar[bool] = False
    quantisation: ClassVar[Quantisation | None] = None
    kind: Literal["counting"] = Field("counting", description="Selects this kind of student.")
    mels: Count = Field(40, description="Number of mel bands of the student's input.")
    infinite_steps: tuple[int, ...] = Field(
        (), description="Steps, counted from 0, whose gradient is infinite."
    )
    seen_px: ClassVar[int] = 0


# Students that predict emotions. Each class states so (`answers`), and how it is quantised.
EmotionStudent = CnnStudent | ResLstmStudent
StudentSpec = Annotated[EmotionStudent | CountingStudent, Field(discriminator="kind")]


@dataclass(frozen=True)
class LearnsFrom:
    """Marks the weight of a loss term with what the term needs.

    Without this source the term is 0, and the variants of a study that do without the source do
    without the term. A term that needs no source, such as a penalty on the student's output, has
    no mark.
    """

    source: Literal["speech", "face", "embeddings", "labels"]


@dataclass(frozen=True)
class LearnsProbabilities(LearnsFrom):
    """Marks the weight with which a teacher's probabilities enter the KL terms: one per teacher."""


class LossSpec(Spec):
    """The loss: a weighted sum of terms, each the mean over the clips to which it applies."""

    removed: ClassVar = {
        "fusion: product": "this value was removed; use `mean` or `separate`",
        "fusion: confidence": "this value was removed; use `mean` or `separate`",
        "balance: resample": "this value was removed; use `distribution_alignment`",
    }

    speech_kl: Annotated[Weight, LearnsProbabilities("speech")] = Field(
        1.0, description="Weight of the KL divergence from the speech teacher's targets."
    )
    face_kl: Annotated[Weight, LearnsProbabilities("face")] = Field(
        1.0, description="Weight of the KL divergence from the face teacher's targets."
    )
    embedding: Annotated[Weight, LearnsFrom("embeddings")] = Field(
        0.0, description="Weight of the cosine distance to the teachers' embeddings."
    )
    relations: Annotated[Weight, LearnsFrom("embeddings")] = Field(
        0.0,
        description="Weight of the difference between the distances of a batch's clips in the "
        "student's embedding and in the teachers' (relational distillation).",
    )
    label_ce: Annotated[Weight, LearnsFrom("labels")] = Field(
        1.0, description="Weight of the cross entropy with the labels of labelled clips."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Fraction of each label's probability that is spread over all emotions."
    )
    intensity: Share = Field(
        0.0,
        description="How much softer the labels of weakly expressed emotions are. 0: intensity is "
        "ignored; 1: a label of intensity 0 is spread over all emotions.",
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        2.0, description="Temperature of student and targets in the KL divergence."
    )
    fusion: Literal["separate", "mean"] = Field(
        "separate",
        description="`separate`: a KL term for each teacher. `mean`: one term, for the mean of the "
        "teachers' probabilities, weighted by `speech_kl` and `face_kl`.",
    )
    min_confidence: Share = Field(
        0.0,
        description="Clips for which no teacher gives any emotion at least this probability are "
        "left out of the KL terms. 0: no clip is left out.",
    )
    agreement: Weight = Field(
        0.0,
        description=(
            "How much less clips count if the teachers disagree on them: their KL terms are "
            "multiplied by exp(-agreement * JS / ln 2), with JS the Jensen-Shannon divergence. 0: "
            "all count the same."
        ),
    )
    balance: Literal["none", "distribution_alignment"] = Field(
        "distribution_alignment",
        description="Corrects for the emotions that teachers give most often, such as neutral in "
        "web video. `distribution_alignment` divides each teacher's probabilities by their running "
        "mean.",
    )

    @classmethod
    def term_sources(cls) -> dict[str, str]:
        """Return the source of each term of the loss, by the name of its weight."""
        return {
            name: mark.source
            for name, field in cls.model_fields.items()
            for mark in field.metadata
            if isinstance(mark, LearnsFrom)
        }

    def learns_from(self, sources: Collection[str]) -> bool:
        """Return whether a term with a weight above 0 has one of these sources."""
        return any(weight for source, weight in self._weights() if source in sources)

    def limited_to(self, sources: Collection[str]) -> Self:
        """Return the loss without the terms that need other sources."""
        others = {
            name: 0.0 for name, source in self.term_sources().items() if source not in sources
        }
        return self.model_copy(update=others)

    @property
    def teacher_weights(self) -> dict[str, float]:
        """The weight of each teacher's probabilities in the KL terms, by teacher."""
        weights = dict(self)
        return {
            mark.source: weights[name]
            for name, field in type(self).model_fields.items()
            for mark in field.metadata
            if isinstance(mark, LearnsProbabilities)
        }

    @property
    def uses_embeddings(self) -> bool:
        """Whether any term needs the teachers' embeddings."""
        return self.learns_from(["embeddings"])

    def _weights(self) -> Iterator[tuple[str, float]]:
        """Yield the source and the weight of each term."""
        sources = self.term_sources()
        return ((sources[name], value) for name, value in self if name in sources)


class AugmentSpec(Spec):
    """Random changes of the student's input, never of the teachers'. 0 switches each one off."""

    gain_db: Annotated[float, Field(ge=0)] = Field(
        6.0, description="Audio is made louder or quieter by up to this, in dB."
    )
    noise_db: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="White noise is added at a signal-to-noise ratio drawn between this value and "
        "20 dB above it, in dB. 0: no noise.",
    )
    speed: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0,
        description="Audio is played faster or slower by up to this fraction, which also changes "
        "its pitch.",
    )
    reverberation_s: Annotated[float, Field(ge=0, le=5)] = Field(
        0.0,
        description="Longest decay time (by 60 dB) of the room reverberation that is added, in "
        "seconds.",
    )
    time_mask_s: Annotated[float, Field(ge=0)] = Field(
        0.3,
        description="Longest duration of each of the two time spans that are masked in the log-mel "
        "spectrogram (SpecAugment), in seconds.",
    )
    frequency_mask: Share = Field(
        0.15, description="Two bands of up to this fraction of the mels are masked (SpecAugment)."
    )

    @property
    def of_waveform(self) -> dict[str, float]:
        """The values of the changes that need a waveform, by field."""
        return {
            "gain_db": self.gain_db,
            "noise_db": self.noise_db,
            "speed": self.speed,
            "reverberation_s": self.reverberation_s,
        }

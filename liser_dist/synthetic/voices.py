"""Generates the speakers of the synthetic corpus, their moods, and their voices.

A clip of the synthetic corpus is made in three steps:

1. A person (`draw_person`) has a voice, a face and individual habits of expression.
2. In each clip the person is in a mood (`draw_mood`): habit + intensity * emotion + a random part.
3. The mood controls a source-filter voice (`speak`, here) and a face (`pictures.py`).

The spreads in step 2 determine how difficult the corpus is. They were chosen before any
distillation, by the accuracy of supervised models on held-out speakers with 6 classes: a small
student on a dozen labels 30 to 50 %, the speech teacher 55 to 75 %, the face teacher 75 to 90 %.
They do not change any more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve, lfilter, sosfilt

from liser_dist.config.base import EMOTIONS

FloatArray = NDArray[np.float64]

SAMPLE_RATE_HZ = 16000

# How each emotion moves voice and face; a shift of 1 is easy to hear or see.
#              pitch range slope rate energy tilt breath jitter
_VOICES = {
    "neutral": (+0.0, +0.0, +0.0, +0.0, +0.0, +0.0, +0.0, +0.0),
    "happy": (+1.0, +1.1, +0.9, +0.3, +0.4, +0.5, -0.4, -0.4),
    "sad": (-0.7, -0.9, -0.5, -1.1, -0.7, -1.0, +0.8, +0.1),
    "angry": (+0.4, +0.5, -0.8, +0.7, +1.1, +1.2, -0.7, +0.5),
    "fearful": (+1.1, -0.5, +0.5, +1.0, -0.5, -0.4, +0.8, +1.1),
    "disgusted": (-0.9, +0.5, -0.8, -0.6, +0.8, +0.4, -0.2, +0.9),
}
#              curve opening brow-height brow-angle eyes sneer
_FACES = {
    "neutral": (+0.0, +0.0, +0.0, +0.0, +0.0, +0.0),
    "happy": (+1.3, +0.4, +0.2, +0.0, -0.4, +0.0),
    "sad": (-0.9, -0.4, +0.1, +1.1, -0.6, +0.0),
    "angry": (-0.5, +0.3, -0.9, -1.1, +0.3, +0.3),
    "fearful": (-0.4, +0.8, +1.0, +0.7, +1.1, +0.0),
    "disgusted": (-0.7, -0.2, -0.4, -0.4, -0.8, +1.2),
}
VOICE_DIMS = len(_VOICES["neutral"])
FACE_DIMS = len(_FACES["neutral"])
_SHIFTS = {name: np.array(_VOICES[name] + _FACES[name]) for name in EMOTIONS}

# Standard deviations for voice and face: of a person's habits, and of the random part of a clip.
_HABIT = np.repeat((0.30, 0.21), (VOICE_DIMS, FACE_DIMS))
_CLIP = np.repeat((0.39, 0.26), (VOICE_DIMS, FACE_DIMS))

# Intensity of the emotion: in spontaneous speech, and when acted for a labelled corpus.
SPONTANEOUS_INTENSITY = (0.6, 1.3)
ACTED_INTENSITY = (1.0, 1.3)

# First three formants in Hz of an average man (Peterson and Barney, 1952), and a fourth.
_VOWELS_HZ = np.array(
    [
        (730, 1090, 2440, 3500),
        (270, 2290, 3010, 3700),
        (300, 870, 2240, 3400),
        (530, 1840, 2480, 3600),
        (570, 840, 2410, 3400),
    ],
    float,
)
_BANDWIDTHS_HZ = np.array((70.0, 90.0, 140.0, 220.0))


@dataclass(frozen=True, slots=True)
class Person:
    """A speaker: everything that is the same in all of their clips."""

    name: str
    pitch_hz: float
    tract: float  # vocal tract: formants relative to the average man's
    tilt: float
    rate_hz: float  # syllables a second
    habit: FloatArray  # [VOICE_DIMS + FACE_DIMS]
    skin: FloatArray  # RGB, 0..255
    hair: FloatArray  # RGB, 0..255
    shape: FloatArray  # [6] head aspect, eye size, eye distance, mouth width, brow weight, hairline


@dataclass(frozen=True, slots=True)
class Syllables:
    """The timing of a phrase, with one element per syllable."""

    starts_s: FloatArray
    lengths_s: FloatArray
    stress: FloatArray  # 0..1
    duration_s: float  # of the clip


def draw_person(name: str, rng: np.random.Generator) -> Person:
    """Draw a new speaker."""
    height = rng.uniform(-1, 1)  # short people have short vocal tracts and high voices
    skin_light = rng.uniform(0.35, 1.0)
    return Person(
        name=name,
        pitch_hz=155 * 2 ** (-0.3 * height + rng.normal(0, 0.06)),
        tract=1.08 - 0.1 * height + rng.normal(0, 0.02),
        tilt=rng.normal(0, 0.2),
        rate_hz=rng.uniform(3.9, 4.7),
        habit=rng.normal(0, 1, VOICE_DIMS + FACE_DIMS) * _HABIT,
        skin=np.array((236, 190, 160)) * skin_light + rng.normal(0, 6, 3),
        hair=np.array((120, 85, 60)) * rng.uniform(0.2, 1.6),
        shape=rng.uniform(-1, 1, 6),
    )


def draw_mood(
    person: Person, emotion: str, intensity: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Draw the mood of a clip: shifts of the voice [VOICE_DIMS] and of the face [FACE_DIMS]."""
    mood = person.habit + intensity * _SHIFTS[emotion]
    mood = mood + rng.normal(0, 1, mood.size) * _CLIP
    return mood[:VOICE_DIMS], mood[VOICE_DIMS:]


def draw_syllables(
    person: Person, voice: FloatArray, duration_s: float, rng: np.random.Generator
) -> Syllables:
    """Draw a phrase that fills the clip, with one pause; `voice` is the voice part of the mood."""
    rate_hz = person.rate_hz * np.exp(0.28 * voice[3])
    count = max(4, round(rate_hz * duration_s))
    lengths = rng.gamma(12, 1 / 12, count)
    lengths[rng.integers(1, count - 1)] += rng.uniform(0.5, 1.5)
    lengths *= duration_s / lengths.sum()
    starts = np.concatenate(([0.0], np.cumsum(lengths)[:-1]))
    return Syllables(
        starts, np.minimum(lengths, 1.3 / rate_hz), rng.uniform(0, 1, count), duration_s
    )


def loudness(syllables: Syllables, voice: FloatArray, times_s: FloatArray) -> FloatArray:
    """Return the envelope of the syllables at these times, 0..1."""
    at = np.clip(np.searchsorted(syllables.starts_s, times_s, side="right") - 1, 0, None)
    within = (times_s - syllables.starts_s[at]) / syllables.lengths_s[at]
    lobe = np.where(within < 1, np.sin(np.pi * np.clip(within, 0, 1) ** 0.7), 0.0)
    # In energetic speech stressed syllables stand out, and each begins and ends abruptly.
    contrast_db = 9 * np.exp(0.6 * voice[4])
    sharpness = np.exp(0.7 * voice[4])
    level = 10 ** (-contrast_db * (1 - syllables.stress[at]) / 20)
    return np.asarray(level * np.maximum(lobe, 0) ** sharpness)


def speak(
    person: Person, voice: FloatArray, syllables: Syllables, rng: np.random.Generator
) -> FloatArray:
    """Synthesise the clean voice: [samples] at 16 kHz, of unit power."""
    samples = round(syllables.duration_s * SAMPLE_RATE_HZ)
    pitch_hz = _pitch(person, voice, syllables, rng, samples)
    phase = np.cumsum(pitch_hz) / SAMPLE_RATE_HZ % 1
    # KLGLOTT88: the derivative of a cubic flow over the open part of each period.
    opened = np.clip(phase / 0.6, 0, 1)
    pulses = np.where(phase < 0.6, 2 * opened - 3 * opened**2, 0.0)
    pole = 1 / (1 + np.exp(-(0.6 - 1.2 * (voice[5] + person.tilt))))
    pulses = lfilter([1 - pole], [1, -pole], pulses)
    pulses /= pulses.std()
    breath = 0.15 * np.exp(1.1 * voice[6]) * rng.standard_normal(samples) * (0.3 + opened)
    times_s = np.arange(samples) / SAMPLE_RATE_HZ
    source = (pulses + breath) * loudness(syllables, voice, times_s)
    sound = _shape_vowels(source, person, syllables, rng)
    return np.asarray(sound / sound.std())


def _pitch(
    person: Person,
    voice: FloatArray,
    syllables: Syllables,
    rng: np.random.Generator,
    samples: int,
) -> FloatArray:
    """Return the fundamental frequency in Hz, [samples]."""
    ticks_s = np.arange(0, syllables.duration_s, 0.01)
    accents = np.interp(ticks_s, syllables.starts_s + 0.1, syllables.stress - 0.5)
    tremor = np.sin(2 * np.pi * (rng.uniform(5, 7) * ticks_s + rng.uniform()))
    semitones = (
        4.5 * voice[0]
        + 6.0 * np.exp(0.7 * voice[1]) * accents
        + (8.0 * voice[2] - 2.0) * (ticks_s / syllables.duration_s - 0.5)
        + 0.4 * np.exp(0.9 * voice[7]) * (tremor + rng.standard_normal(ticks_s.size))
    )
    hz = np.clip(person.pitch_hz * 2 ** (semitones / 12), 55, 480)
    return np.asarray(np.interp(np.arange(samples) / SAMPLE_RATE_HZ, ticks_s, hz))


def _shape_vowels(
    source: FloatArray, person: Person, syllables: Syllables, rng: np.random.Generator
) -> FloatArray:
    """Filter the source with one vowel per syllable: four resonances in series."""
    edges = np.round(np.append(syllables.starts_s, syllables.duration_s) * SAMPLE_RATE_HZ)
    sound = np.empty_like(source)
    state = np.zeros((len(_BANDWIDTHS_HZ), 2))
    for start, end in zip(edges[:-1].astype(int), edges[1:].astype(int), strict=True):
        formants_hz = _VOWELS_HZ[rng.integers(len(_VOWELS_HZ))] * person.tract
        formants_hz = formants_hz * rng.uniform(0.95, 1.05, len(formants_hz))
        sound[start:end], state = sosfilt(_resonators(formants_hz), source[start:end], zi=state)
    return sound


def _resonators(formants_hz: FloatArray) -> FloatArray:
    """Return second-order sections [formants, 6] of unit gain at 0 Hz."""
    radius = np.exp(-np.pi * _BANDWIDTHS_HZ / SAMPLE_RATE_HZ)
    first = -2 * radius * np.cos(2 * np.pi * formants_hz / SAMPLE_RATE_HZ)
    second = radius**2
    zeros, ones = np.zeros_like(first), np.ones_like(first)
    return np.stack((1 + first + second, zeros, zeros, ones, first, second), axis=1)


def record(sound: FloatArray, shifted: bool, rng: np.random.Generator) -> NDArray[np.int16]:
    """Return the voice as recorded by a microphone: int16 [samples].

    Args:
        sound: the clean voice.
        shifted: False for a quiet room, as in labelled clips. True for clips as found on the web,
            with more noise, another channel, some echo, and any level.
        rng: random generator.
    """
    if shifted:
        sound = _reverberate(sound, rng)
        noise_db, level_db = rng.uniform(10, 30), rng.uniform(-32, -16)
    else:
        noise_db, level_db = rng.uniform(18, 34), rng.uniform(-27, -21)
    # The noise of a room falls with frequency.
    noise = lfilter([1.0], [1.0, -rng.uniform(0.3, 0.95)], rng.standard_normal(sound.size))
    recorded = sound / sound.std() + noise / noise.std() * 10 ** (-noise_db / 20)
    if shifted:
        recorded = _colour(recorded, rng)
    recorded = recorded / recorded.std() * 10 ** (level_db / 20)
    return np.asarray(np.clip(recorded, -1, 1) * 32767, np.int16)


def _reverberate(sound: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Add the reverberation of a small room: decaying noise beside the direct sound."""
    decay_s, share = rng.uniform(0.03, 0.15), rng.uniform(0.0, 0.25)
    times_s = np.arange(int(3 * decay_s * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tail = rng.standard_normal(times_s.size) * np.exp(-times_s / decay_s)
    wet = fftconvolve(sound, tail / np.sqrt((tail**2).sum()))[: sound.size]
    return np.asarray(sound + share * wet)


def _colour(sound: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Tilt the spectrum towards bass or treble, and sometimes limit it to the telephone band."""
    lean = rng.uniform(-0.25, 0.25)
    sound = lfilter([1.0, lean], [1.0], sound)
    if rng.uniform() < 0.15:
        low, high = np.exp(-2 * np.pi * np.array((250.0, 3400.0)) / SAMPLE_RATE_HZ)
        sound = lfilter([1, -1], [1, -low], lfilter([1 - high], [1, -high], sound))
    return np.asarray(sound)

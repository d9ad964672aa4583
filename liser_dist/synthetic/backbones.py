"""Trains the backbones of the synthetic corpus's teachers: two small Hugging Face models.

They stand in for large public models. Both are trained on people that appear in no corpus, so one
pair serves every seed. Public models have learned about pitch, rhythm and eyebrows from thousands
of hours. The two backbones learn about them by predicting not only the emotion, but also the
parameters that a clip was generated from (its mood, see `voices.py`), such as pitch. The outputs
for the mood are removed afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from liser_dist.config.base import EMOTIONS
from liser_dist.data.media import Pixels
from liser_dist.synthetic.pictures import draw_clip
from liser_dist.synthetic.voices import (
    FACE_DIMS,
    SAMPLE_RATE_HZ,
    SPONTANEOUS_INTENSITY,
    VOICE_DIMS,
    FloatArray,
    Person,
    draw_mood,
    draw_person,
    draw_syllables,
    record,
    speak,
)
from liser_dist.teachers.backbone import save_classifier

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

_SEED = 20_000  # of the backbones, independent of the corpus's seed
_PEOPLE = 40
_WINDOW_S = 3.0
_FACE_PX = 64
_FRAMES = 2  # of a clip; more would be nearly the same
_MEL_FRAMES, _MELS = 298, 64
_MEL_MEAN, _MEL_STD = -4.35, 1.3  # of the synthetic voices; the extractor divides by twice the std


def train_speech_backbone(folder: Path, clips: int) -> None:
    """Train and save an audio spectrogram transformer (Gong et al., 2021) of 90 k parameters."""
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    extractor: Any = ASTFeatureExtractor(
        num_mel_bins=_MELS, max_length=_MEL_FRAMES, mean=_MEL_MEAN, std=_MEL_STD
    )
    waveforms, emotions, moods = _make_waveforms(clips)
    mels = torch.cat(
        [
            extractor(list(part), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")["input_values"]
            for part in np.array_split(waveforms, max(1, clips // 100))
        ]
    )
    config = ASTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        num_mel_bins=_MELS,
        max_length=_MEL_FRAMES,
        patch_size=16,
        frequency_stride=16,
        time_stride=16,
    )
    net = _train(ASTForAudioClassification, config, mels, emotions, moods, _vary_mels, 25, 1.5e-3)
    save_classifier(net, folder)
    extractor.save_pretrained(folder)


def train_face_backbone(folder: Path, clips: int) -> None:
    """Train and save a residual net (He et al., 2016) for 64 px crops, of 80 k parameters."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

    crops, emotions, moods = _make_crops(clips)
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2)
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic"
    )
    net = _train(
        ResNetForImageClassification, config, pixels, emotions, moods, _vary_crops, 5, 4e-3
    )
    save_classifier(net, folder)
    size = {"height": _FACE_PX, "width": _FACE_PX}
    processor: Any = ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(folder)


# ---------------------------------------------------------------- training data


def _draw_performances(
    clips: int,
) -> Iterator[tuple[Person, int, FloatArray, FloatArray, np.random.Generator]]:
    """Yield per clip a person, an emotion's index, the mood of voice and face, and a generator."""
    people = [
        draw_person(f"backbone-{number}", np.random.default_rng([_SEED, 0, number]))
        for number in range(_PEOPLE)
    ]
    for number in range(clips):
        rng = np.random.default_rng([_SEED, 1, number])
        person, emotion = people[number % _PEOPLE], int(rng.integers(len(EMOTIONS)))
        intensity = rng.uniform(*SPONTANEOUS_INTENSITY)
        voice, face = draw_mood(person, EMOTIONS[emotion], intensity, rng)
        yield person, emotion, voice, face, rng


def _make_waveforms(clips: int) -> tuple[NDArray[np.float32], NDArray[np.int64], FloatArray]:
    """Return windows [clips, samples] in -1..1, emotions [clips], moods [clips, VOICE_DIMS]."""
    samples = round(_WINDOW_S * SAMPLE_RATE_HZ)
    waveforms = np.empty((clips, samples), np.float32)
    emotions, moods = np.empty(clips, np.int64), np.empty((clips, VOICE_DIMS))
    for number, (person, emotion, voice, _, rng) in enumerate(_draw_performances(clips)):
        phrase = draw_syllables(person, voice, rng.uniform(3.1, 3.6), rng)
        sound = speak(person, voice, phrase, rng)
        recorded = record(sound, bool(rng.integers(2)), rng)
        start = rng.integers(0, recorded.size - samples)
        waveforms[number] = recorded[start : start + samples] / 32768
        emotions[number], moods[number] = emotion, voice
    return waveforms, emotions, moods


def _make_crops(clips: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], FloatArray]:
    """Return crops [n, px, px, 3] RGB, emotions [n] and moods [n, FACE_DIMS].

    Each clip contributes `_FRAMES` of the n crops.
    """
    crops = np.empty((clips, _FRAMES, _FACE_PX, _FACE_PX, 3), np.uint8)
    emotions, moods = np.empty(clips, np.int64), np.empty((clips, FACE_DIMS))
    for number, (person, emotion, _, face, rng) in enumerate(_draw_performances(clips)):
        opening = rng.uniform(0, 1, _FRAMES) ** 2
        frames, boxes = draw_clip(person, face, opening, bool(rng.integers(2)), rng)
        for index, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
            crops[number, index] = _crop(frame, box, rng)
        emotions[number], moods[number] = emotion, face
    flat = crops.reshape(-1, _FACE_PX, _FACE_PX, 3)
    return flat, emotions.repeat(_FRAMES), moods.repeat(_FRAMES, axis=0)


def _crop(frame: Pixels, box: FloatArray, rng: np.random.Generator) -> Pixels:
    """Return a square crop [px, px, 3] around the head, with a random margin."""
    centre = (box[:2] + box[2:]) / 2 + rng.normal(0, 1.5, 2)
    side = (box[2:] - box[:2]).max() * rng.uniform(1.0, 1.5)
    scale = _FACE_PX / side
    shift = _FACE_PX / 2 - scale * centre
    onto = np.array(((scale, 0, shift[0]), (0, scale, shift[1])))
    return np.asarray(cv2.warpAffine(frame, onto, (_FACE_PX, _FACE_PX)), np.uint8)


# ---------------------------------------------------------------- training


def _vary_mels(mels: Tensor, generator: Any) -> Tensor:
    """Vary start, level and spectral tilt of normalised log-mel [batch, frames, mels]."""
    import torch

    batch = len(mels)
    starts = torch.randint(-20, 21, (batch,), generator=generator).tolist()
    mels = torch.stack([mel.roll(start, 0) for mel, start in zip(mels, starts, strict=True)])
    level, tilt = 0.2 * torch.randn(2, batch, 1, 1, generator=generator)
    return mels + level + tilt * torch.linspace(-1, 1, mels.shape[2])


def _vary_crops(pixels: Tensor, generator: Any) -> Tensor:
    """Vary light and tint, mirror at random, and convert bytes [batch, 3, px, px] to -1..1."""
    import torch

    batch = len(pixels)
    values = pixels.float() / 127.5 - 1
    mirrored = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
    values = torch.where(mirrored, values.flip(3), values)
    light = 1 + 0.15 * torch.randn(batch, 1, 1, 1, generator=generator)
    tint = 0.1 * torch.randn(batch, 3, 1, 1, generator=generator)
    return values * light + tint


def _train(
    architecture: Any,
    config: Any,
    inputs: Tensor,
    emotions: NDArray[np.int64],
    moods: FloatArray,
    vary: Any,
    epochs: int,
    learning_rate: float,
) -> nn.Module:
    """Train a classifier of emotions and moods, and return it without the outputs for moods."""
    import torch
    from torch.nn.functional import cross_entropy, mse_loss

    classes = len(EMOTIONS)
    generator = torch.Generator().manual_seed(_SEED)
    config.num_labels = classes + moods.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        net = architecture(config)
    labels, mood_targets = torch.from_numpy(emotions), torch.from_numpy(moods).float()
    batches = -(-len(inputs) // 48)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * batches, pct_start=0.15
    )
    net.train()
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(inputs), generator=generator).tensor_split(batches):
            outputs = net(vary(inputs[chosen], generator)).logits
            loss = cross_entropy(outputs[:, :classes], labels[chosen], label_smoothing=0.1)
            loss = loss + 2 * mse_loss(outputs[:, classes:], mood_targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        logger.debug("%s, epoch %d: loss %.3f", architecture.__name__, epoch, total / batches)
    return _remove_mood_outputs(net, classes)


def _remove_mood_outputs(net: Any, classes: int) -> nn.Module:
    """Return the model without the outputs that predict the mood."""
    import torch

    last = [module for module in net.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.weight = torch.nn.Parameter(last.weight.detach()[:classes].clone())
    last.bias = torch.nn.Parameter(last.bias.detach()[:classes].clone())
    last.out_features = classes
    net.config.num_labels = net.num_labels = classes
    net.config.id2label = dict(enumerate(EMOTIONS))
    net.config.label2id = {name: number for number, name in enumerate(EMOTIONS)}
    classifier: nn.Module = net.eval()
    return classifier

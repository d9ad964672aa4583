"""The backbones of the synthetic corpus's teachers: two small Hugging Face nets.

They stand for what large public models bring. Both are trained on people of their own, whom no
corpus shows again, and know nothing of any corpus: one pair serves every seed. What public models
learn from thousands of hours (what a pitch, a rhythm, a brow is) these are told: beside the
emotion they are trained to name the mood, dimension by dimension, and then forget how.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from liser_dist import drawing, synthesis
from liser_dist.fields import EMOTIONS
from liser_dist.huggingface_backbone import save_net
from liser_dist.synthesis import FACE_DIMS, SAMPLE_RATE_HZ, VOICE_DIMS, Floats, Person

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

_SEED = 20_000  # of backbones, whatever the corpus's seed is
_PEOPLE = 40
_WINDOW_S = 3.0
_FACE_PX = 64
_FRAMES = 2  # of a clip; more are more of the same
_MEL_FRAMES, _MELS = 298, 64
_MEL_MEAN, _MEL_STD = -4.35, 1.3  # of the synthetic voices; the extractor halves the spread


def train_speech_backbone(folder: Path, clips: int) -> None:
    """An audio spectrogram transformer (Gong et al., 2021) of some 90 k parameters, saved."""
    import torch
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    extractor: Any = ASTFeatureExtractor(
        num_mel_bins=_MELS, max_length=_MEL_FRAMES, mean=_MEL_MEAN, std=_MEL_STD
    )
    waveforms, emotions, moods = _hear(clips)
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
    save_net(net, folder)
    extractor.save_pretrained(folder)


def train_face_backbone(folder: Path, clips: int) -> None:
    """A residual net (He et al., 2016) of some 80 k parameters for crops of 64 px, saved."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

    crops, emotions, moods = _see(clips)
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2)
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic"
    )
    net = _train(
        ResNetForImageClassification, config, pixels, emotions, moods, _vary_crops, 5, 4e-3
    )
    save_net(net, folder)
    size = {"height": _FACE_PX, "width": _FACE_PX}
    processor: Any = ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor.save_pretrained(folder)


# ---------------------------------------------------------------- what they are shown


def _cast(clips: int) -> Iterator[tuple[Person, int, Floats, Floats, np.random.Generator]]:
    """For each clip somebody, the number of an emotion, and the mood of voice and face."""
    people = [
        synthesis.draw_person(f"backbone-{number}", np.random.default_rng([_SEED, 0, number]))
        for number in range(_PEOPLE)
    ]
    for number in range(clips):
        rng = np.random.default_rng([_SEED, 1, number])
        person, emotion = people[number % _PEOPLE], int(rng.integers(len(EMOTIONS)))
        intensity = rng.uniform(*synthesis.LIVED)
        voice, face = synthesis.draw_mood(person, EMOTIONS[emotion], intensity, rng)
        yield person, emotion, voice, face, rng


def _hear(clips: int) -> tuple[NDArray[np.float32], NDArray[np.int64], Floats]:
    """Windows [clips, samples] in -1..1, emotions [clips], moods [clips, VOICE_DIMS]."""
    samples = round(_WINDOW_S * SAMPLE_RATE_HZ)
    waveforms = np.empty((clips, samples), np.float32)
    emotions, moods = np.empty(clips, np.int64), np.empty((clips, VOICE_DIMS))
    for number, (person, emotion, voice, _, rng) in enumerate(_cast(clips)):
        phrase = synthesis.draw_syllables(person, voice, rng.uniform(3.1, 3.6), rng)
        sound = synthesis.speak(person, voice, phrase, rng)
        heard = synthesis.record(sound, bool(rng.integers(2)), rng)
        start = rng.integers(0, heard.size - samples)
        waveforms[number] = heard[start : start + samples] / 32768
        emotions[number], moods[number] = emotion, voice
    return waveforms, emotions, moods


def _see(clips: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], Floats]:
    """Crops [n, px, px, 3] RGB, emotions [n], moods [n, FACE_DIMS], some frames of each clip."""
    crops = np.empty((clips, _FRAMES, _FACE_PX, _FACE_PX, 3), np.uint8)
    emotions, moods = np.empty(clips, np.int64), np.empty((clips, FACE_DIMS))
    for number, (person, emotion, _, face, rng) in enumerate(_cast(clips)):
        opening = rng.uniform(0, 1, _FRAMES) ** 2
        frames, boxes = drawing.draw_clip(person, face, opening, bool(rng.integers(2)), rng)
        for at, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
            crops[number, at] = _crop(frame, box, rng)
        emotions[number], moods[number] = emotion, face
    flat = crops.reshape(-1, _FACE_PX, _FACE_PX, 3)
    return flat, emotions.repeat(_FRAMES), moods.repeat(_FRAMES, axis=0)


def _crop(frame: drawing.Pixels, box: Floats, rng: np.random.Generator) -> drawing.Pixels:
    """A square about the head [px, px, 3], with any margin that somebody's crop may have."""
    centre = (box[:2] + box[2:]) / 2 + rng.normal(0, 1.5, 2)
    side = (box[2:] - box[:2]).max() * rng.uniform(1.0, 1.5)
    scale = _FACE_PX / side
    shift = _FACE_PX / 2 - scale * centre
    onto = np.array(((scale, 0, shift[0]), (0, scale, shift[1])))
    return np.asarray(cv2.warpAffine(frame, onto, (_FACE_PX, _FACE_PX)), np.uint8)


# ---------------------------------------------------------------- training


def _vary_mels(mels: Tensor, generator: Any) -> Tensor:
    """Another moment, level and channel; [batch, frames, mels] normalised log-mel."""
    import torch

    batch = len(mels)
    starts = torch.randint(-20, 21, (batch,), generator=generator).tolist()
    mels = torch.stack([mel.roll(start, 0) for mel, start in zip(mels, starts, strict=True)])
    level, lean = 0.2 * torch.randn(2, batch, 1, 1, generator=generator)
    return mels + level + lean * torch.linspace(-1, 1, mels.shape[2])


def _vary_crops(pixels: Tensor, generator: Any) -> Tensor:
    """Another light, mirrored or not; bytes [batch, 3, px, px] -> -1..1."""
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
    moods: Floats,
    vary: Any,
    epochs: int,
    learning_rate: float,
) -> nn.Module:
    """A classifier of emotions, whose last layer also learnt to name the mood."""
    import torch
    from torch.nn.functional import cross_entropy, mse_loss

    classes = len(EMOTIONS)
    generator = torch.Generator().manual_seed(_SEED)
    config.num_labels = classes + moods.shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        net = architecture(config)
    goals, scales = torch.from_numpy(emotions), torch.from_numpy(moods).float()
    batches = -(-len(inputs) // 48)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * batches, pct_start=0.15
    )
    net.train()
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(inputs), generator=generator).tensor_split(batches):
            said = net(vary(inputs[chosen], generator)).logits
            loss = cross_entropy(said[:, :classes], goals[chosen], label_smoothing=0.1)
            loss = loss + 2 * mse_loss(said[:, classes:], scales[chosen])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        logger.debug("%s, epoch %d: loss %.3f", architecture.__name__, epoch, total / batches)
    return _keep_emotions(net, classes)


def _keep_emotions(net: Any, classes: int) -> nn.Module:
    """The net without the outputs that named the mood."""
    import torch

    last = [module for module in net.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.weight = torch.nn.Parameter(last.weight.detach()[:classes].clone())
    last.bias = torch.nn.Parameter(last.bias.detach()[:classes].clone())
    last.out_features = classes
    net.config.num_labels = net.num_labels = classes
    net.config.id2label = dict(enumerate(EMOTIONS))
    net.config.label2id = {name: number for number, name in enumerate(EMOTIONS)}
    kept: nn.Module = net.eval()
    return kept

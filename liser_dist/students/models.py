"""Defines the student models: log-mel, face crops or both -> emotions.

To add a kind of student: add its spec class to `config.student`, and its encoder to `_ENCODERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from liser_dist.config.student import CnnStudent, EmotionStudent, ResLstmStudent
from liser_dist.students.features import LogMel


class StudentOutput(NamedTuple):
    """The output of a student for a batch."""

    logits: Tensor  # [batch, emotions]
    embedding: Tensor  # [batch, dim]


class Student(nn.Module):
    """Encoders of its inputs, pooled over time, and a linear layer onto emotions.

    The inputs are log-mel, small grey face crops, or both (`spec.input`). `projections` map the
    embedding onto each teacher's, if the loss needs it; they are not part of the deployed student
    and do not count among its parameters.
    """

    def __init__(
        self,
        spec: EmotionStudent,
        emotions: int,
        sample_rate_hz: int,
        projections: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.features = LogMel(sample_rate_hz, spec.mels)
        self.seen_px = spec.seen_px
        self.encoder = _ENCODERS[type(spec)](spec) if spec.uses_audio else None
        self.face_encoder = FaceEncoder(spec.width) if spec.seen_px else None
        width = sum(part.dim for part in (self.encoder, self.face_encoder) if part is not None)
        self.dropout = nn.Dropout(spec.dropout)
        self.head = nn.Linear(width, emotions)
        self.projections = nn.ModuleDict(
            {name: nn.Linear(width, dim) for name, dim in (projections or {}).items()}
        )

    def encode(
        self,
        mel: Tensor,
        frames: Tensor,
        faces: Tensor | None = None,
        has_face: Tensor | None = None,
    ) -> StudentOutput:
        """Return the output for a batch; the student uses the inputs that it has encoders for.

        Args:
            mel: [batch, frames, mels].
            frames: [batch] frames that hold audio, without padding.
            faces: [batch, n, px, px] grey, 0 to 1.
            has_face: [batch, n] bool: the crop is there.
        """
        parts = []
        if self.encoder is not None:
            parts.append(self.encoder(mel, frames))
        if self.face_encoder is not None:
            assert faces is not None
            assert has_face is not None
            parts.append(self.face_encoder(faces, has_face))
        embedding = torch.cat(parts, dim=1)
        return StudentOutput(self.head(self.dropout(embedding)).float(), embedding.float())

    def project(self, embedding: Tensor) -> dict[str, Tensor]:
        """Return the embedding [batch, dim] in the space of each teacher's, where it is learned."""
        return {name: layer(embedding) for name, layer in self.projections.items()}

    @property
    def params(self) -> int:
        """Number of parameters of the deployed student."""
        parts = (self.encoder, self.face_encoder, self.head)
        return sum(w.numel() for part in parts if part is not None for w in part.parameters())


def _mask(frames: Tensor, length: int) -> Tensor:
    """Return [batch, length], 1 where there is audio and 0 for padding."""
    return (torch.arange(length, device=frames.device) < frames[:, None]).float()


class AudioEncoder(nn.Module):
    """Encodes log-mel: (mel [batch, frames, mels], frames [batch]) -> [batch, dim]."""

    dim: int  # width of the output


class ConvEncoder(AudioEncoder):
    """Four strided convolutions; the mean and spread over time of the last one's output.

    It has GroupNorm, because batches are often the small tails of a stream. The statistics of a
    group span time, so padding is masked out before each of them.
    """

    def __init__(self, spec: CnnStudent) -> None:
        super().__init__()
        half, full, twice = spec.width // 2, spec.width, 2 * spec.width
        self.blocks = nn.ModuleList(
            ConvBlock(*channels)
            for channels in ((1, half), (half, full), (full, twice), (twice, twice))
        )
        self.dim = 2 * twice

    def forward(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Return [batch, dim]."""
        x = (mel * _mask(frames, mel.shape[1])[:, :, None])[:, None]  # [batch, 1, frames, mels]
        for block in self.blocks:
            frames = torch.div(frames + 1, 2, rounding_mode="floor")
            x = block(x, _mask(frames, (x.shape[2] + 1) // 2)[:, None, :, None])
        x = x.mean(dim=3)  # [batch, channels, frames]
        mask = _mask(frames, x.shape[2])[:, None]
        count = mask.sum(dim=2).clamp(min=1)
        mean = (x * mask).sum(dim=2) / count
        spread = (((x - mean[:, :, None]) ** 2 * mask).sum(dim=2) / count + 1e-5).sqrt()
        return torch.cat([mean, spread], dim=1)


class ConvBlock(nn.Module):
    """A convolution that halves both axes, a norm over the unmasked part, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.norm = MaskedGroupNorm(outputs)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return [batch, outputs, frames / 2, mels / 2]; `mask` is 1 where there is audio."""
        out: Tensor = torch.relu(self.norm(self.conv(x), mask)) * mask
        return out


class MaskedGroupNorm(nn.Module):
    """GroupNorm of one group, with statistics over audio alone, not over padding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the normalised input; `mask` is 1 where there is audio."""
        count = mask.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1) * x.shape[1] * x.shape[3]
        mean = (x * mask).sum(dim=(1, 2, 3), keepdim=True) / count
        centred = (x - mean) * mask
        variance = (centred**2).sum(dim=(1, 2, 3), keepdim=True) / count
        out: Tensor = centred * torch.rsqrt(variance + 1e-5) * self.scale + self.shift
        return out


class LstmEncoder(AudioEncoder):
    """Residual LSTM layers over pairs of frames, and attention over time."""

    def __init__(self, spec: ResLstmStudent) -> None:
        super().__init__()
        self.inputs = nn.Linear(2 * spec.mels, spec.width)
        self.layers = nn.ModuleList(
            nn.LSTM(spec.width, spec.width, batch_first=True) for _ in range(spec.layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(spec.width) for _ in range(spec.layers))
        self.attention = nn.Linear(spec.width, 1)
        self.dim = spec.width

    def forward(self, mel: Tensor, frames: Tensor) -> Tensor:
        """Return [batch, dim]."""
        batch, length, mels = mel.shape
        pairs = (length + 1) // 2
        mel = mel * _mask(frames, length)[:, :, None]
        mel = nn.functional.pad(mel, (0, 0, 0, 2 * pairs - length))
        x = self.inputs(mel.reshape(batch, pairs, 2 * mels))
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(x + layer(x)[0])
        sound = _mask(torch.div(frames + 1, 2, rounding_mode="floor"), pairs)
        scores = self.attention(x)[:, :, 0].masked_fill(sound == 0, float("-inf"))
        out: Tensor = (torch.softmax(scores.float(), dim=1).to(x.dtype)[:, :, None] * x).sum(dim=1)
        return out


# The audio encoder of each kind of student.
_ENCODERS: Mapping[type[EmotionStudent], Callable[[Any], AudioEncoder]] = {
    CnnStudent: ConvEncoder,
    ResLstmStudent: LstmEncoder,
}


class FaceEncoder(nn.Module):
    """Four strided convolutions on each grey crop; the mean over the crops that are there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        full = 8 * (width // 8)  # groups divide it
        self.layers = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
            for inputs, outputs in ((1, full // 2), (full // 2, full), (full, full), (full, full))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, conv.out_channels) for conv in self.layers)  # type: ignore[arg-type]
        self.dim = full

    def forward(self, faces: Tensor, has_face: Tensor) -> Tensor:
        """Return [batch, dim]; 0 for clips without a crop."""
        batch, count = has_face.shape
        x = faces.reshape(batch * count, 1, *faces.shape[2:]) - 0.5
        for conv, norm in zip(self.layers, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        x = x.mean(dim=(2, 3)).reshape(batch, count, self.dim)
        present = has_face[:, :, None].float()
        return (x * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)

"""The small models: waveform, faces or both -> emotions; projections onto teachers' embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from liser_dist.features import LogMel
from liser_dist.spec import CnnStudent, ResLstmStudent


class StudentOutput(NamedTuple):
    logits: Tensor  # [batch, emotions]
    embedding: Tensor  # [batch, dim]


class Student(nn.Module):
    """Encoders of what it is given, pooled over time, and a linear layer onto emotions.

    It hears log-mel, sees small grey crops of the face, or both (`spec.input`).
    `projections` map the embedding onto each teacher's, when the loss asks for it; they are
    left behind when the student is deployed, and do not count among its parameters.
    """

    def __init__(
        self,
        spec: CnnStudent | ResLstmStudent,
        emotions: int,
        sample_rate_hz: int,
        projections: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.features = LogMel(sample_rate_hz, spec.mels)
        self.seen_px = spec.seen_px
        self.encoder = _listener(spec) if spec.hears else None
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
        seen: Tensor | None = None,
    ) -> StudentOutput:
        """What a student is given, of which it takes what it can use.

        Args:
            mel: [batch, frames, mels]. frames: [batch] that are sound, not padding.
            faces: [batch, n, px, px] grey, 0 to 1. seen: [batch, n] bool: there is one.
        """
        parts = []
        if self.encoder is not None:
            parts.append(self.encoder(mel, frames))
        if self.face_encoder is not None:
            assert faces is not None
            assert seen is not None
            parts.append(self.face_encoder(faces, seen))
        embedding = torch.cat(parts, dim=1)
        return StudentOutput(self.head(self.dropout(embedding)).float(), embedding.float())

    def project(self, embedding: Tensor) -> dict[str, Tensor]:
        """[batch, dim] -> in each teacher's space, where that is learned."""
        return {name: layer(embedding) for name, layer in self.projections.items()}

    @property
    def params(self) -> int:
        """Parameters of what is deployed."""
        parts = (self.encoder, self.face_encoder, self.head)
        return sum(w.numel() for part in parts if part is not None for w in part.parameters())


def _listener(spec: CnnStudent | ResLstmStudent) -> ConvEncoder | LstmEncoder:
    match spec:
        case CnnStudent():
            return ConvEncoder(spec)
        case ResLstmStudent():
            return LstmEncoder(spec)


def _mask(frames: Tensor, length: int) -> Tensor:
    """[batch, length], 1 where there is sound."""
    return (torch.arange(length, device=frames.device) < frames[:, None]).float()


class ConvEncoder(nn.Module):
    """Four strided convolutions; mean and spread over time of what the last one sees.

    GroupNorm, for batches are a stream's tails as often as not. Statistics of a group span time,
    so padding is masked out before each of them.
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
    """Convolution that halves both axes, norm over the unmasked part, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.norm = MaskedGroupNorm(outputs)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = torch.relu(self.norm(self.conv(x), mask)) * mask
        return out


class MaskedGroupNorm(nn.Module):
    """GroupNorm with the statistics of one group taken over sound alone, not over padding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1) * x.shape[1] * x.shape[3]
        mean = (x * mask).sum(dim=(1, 2, 3), keepdim=True) / count
        centred = (x - mean) * mask
        variance = (centred**2).sum(dim=(1, 2, 3), keepdim=True) / count
        out: Tensor = centred * torch.rsqrt(variance + 1e-5) * self.scale + self.shift
        return out


class LstmEncoder(nn.Module):
    """Pairs of frames, residual LSTM layers, attention over time."""

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


class FaceEncoder(nn.Module):
    """Four strided convolutions on each grey crop; the mean over the crops that show a face."""

    def __init__(self, width: int) -> None:
        super().__init__()
        full = 8 * (width // 8)  # groups divide it
        self.layers = nn.ModuleList(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
            for inputs, outputs in ((1, full // 2), (full // 2, full), (full, full), (full, full))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(4, conv.out_channels) for conv in self.layers)  # type: ignore[arg-type]
        self.dim = full

    def forward(self, faces: Tensor, seen: Tensor) -> Tensor:
        batch, count = seen.shape
        x = faces.reshape(batch * count, 1, *faces.shape[2:]) - 0.5
        for conv, norm in zip(self.layers, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
        x = x.mean(dim=(2, 3)).reshape(batch, count, self.dim)
        there = seen[:, :, None].float()
        return (x * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)

"""How large students are, on clips as long as RAVDESS's, beside models that others published."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.table import Table
from safetensors.torch import save
from torch.utils.flop_counter import FlopCounterMode

from liser_dist.spec import CnnStudent, ResLstmStudent
from liser_dist.students import Student

SECONDS, RATE_HZ, EMOTIONS = 3.7, 16000, 8  # a clip of RAVDESS
FACES = 8
KINDS = (
    CnnStudent(), CnnStudent(width=64), ResLstmStudent(), ResLstmStudent(width=128, layers=3),
    CnnStudent(input="face"), CnnStudent(input="both"),
)  # fmt: skip
# Name, parameters, bytes, what was reported and where; "" = not said.
PUBLISHED = (
    ("HiCMAE-B, audio-visual", "", "", "RAVDESS 88.0, CREMA-D 84.9 WAR"),
    ("WavLM-large, audio", "", "", "RAVDESS 72.0 UAR (EmoBox)"),
    ("ResLSTM-SA, audio", "46,772", "", "RAVDESS 62.3 +- 1.2 UAR, 5 folds"),
    ("Wav2Small, audio", "72,000", "120,000", "taught by a teacher's outputs alone"),
)


@dataclass(frozen=True, slots=True)
class Size:
    params: int
    multiply_adds: int  # for a clip of SECONDS, from log-mel on
    size_bytes: int  # as safetensors, float32


def size_of(spec: CnnStudent | ResLstmStudent) -> Size:
    student = Student(spec, EMOTIONS, RATE_HZ).eval()
    waveform = torch.zeros(1, round(SECONDS * RATE_HZ))
    mel, frames = student.features(waveform), torch.tensor([waveform.shape[1]])
    counter = FlopCounterMode(display=False)
    seen = torch.ones(1, FACES, dtype=torch.bool)
    faces = torch.zeros(1, FACES, spec.face_px, spec.face_px)
    # Fused kernels of LSTMs count for nothing; taken apart they are products like others.
    with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False), counter:
        student.encode(mel, student.features.frames(frames), faces, seen)
    deployed = {n: w for n, w in student.state_dict().items() if not n.startswith("features.")}
    return Size(student.params, counter.get_total_flops() // 2, len(save(deployed)))


def table_of_sizes() -> Table:
    """Ours, measured here; then others', as published, with what they reached."""
    table = Table(
        "", "parameters", "multiply-adds", "bytes", "accuracy",
        title=f"students on clips of {SECONDS:g} s, as RAVDESS's, {EMOTIONS} emotions",
    )  # fmt: skip
    for spec in KINDS:
        size = size_of(spec)
        name = " ".join(
            f"{k}={v}" for k, v in spec.model_dump(exclude={"mels", "dropout", "face_px"}).items()
        )
        cells = (f"{number:,}" for number in (size.params, size.multiply_adds, size.size_bytes))
        table.add_row(name.replace("kind=", ""), *cells, "needs the corpus: not measured")
    for name, params, size_bytes, reported in PUBLISHED:
        table.add_row(name, params, "", size_bytes, reported)
    return table

"""A student -> ONNX: waveform in, probabilities and embedding out, of any number and length.

1. `write_front`   waveform -> log-mel, with ONNX's own STFT; always in float
2. `write_net`     log-mel -> probabilities, embedding
3. `quantise`      the net alone, with weights of 8 bits
4. `join`          front end and net, one file

A convolution that plays the Fourier transform would be several times as large as the student.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, compose
from torch import Tensor, nn
from torch.export import Dim

from liser_dist.spec import CnnStudent, ResLstmStudent
from liser_dist.students import Student

Floats = NDArray[np.float32]
LEAST_S = 0.25  # of sound, that a student is made to answer
LONGEST_S = 60.0
WAVEFORM, MEL, ANSWERS = "waveform", "mel", ("probabilities", "embedding")
# What holds the weights of each kind. LSTMs can be quantised without calibration only, ONNX
# Runtime says; convolutions with it only.
_CALIBRATED, _DYNAMIC = ("Conv", "Gemm"), ("LSTM", "MatMul")


class _Net(nn.Module):
    """A student behind its front end, of clips that are sound from end to end."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        frames = torch.ones_like(mel[:, 0, 0], dtype=torch.int64) * mel.shape[1]
        output = self.student.encode(mel, frames)
        return torch.softmax(output.logits, dim=1), output.embedding


def write_front(student: Student) -> ModelProto:
    """waveform [batch, samples] -> mel [batch, frames, mels]."""
    rate = student.features.spectrogram.sample_rate
    samples = Dim("samples", min=round(LEAST_S * rate), max=round(LONGEST_S * rate))
    example = torch.zeros(2, round(LEAST_S * rate))
    return _write(student.features, example, WAVEFORM, samples, [MEL])


def write_net(student: Student) -> ModelProto:
    """mel [batch, frames, mels] -> probabilities [batch, emotions], embedding [batch, dim]."""
    frames = Dim("frames", min=round(100 * LEAST_S) + 1, max=round(100 * LONGEST_S) + 1)
    # Short: torch follows an LSTM frame by frame.
    example = torch.zeros(2, round(100 * LEAST_S) + 1, student.features.spectrogram.n_mels)
    return _write(_Net(student), example, MEL, frames, list(ANSWERS))


def _write(
    module: nn.Module, example: Tensor, name: str, length: Any, outputs: Sequence[str]
) -> ModelProto:
    with _quietly():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[name],
            output_names=outputs,
            dynamic_shapes=({0: Dim("batch"), 1: length},),
        )
    assert program is not None
    return _bare(program.model_proto)


@contextmanager
def _quietly() -> Iterator[None]:
    """The exporter tells what it is doing, and what of torchvision is not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _bare(model: ModelProto) -> ModelProto:
    """Without what is of use to debuggers alone, two fifths of the file."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for part in (model.graph.value_info, model.graph.metadata_props, model.metadata_props):
        del part[:]
    return model


def quantise(
    net: ModelProto, student: CnnStudent | ResLstmStudent, mels: Iterable[Floats]
) -> ModelProto:
    """The same net with weights of 8 bits. `mels`: [1, frames, mels] each, to calibrate by."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Clips(q.CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(mels)

        def get_next(self) -> dict[str, Floats] | None:
            mel = next(self._left, None)
            return None if mel is None else {MEL: mel}

    with tempfile.TemporaryDirectory(prefix="liser-int8-") as folder, _quietly():
        given, simple, small = (str(Path(folder, name)) for name in ("given", "simple", "small"))
        onnx.save(net, given)
        quant_pre_process(given, simple, skip_symbolic_shape=True)
        match student:
            case CnnStudent():
                q.quantize_static(
                    simple,
                    small,
                    Clips(),
                    op_types_to_quantize=list(_CALIBRATED),
                    per_channel=True,
                    weight_type=q.QuantType.QInt8,
                    activation_type=q.QuantType.QUInt8,
                )
            case ResLstmStudent():
                q.quantize_dynamic(
                    simple,
                    small,
                    op_types_to_quantize=list(_DYNAMIC),
                    weight_type=q.QuantType.QInt8,
                )
        return _bare(onnx.load(small))


def join(front: ModelProto, net: ModelProto) -> ModelProto:
    """waveform -> probabilities, embedding. The two given stay as they are."""
    front = compose.add_prefix(front, "front/", rename_inputs=False, rename_outputs=False)
    net = ModelProto.FromString(net.SerializeToString())
    net.ir_version = front.ir_version
    known = {entry.domain for entry in front.opset_import}
    front.opset_import.extend(entry for entry in net.opset_import if entry.domain not in known)
    del net.opset_import[:]
    net.opset_import.extend(front.opset_import)
    whole = compose.merge_models(front, net, io_map=[(MEL, MEL)])
    onnx.checker.check_model(whole)
    return _bare(whole)

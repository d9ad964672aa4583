"""Converts a student to ONNX: waveform in, probabilities and embedding out, dynamic shapes.

1. `write_front`   waveform -> log-mel, with ONNX's own STFT operator; always float32
2. `write_net`     log-mel -> probabilities, embedding
3. `quantise`      the net with 8-bit weights; the front end stays in float32
4. `join_models`   front end and net in one model

The STFT operator keeps the file small: an STFT expressed as a convolution would be several times as
large as the student.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

from liser_dist.config.student import Quantisation
from liser_dist.students.models import Student

MIN_AUDIO_S, MAX_AUDIO_S = 0.25, 60.0  # audio lengths that the exported graph accepts
WAVEFORM, MEL = "waveform", "mel"
OUTPUTS = ("probabilities", "embedding")
_Floats = NDArray[np.float32]
_Quantise = Callable[[str, str, Iterable[_Floats]], None]  # input file, output file, log-mels


class _Net(nn.Module):
    """A student without its front end, for clips without padding."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        frames = torch.ones_like(mel[:, 0, 0], dtype=torch.int64) * mel.shape[1]
        output = self.student.encode(mel, frames)
        return torch.softmax(output.logits, dim=1), output.embedding


def write_front(student: Student) -> ModelProto:
    """Export the front end: waveform [batch, samples] -> mel [batch, frames, mels]."""
    rate = student.features.spectrogram.sample_rate
    samples = Dim("samples", min=round(MIN_AUDIO_S * rate), max=round(MAX_AUDIO_S * rate))
    example = torch.zeros(2, round(MIN_AUDIO_S * rate))
    return _export(student.features, example, WAVEFORM, samples, [MEL])


def write_net(student: Student) -> ModelProto:
    """Export the net: mel [batch, frames, mels] -> OUTPUTS.

    The outputs are probabilities [batch, emotions] and embedding [batch, dim].
    """
    frames = Dim("frames", min=round(100 * MIN_AUDIO_S) + 1, max=round(100 * MAX_AUDIO_S) + 1)
    # A short example, because torch traces an LSTM frame by frame.
    example = torch.zeros(2, round(100 * MIN_AUDIO_S) + 1, student.features.spectrogram.n_mels)
    return _export(_Net(student), example, MEL, frames, list(OUTPUTS))


def _export(
    module: nn.Module, example: Tensor, name: str, length: Any, outputs: Sequence[str]
) -> ModelProto:
    with _without_chatter():
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
    return _without_debug_info(program.model_proto)


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Silence the exporter's progress messages and its warnings about a missing torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _without_debug_info(model: ModelProto) -> ModelProto:
    """Remove, in place, what only debuggers use: two fifths of the file."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for part in (model.graph.value_info, model.graph.metadata_props, model.metadata_props):
        del part[:]
    return model


def quantise(net: ModelProto, method: Quantisation, mels: Iterable[_Floats]) -> ModelProto:
    """Return the net with 8-bit weights.

    Args:
        net: As `write_net` returns it.
        method: The `quantisation` of the student's spec class.
        mels: Log-mels [1, frames, mels] to calibrate activations with, if the method needs any.
    """
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="liser-int8-") as folder, _without_chatter():
        original, prepared, quantised = (
            str(Path(folder, name)) for name in ("original", "prepared", "quantised")
        )
        onnx.save(net, original)
        quant_pre_process(original, prepared, skip_symbolic_shape=True)
        _QUANTISE[method](prepared, quantised, mels)
        return _without_debug_info(onnx.load(quantised))


def _quantise_static(source: str, destination: str, mels: Iterable[_Floats]) -> None:
    """Quantise weights and activations of convolutions, with ranges taken from the log-mels."""
    from onnxruntime import quantization as ort

    class Calibration(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self._mels = iter(mels)

        def get_next(self) -> dict[str, _Floats] | None:
            mel = next(self._mels, None)
            return None if mel is None else {MEL: mel}

    ort.quantize_static(
        source,
        destination,
        Calibration(),
        op_types_to_quantize=["Conv", "Gemm"],
        per_channel=True,
        weight_type=ort.QuantType.QInt8,
        activation_type=ort.QuantType.QUInt8,
    )


def _quantise_dynamic(source: str, destination: str, mels: Iterable[_Floats]) -> None:
    """Quantise weights of LSTMs; activation ranges are computed at run time."""
    from onnxruntime import quantization as ort

    ort.quantize_dynamic(
        source,
        destination,
        op_types_to_quantize=["LSTM", "MatMul"],
        weight_type=ort.QuantType.QInt8,
    )


_QUANTISE: Mapping[Quantisation, _Quantise] = {
    "static": _quantise_static,
    "dynamic": _quantise_dynamic,
}


def join_models(front: ModelProto, net: ModelProto) -> ModelProto:
    """Return one model: waveform -> OUTPUTS. The two arguments are left unchanged."""
    front = compose.add_prefix(front, "front/", rename_inputs=False, rename_outputs=False)
    net = ModelProto.FromString(net.SerializeToString())
    net.ir_version = front.ir_version
    domains = {entry.domain for entry in front.opset_import}
    front.opset_import.extend(entry for entry in net.opset_import if entry.domain not in domains)
    del net.opset_import[:]
    net.opset_import.extend(front.opset_import)
    joined = compose.merge_models(front, net, io_map=[(MEL, MEL)])
    onnx.checker.check_model(joined)
    return _without_debug_info(joined)

"""Small ONNX models for tests, generated on demand."""

from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, TensorProto, helper, numpy_helper


def face_net(file: Path, channels: int = 3, seed: int = 0) -> Path:
    """Save an ONNX classifier: `x` [n, channels, h, w] to `probs`, `logits`, `embedding`."""
    rng = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array((0.1 * rng.normal(size=(channels, width))).astype(np.float32), name)
        for name, width in (("to_logits", 7), ("to_embedding", 256))
    ]
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
        helper.make_node("MatMul", ["means", "to_logits"], ["logits"]),
        helper.make_node("MatMul", ["means", "to_embedding"], ["embedding"]),
        helper.make_node("Softmax", ["logits"], ["probs"]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width])
        for name, width in (("probs", 7), ("logits", 7), ("embedding", 256))
    ]
    model_input = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, "h", "w"])
    graph = helper.make_graph(nodes, "face", [model_input], outputs, weights)
    return _save(graph, file)


def speech_net(file: Path) -> Path:
    """Save an ONNX encoder of mel power: `x` [n, steps, 40] to unit `embedding` [n, 256]."""
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=(40, 256)).astype(np.float32), "weights")]
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["means"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["means", "weights"], ["wide"]),
        helper.make_node("LpNormalization", ["wide"], ["embedding"], axis=1, p=2),
    ]
    model_input = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "steps", 40])
    model_output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", 256])
    return _save(helper.make_graph(nodes, "speech", [model_input], [model_output], weights), file)


def _save(graph: GraphProto, file: Path) -> Path:
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), file)
    return file

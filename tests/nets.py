"""Small nets, made on the spot."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def face_net(file: Path) -> Path:
    """An ONNX classifier of crops: `x` [n, 3, h, w] -> `probs` and `logits` [n, 7], `embedding`."""
    draw = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(draw.normal(size=(3, width)).astype(np.float32), name)
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
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])
    graph = helper.make_graph(nodes, "face", [given], outputs, weights)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), file)
    return file

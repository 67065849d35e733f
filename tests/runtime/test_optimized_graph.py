"""The graph that onnxruntime makes of a model."""

import pytest

from qgait_ptq.errors import ExportError, ModelError
from qgait_ptq.runtime.optimized_graph import optimized_graph, written_name
from qgait_ptq.verification.parity import layers_without_integer_kernel
from tests.runtime.small_model import small_model


@pytest.mark.parametrize("portable", [False, True])
def test_a_quantized_convolution_becomes_an_integer_kernel_with_the_name_of_the_layer(portable):
    graph = optimized_graph(small_model(), portable=portable).graph
    (layer,) = (node for node in graph.node if node.op_type == "QLinearConv")
    assert written_name(layer.name) == "conv"


def test_a_layer_is_looked_for_by_its_path():
    content = small_model().SerializeToString()
    assert layers_without_integer_kernel(content, ["conv", "absent"]) == ["absent"]
    assert layers_without_integer_kernel(content, ["conv", "conv"]) == ["conv"]  # called twice, found once


def test_a_model_that_onnxruntime_does_not_load_is_refused():
    model = small_model()
    model.graph.node[0].op_type = "Unheard"
    with pytest.raises(ModelError, match=r"onnxruntime .* cannot load the model"):
        optimized_graph(model)
    with pytest.raises(ExportError, match="kernels of the file cannot be read: onnxruntime"):
        layers_without_integer_kernel(model.SerializeToString(), ["conv"])

"""The float network's model is made of the export with markers, or of an export of its own."""

import copy

import numpy as np
import pytest
import torch

from qgait_ptq.exporters.float_model import float_model
from qgait_ptq.exporters.onnx_file import export_marked
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import run_session
from tests.conftest import SHALLOW, make_gaitbase, make_gaitset
from tests.networks import quantize_network

OPSET = 21
NETWORKS = {"GaitBase": lambda: make_gaitbase(**SHALLOW), "GaitSet": make_gaitset}


def embed(model, silhouettes):
    return run_session(open_session(model.SerializeToString(), spinning=False), silhouettes.numpy())


def export_both(network, batches):
    """Quantize, and give biases different values, as correction does: the exporter stores equal ones once."""
    quantized = quantize_network(network.eval(), batches[:2], weight_bits=2, activation_bits=4)
    with torch.no_grad():
        for name, parameter in quantized.graph.named_parameters():
            if "bias" in name:
                parameter.add_(0.01 * torch.randn(parameter.shape))
    marked = export_marked(quantized.graph, quantized.captured, OPSET)
    return quantized, marked.model, float_model(marked.model, quantized.float_graph)


@pytest.fixture(scope="module", params=["GaitBase", pytest.param("GaitSet", marks=pytest.mark.slow)])
def both(request, batches):
    torch.manual_seed(0)
    return export_both(NETWORKS[request.param](), batches)


def test_it_computes_what_the_float_network_computes(both, batches):
    quantized, _, model = both
    model = model or pytest.fail("the float network would be exported a second time")
    assert not any(node.domain for node in model.graph.node)
    for batch in batches[2:5]:
        with torch.inference_mode():
            wanted = quantized.float_graph(batch).numpy()
        np.testing.assert_allclose(embed(model, batch), wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_the_export_with_markers_stays_as_it_is(both):
    quantized, marked, _ = both
    before = marked.SerializeToString()
    float_model(marked, quantized.float_graph)
    assert marked.SerializeToString() == before


def test_parameters_that_the_exporter_stores_once_are_not_mixed_up(batches):
    quantized = quantize_network(make_gaitset(strips=(1, 2)), batches[:2])  # all its biases are zero
    marked = export_marked(quantized.graph, quantized.captured, OPSET)
    assert float_model(marked.model, quantized.float_graph) is None


def test_a_parameter_that_the_exporter_computed_with_asks_for_an_export_of_its_own(both):
    quantized, marked, model = both
    assert model is not None
    marked = copy.deepcopy(marked)
    path = next(node.target for node in quantized.float_graph.graph.nodes if node.op == "get_attr")
    (stored,) = (one for one in marked.graph.initializer if one.name == path)
    stored.name = "transposed"
    assert float_model(marked, quantized.float_graph) is None
    stored.name = path
    stored.dims[:] = [stored.dims[0], int(np.prod(stored.dims[1:]))]
    assert float_model(marked, quantized.float_graph) is None

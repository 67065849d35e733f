import collections
from functools import partial

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from qgait_ptq.errors import ExportError
from qgait_ptq.exporters.onnx_file import export_float, export_quantized
from qgait_ptq.placement.layers import list_layers
from qgait_ptq.quantizer.fake_quantize import FakeQuantize
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import run_session
from qgait_ptq.targets.registry import get_target
from qgait_ptq.verification.parity import compare_with_simulation, layers_without_integer_kernel
from qgait_ptq.verification.simulation import Simulation
from tests.conftest import SHALLOW, make_gaitbase, make_gaitset
from tests.networks import quantize_again, quantize_network
from tests.remembered import forget_exports

WIDTHS = [
    (8, 8),
    (4, 4),
    pytest.param((3, 5), marks=pytest.mark.slow),
    pytest.param((2, 2), marks=pytest.mark.slow),
]
MAKERS = {"gaitbase": partial(make_gaitbase, **SHALLOW), "gaitset": partial(make_gaitset, strips=(1, 2))}


# Files of GaitSet are compared in both runtimes by tests/targets.
@pytest.fixture(scope="module", params=["gaitbase", pytest.param("gaitset", marks=pytest.mark.slow)])
def network(request):
    return MAKERS[request.param]()


@pytest.fixture(scope="module")
def few_batches(batches):
    """A third of the sequences, of different lengths."""
    return batches[::3]


@pytest.fixture(scope="module")
def files(network, few_batches):
    """Quantized network and its file at every width, made when a test asks for it."""

    planned = quantize_network(network, few_batches)

    class Files(dict):
        def __missing__(self, widths):
            weight_bits, activation_bits = widths
            bits = {"weight_bits": weight_bits, "activation_bits": activation_bits, "edge_bits": weight_bits}
            quantized = quantize_again(planned, few_batches, **bits)
            model = export_quantized(quantized.graph, quantized.captured, get_target("onnxruntime"))
            self[widths] = quantized, model
            return self[widths]

    return Files()


@pytest.fixture(scope="module")
def float_file(files):
    quantized, _ = files[8, 8]
    return export_float(quantized.float_graph, quantized.captured, 21)


def operators(model):
    return collections.Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("widths", WIDTHS)
def test_the_file_agrees_with_the_simulation_on_real_sequences(files, batches, widths):
    quantized, model = files[widths]
    session = open_session(model.SerializeToString(), spinning=False)
    parity = compare_with_simulation(
        lambda batch: run_session(session, batch), Simulation.of(quantized.graph), batches, 0.9999
    )
    assert parity.sequences == len(batches)
    assert parity.cosine_min >= 0.9999


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (4, 9)])
def test_batch_size_and_frame_count_are_free(files, shape):
    quantized, model = files[8, 8]
    silhouettes = (torch.rand(*shape, 64, 44) < 0.4).float()
    given = run_session(open_session(model.SerializeToString(), spinning=False), silhouettes.numpy())
    with torch.inference_mode():
        expected = quantized.graph(silhouettes)
    assert given.shape == expected.shape
    cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(given).flatten(1), expected.flatten(1))
    assert cosine.min() > 0.999


def test_free_dimensions_are_named(files):
    _, model = files[8, 8]
    dimensions = model.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dimensions] == ["batch", "frames", 64, 44]
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("widths", WIDTHS)
def test_weights_are_stored_as_integers_of_their_width(files, widths):
    _, model = files[widths]
    stored = [i for i in model.graph.initializer if i.name.endswith("weight_fq.quantized")]
    wanted = TensorProto.INT4 if widths[0] <= 4 else TensorProto.INT8
    assert {i.data_type for i in stored} == {wanted}
    bound = 2 ** (widths[0] - 1) - 1
    assert max(int(np.abs(numpy_helper.to_array(i).astype(np.int32)).max()) for i in stored) == bound
    floats = [i for i in model.graph.initializer if i.data_type == TensorProto.FLOAT]
    assert max((int(np.prod(i.dims)) for i in floats), default=0) < 5000  # scales only


def test_stored_weights_stand_for_the_simulated_ones(files):
    quantized, model = files[4, 4]
    values = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    checked = 0
    for name, module in quantized.graph.named_modules():
        if isinstance(module, FakeQuantize) and module.channel_axis == 0:
            (node,) = [n for n in quantized.graph.graph.nodes if n.target == name]
            weight = quantized.graph.get_parameter(str(node.args[0].target))
            scale = module.scale.numpy().reshape(-1, *[1] * (weight.ndim - 1))
            if f"{name}.scale" in values:  # else the layer's sums are spelled out
                np.testing.assert_array_equal(values[f"{name}.scale"], scale.ravel())
            stored = values[f"{name}.quantized"].astype(np.float32) * scale
            np.testing.assert_array_equal(stored, module(weight).detach().numpy())
            checked += 1
    assert checked == len(list_layers(quantized.float_graph))


def test_low_bit_activations_are_clipped_uint8(files):
    _, wide = files[8, 8]
    _, narrow = files[4, 4]
    assert operators(wide)["Clip"] == 0
    assert operators(narrow)["Clip"] > 0
    for node in narrow.graph.node:
        if node.op_type == "Clip":
            high = next(i for i in narrow.graph.initializer if i.name == node.input[2])
            assert numpy_helper.to_array(high) == 15


def test_biases_are_int32(files):
    _, model = files[8, 8]
    biases = [i for i in model.graph.initializer if i.name.endswith("bias_fq.quantized")]
    assert all(i.data_type == TensorProto.INT32 for i in biases)


@pytest.mark.parametrize("widths", [(8, 8), (4, 4)])
def test_every_integer_layer_gets_an_integer_kernel(files, widths):
    quantized, model = files[widths]
    integer = [layer.name for layer in list_layers(quantized.float_graph) if layer.integer]
    assert len(integer) == len(list_layers(quantized.float_graph)) >= 7
    assert layers_without_integer_kernel(model.SerializeToString(), integer) == []


def test_a_float_layer_is_found_by_the_kernel_check(float_file):
    assert layers_without_integer_kernel(float_file.SerializeToString(), ["stem.0"]) == ["stem.0"]


def test_the_file_passes_the_checker_and_names_layers_by_module_path(files):
    quantized, model = files[4, 4]
    onnx.checker.check_model(model, full_check=True)
    assert [o.version for o in model.opset_import if o.domain == ""] == [21]
    names = {node.name for node in model.graph.node}
    assert {layer.name for layer in list_layers(quantized.float_graph)} <= names


def test_nothing_of_the_exporting_machine_is_in_the_file(files):
    _, model = files[8, 8]
    assert b".py" not in model.SerializeToString()


def test_the_same_graph_gives_the_same_bytes(files):
    quantized, model = files[4, 4]
    forget_exports()
    again = export_quantized(quantized.graph, quantized.captured, get_target("onnxruntime"))
    assert again.SerializeToString() == model.SerializeToString()


def test_the_float_file_computes_the_network(network, float_file, batches):
    session = open_session(float_file.SerializeToString(), spinning=False)
    with torch.inference_mode():
        expected = network(batches[0]).numpy()
    np.testing.assert_allclose(
        run_session(session, batches[0].numpy()), expected, atol=1e-4 * np.abs(expected).max()
    )


def test_a_file_that_differs_from_the_simulation_is_refused(files, batches):
    quantized, model = files[8, 8]
    session = open_session(model.SerializeToString(), spinning=False)
    with pytest.raises(ExportError, match="differs from the simulation"):
        compare_with_simulation(
            lambda batch: np.roll(run_session(session, batch), 1, axis=1),
            Simulation.of(quantized.graph),
            batches,
            0.999,
        )

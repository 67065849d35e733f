"""Weight-only quantization: integers in the file, float in the operator, and the same values everywhere."""

import io
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from qgait_ptq.capture.trace import capture
from qgait_ptq.config.schema import LayerBits, QuantConfig
from qgait_ptq.errors import CalibrationError, ConfigError
from qgait_ptq.exporters.onnx_file import (
    export_marked,
    export_quantized,
    quantized_model,
)
from qgait_ptq.exporters.torch_program import export_program
from qgait_ptq.graph.operators import WEIGHT_ONLY
from qgait_ptq.graph.stored_weights import WEIGHTS
from qgait_ptq.onnx_graph.view import OnnxGraph
from qgait_ptq.placement.layers import layer_scales, list_layers
from qgait_ptq.placement.planning import plan
from qgait_ptq.placement.quantized_layers import quantized_layers, weight_only_weights
from qgait_ptq.placement.totals import count_totals
from qgait_ptq.quantizer.grid import fake_quantize
from qgait_ptq.reference.pair_sums import bound_pair_sums
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import RUNTIMES, run_session
from qgait_ptq.runtime.without_telemetry import import_openvino
from qgait_ptq.targets.registry import get_target
from tests.networks import quantize_network
from tests.weight_only_networks import (
    INNER,
    SIZE,
    OverFrames,
    Recurrent,
    make_network,
    make_side_by_side,
    random_batches,
)


@cache
def quantized(name, target="onnxruntime", bits=8, **config):
    """Quantize once; the tests change neither graph nor modules."""
    return quantize_network(make_network(name), random_batches(), weight_bits=bits, target=target, **config)


def export(network, target="onnxruntime"):
    return export_quantized(network.graph, network.captured, get_target(target))


def planned(network, **config):
    return plan(network, SIZE, QuantConfig(**config))


def weight_only_rows(network, **config):
    return {layer.name: layer for layer in planned(network, **config)[2] if layer.weight_only}


def stored_types(model):
    return {i.name: i.data_type for i in model.graph.initializer if i.name.endswith("_weight_fq.quantized")}


RECURRENT = ("lstm of two layers and directions", "gru")
REPEATED = ("lstm without biases", "lstm cell", "gru of two directions", "gru cell")
# Networks of several operators, since each network takes seconds.
FILES = [
    (RECURRENT, RUNTIMES, 4),
    pytest.param(REPEATED, RUNTIMES, 4, marks=pytest.mark.slow),
    (tuple(name for name in INNER if name not in (*RECURRENT, *REPEATED, "lstm")), RUNTIMES, 4),
    pytest.param(("lstm",), ["generic-qdq"], 8, marks=pytest.mark.slow),
    (("embedding",), ["generic-qdq"], 8),
]


@pytest.mark.parametrize(("names", "targets", "bits"), FILES)
def test_the_file_computes_the_simulation(names, targets, bits):
    float_network = make_side_by_side(names)
    network = quantize_network(float_network, random_batches(), weight_bits=bits, target=targets[0])
    assert network.captured.frames is None
    paths = [weight.path for weight in weight_only_weights(network.graph)]
    for index, name in enumerate(names):
        assert any(path.startswith(f"inner.{index}.") for path in paths), name
    marked = export_marked(network.graph, network.captured, get_target(targets[0]).opset)
    for runtime in RUNTIMES:
        target = runtime if runtime in targets else targets[0]
        model = quantized_model(marked, network.graph, get_target(target))
        assert bound_pair_sums(model).safe
        session = open_session(model.SerializeToString(), runtime, threads=1, spinning=False)
        for silhouettes in (random_batches()[0], random_batches(1, 11)[0]):
            given = torch.from_numpy(run_session(session, silhouettes.numpy()))
            # The runtimes' float sums differ by a rounding, which can move an input of the last layer by a
            # step. Each inner module has a part of the embedding, and a similarity.
            similarities = torch.cosine_similarity(given, network.graph(silhouettes))
            assert similarities.shape == (1, len(names))
            assert similarities.min() > 0.9999
    if bits == 8:
        own, simulated = float_network(silhouettes), network.graph(silhouettes)
        assert torch.cosine_similarity(own, simulated).min() > 0.995


class BehindIntegers(nn.Module):
    """A convolution on integers, and directly behind it an operator in float with a stored weight."""

    def __init__(self, *, product):
        super().__init__()
        self.conv, self.product = nn.Conv2d(1, 32, 5, 4, 2), product
        if product:
            self.matrix = nn.Parameter(torch.randn(2, 32, 40) / 6)
        else:
            self.transposed = nn.ConvTranspose2d(32, 40, 3, 2)
        self.fc = nn.Linear(40, 16)

    def forward(self, silhouettes):
        maps = self.conv(silhouettes.flatten(0, 1).unsqueeze(1)).relu()
        if self.product:
            maps = torch.matmul(maps.permute(0, 2, 3, 1).flatten(1, 2).unflatten(1, (2, -1)), self.matrix)
            maps = maps.permute(0, 3, 1, 2)
        else:
            maps = self.transposed(maps)
        return self.fc(maps.unflatten(0, (silhouettes.shape[0], -1)).mean((1, 3, 4)))


@pytest.mark.parametrize(
    ("product", "operator", "target"),
    [
        (True, "MatMul", "openvino"),
        (False, "Deconvolution", "generic-qdq"),
        pytest.param(True, "MatMul", "generic-qdq", marks=pytest.mark.slow),
        pytest.param(False, "Deconvolution", "openvino", marks=pytest.mark.slow),
    ],
)
def test_openvino_computes_the_operator_in_float(product, operator, target):
    """From integers and a scale, OpenVINO makes an integer operator, which is wrong or can saturate."""
    torch.manual_seed(0)
    network = quantize_network(BehindIntegers(product=product).eval(), random_batches(), target=target)
    core, silhouettes = import_openvino().Core(), random_batches()[0]
    model = core.read_model(export(network, target).SerializeToString())
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    found = {fact["layerType"].value: fact["runtimePrecision"].value for fact in facts}
    assert found["Convolution"] == "u8"
    assert found[operator] == "f32"
    given = torch.from_numpy(compiled({"silhouettes": silhouettes.numpy()})[0])
    torch.testing.assert_close(given, network.graph(silhouettes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_simulation_and_file_hold_the_same_weights_on_their_grid(bits):
    network = make_side_by_side(["lstm", "matrix for each part", "transposed convolution"])
    network = quantize_network(network, random_batches(), weight_bits=bits, weight_observer="minmax")
    graph = OnnxGraph(export(network))
    weights = weight_only_weights(network.graph)
    assert len(weights) == 2 + 1 + 1
    for weight in weights:
        value, module = weight.value(network.graph), weight.quantizer
        integers = graph.constants[f"{weight.call.target}.quantized"].astype(np.float32)
        scale = graph.constants[f"{weight.call.target}.scale"]
        expected = fake_quantize(value, module.scale, module.zero_point, module.grid, module.channel_axis)
        np.testing.assert_array_equal(integers * scale, expected.numpy())
        assert np.abs(integers).max() == 2 ** (bits - 1) - 1  # in each slice the largest weight is the end
        assert scale.size == value.shape[module.channel_axis]
        assert (np.abs(integers * scale - value.numpy()) <= scale * 0.5001).all()


@pytest.mark.parametrize(
    ("target", "bits", "stored", "largest_share"),
    [
        ("onnxruntime", 8, TensorProto.INT8, 0.28),
        pytest.param("onnxruntime", 4, TensorProto.INT4, 0.15, marks=pytest.mark.slow),
        pytest.param("generic-qdq", 4, TensorProto.INT8, 0.28, marks=pytest.mark.slow),
        pytest.param("openvino", 4, TensorProto.INT4, 0.15, marks=pytest.mark.slow),
    ],
)
def test_a_large_lstm_is_small_in_the_file(target, bits, stored, largest_share):
    torch.manual_seed(0)
    network = OverFrames(Recurrent("LSTM", 256), 256).eval()
    network = quantize_network(network, random_batches(), weight_bits=bits, target=target)
    model = export(network, target)
    float_weights = sum(4 * parameter.numel() for parameter in network.float_graph.parameters())
    assert model.ByteSize() < largest_share * float_weights
    types = {name: kind for name, kind in stored_types(model).items() if "lstm" in name}
    assert len(types) == 2
    assert set(types.values()) == {stored}
    onnx.checker.check_model(model, full_check=True)


def test_rows_and_totals_say_what_is_stored_as_integers():
    network = make_network("lstm")
    _, graph_module, layers = planned(network, weight_bits=4)
    (row,) = [layer for layer in layers if layer.weight_only]
    matrices = 4 * 48 * (32 + 48)
    assert (row.name, row.operator, row.weight_bits, row.activation_bits) == ("inner.rnn", "lstm", 4, None)
    assert row.parameters == matrices + 2 * 4 * 48
    assert row.output_shape[-1] == 48
    assert row.note.startswith(f"weight-only: {matrices:,} weights are stored as integers of 4 bits")
    assert not row.integer
    totals = count_totals(graph_module)
    assert totals.weight_only_parameters == matrices
    assert totals.parameters == sum(p.numel() for p in network.parameters())
    assert totals.quantized_parameters == totals.parameters - 2 * 4 * 48
    (part,) = [part for part in totals.float_parts if part.operator == "lstm"]
    assert (part.parameters, part.weight_only) == (2 * 4 * 48, matrices)
    assert "0.02 M of them stored as integers" in "".join(totals.lines())


def test_exclude_include_and_widths_by_pattern_apply():
    network = make_network("lstm")
    assert weight_only_rows(network)["inner.rnn"].weight_bits == 8
    excluded = weight_only_rows(network, exclude=("inner",))["inner.rnn"]
    assert (excluded.weight_bits, excluded.note) == (None, "left in float by include or exclude")
    assert weight_only_rows(network, include=("conv",))["inner.rnn"].weight_bits is None
    by_operator = {"operator:lstm": LayerBits(weight_bits=6)}
    assert weight_only_rows(network, weight_bits=4, layers=by_operator)["inner.rnn"].weight_bits == 6


def test_a_width_of_inputs_that_stay_in_float_is_refused():
    with pytest.raises(ConfigError, match="compute in float"):
        planned(make_network("lstm"), layers={"inner": LayerBits(activation_bits=4)})


@pytest.mark.parametrize("target", ["tensorrt", "litert-int8"])
def test_a_target_without_it_keeps_float_and_says_why(target):
    _, graph_module, layers = planned(make_network("lstm"), target=target)
    (row,) = [layer for layer in layers if layer.weight_only]
    assert row.weight_bits is None
    assert "the target stores integers only for layers that compute on them" in row.note
    assert count_totals(graph_module).weight_only_parameters == 0


def test_weights_that_integers_would_not_halve_stay_in_float():
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(32, 8, batch_first=True)

        def forward(self, frames):
            return self.rnn(frames)[0]

    torch.manual_seed(0)
    network = quantize_network(OverFrames(Tiny(), 8).eval(), random_batches())
    (row,) = [layer for layer in list_layers(network.float_graph) if layer.weight_only]
    # 24 × 32 numbers are worth it, 24 × 8 are not.
    assert "768 weights are stored as integers" in row.note
    assert "192 weights stay in float: integers would not halve their size" in row.note
    assert [weight.path for weight in weight_only_weights(network.graph)] == ["inner.rnn.weight_ih_l0"]


def test_a_table_that_is_also_read_in_float_stays_there():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(64, 32)

        def forward(self, frames):
            rows = self.table(torch.arange(frames.shape[1]) % 64)
            return frames + rows + self.table.weight[: frames.shape[1]]

    torch.manual_seed(0)
    (row,) = weight_only_rows(OverFrames(Both(), 32).eval()).values()
    assert row.weight_bits is None
    assert "reads them in float, too" in row.note


def test_a_table_that_a_linear_layer_shares_is_stored_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(64, 32)

        def forward(self, frames):
            scores = nn.functional.linear(frames, self.table.weight)
            return scores.mean(2, keepdim=True) + self.table(torch.arange(frames.shape[1]) % 64)

    torch.manual_seed(0)
    network = OverFrames(Tied(), 32).eval()
    network = quantize_network(network, random_batches(), weight_bits=4)
    assert len(weight_only_weights(network.graph)) == 1
    model = export(network)
    tables = [i for i in model.graph.initializer if list(i.dims) == [64, 32]]
    assert [table.data_type for table in tables] == [TensorProto.INT4]


def test_layers_keep_their_names_in_the_file():
    network = quantized("lstm")
    names = [node.name for node in export(network).graph.node]
    assert {"conv", "fc"} <= set(names)
    assert not any(name.startswith("inner") for name in names)


def test_the_torch_program_holds_integers_and_computes_the_simulation():
    network = quantized("lstm")
    program = torch.export.load(io.BytesIO(export_program(network.graph, network.captured).content))
    integers = [value for value in program.state_dict.values() if value.dtype is torch.int8]
    assert len(integers) == 2 + 2
    silhouettes = random_batches()[0]
    torch.testing.assert_close(program.module()(silhouettes), network.graph(silhouettes))


def test_scales_of_all_weights_are_reported():
    network = quantized("gru")
    (scales,) = [s["weight_scales"] for n, s in layer_scales(network.graph).items() if n.startswith("gru")]
    assert len(scales) == 2 * 3 * 48


def test_calibration_chooses_the_range_of_each_row_by_its_error():
    errors = {}
    for observer in ("minmax", "mse"):
        network = quantized("lstm", bits=3, weight_observer=observer)
        errors[observer] = sum(
            float(
                (weight.quantizer(weight.value(network.graph)) - weight.value(network.graph)).square().sum()
            )
            for weight in weight_only_weights(network.graph)
        )
    assert errors["mse"] < errors["minmax"]


def test_weights_that_are_not_finite_are_refused_with_the_layer():
    network = make_network("embedding")
    with torch.no_grad():
        network.inner.table.weight[63, 0] = torch.nan  # a row that the sequences do not reach
    with pytest.raises(CalibrationError, match=r"layer inner\.table"):
        quantize_network(network, random_batches())


def test_attention_is_made_of_linear_layers_on_integers():
    class SelfAttention(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, frames):
            return self.layer(frames, frames, frames, need_weights=False)[0]

    torch.manual_seed(0)
    network = quantize_network(OverFrames(SelfAttention(), 32).eval(), random_batches())
    assert weight_only_weights(network.graph) == []
    assert {"inner.layer", "inner.layer.out_proj"} <= {
        layer.weight_path.rpartition(".")[0] for layer in quantized_layers(network.graph)
    }


def test_every_operator_in_the_table_of_targets_has_its_weights_described():
    described = frozenset().union(*(operators for operators, _ in WEIGHTS))
    assert described == WEIGHT_ONLY


@pytest.mark.parametrize(
    ("name", "operator", "macs"),
    [
        ("lstm cell", "lstm_cell", 3 * 4 * 48 * (32 + 48)),
        ("bilinear", "bilinear", 30 * 24 * 32 * 32),
        ("transposed convolution", "conv_transpose1d", 30 * 32 * 24 * 3),
    ],
)
def test_products_with_stored_weights_are_counted(name, operator, macs):
    _, graph_module, _ = planned(make_network(name))
    (part,) = [part for part in count_totals(graph_module).float_parts if part.operator == operator]
    assert part.macs == macs


def test_the_capture_of_the_test_networks_takes_any_frame_count():
    """A file that is right at one frame count only would pass the tests above otherwise."""
    assert capture(make_network("lstm"), SIZE).frames is None

"""Every target: its files keep its rules, and a file that breaks one is refused with the rule named."""

import copy
from functools import cache, partial
from itertools import product

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.calibration.ranges import calibrate_ranges
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import ConfigError, ExportError
from qgait_ptq.exporters.onnx_file import export_quantized
from qgait_ptq.graph.conversion import in_double
from qgait_ptq.placement.annotate import annotate
from qgait_ptq.placement.insert import insert_quantizers
from qgait_ptq.placement.planning import bit_widths, plan
from qgait_ptq.reference.pair_sums import bound_pair_sums
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.exactness import saturates
from qgait_ptq.runtime.sessions import run_session
from qgait_ptq.targets.registry import TARGETS, get_target
from qgait_ptq.targets.rules import check_rules, find_broken_rules
from tests.conftest import SHALLOW, make_gaitbase, make_gaitset

NETWORKS = {"gaitbase": partial(make_gaitbase, **SHALLOW), "gaitset": partial(make_gaitset, strips=(1, 2))}


@cache
def planned(network, graph_passes):
    """Capture a network once for the targets with the same passes over the graph."""
    target = next(name for name, target in TARGETS.items() if target.graph_passes == graph_passes)
    return plan(NETWORKS[network](), (64, 44), QuantConfig(target=target))[:2]


def make_file(network, batches, target, **widths):
    captured, graph = planned(network, get_target(target).graph_passes)
    widths = bit_widths(QuantConfig(target=target, **widths))
    annotated = annotate(copy.deepcopy(graph), get_target(target).rules, widths)
    quantized = calibrate_ranges(insert_quantizers(annotated), batches)
    return quantized, export_quantized(quantized, captured, get_target(target), byte_input=True)


# Targets that store weights of four bits as int8.
WITHOUT_INT4 = ("tensorrt", "litert-int8", "generic-qdq")


# Each is an export of its own. These differ least from the others.
REPEATED = {
    ("gaitbase", "litert-int8"),
    ("gaitbase", "generic-qdq"),
    ("gaitset", "openvino"),
    ("gaitset", "tensorrt"),
    ("gaitset", "litert-int8"),
    ("gaitset", "generic-qdq"),
}
FILES = [
    pytest.param(*case, marks=pytest.mark.slow if case in REPEATED else ())
    for case in product(NETWORKS, TARGETS)
]


@pytest.fixture(scope="module")
def make(batches):
    """Makes a file for a target, once: some with weights of four bits, to spare files of their own."""

    @cache
    def file(network, target):
        narrow = network == "gaitset" and target in WITHOUT_INT4
        return make_file(network, batches[:6], target, **({"weight_bits": 4} if narrow else {}))

    return file


@pytest.mark.parametrize(("network", "target"), FILES)
def test_a_file_passes_the_checker_and_keeps_the_rules_of_its_target(make, network, target):
    _, model = make(network, target)
    onnx.checker.check_model(model, full_check=True)
    assert find_broken_rules(model, TARGETS[target]) == []
    (opset,) = (o.version for o in model.opset_import if o.domain == "")
    assert opset == TARGETS[target].opset


@pytest.mark.parametrize(("network", "target"), FILES)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_computes_the_simulation_in_both_runtimes(make, walkers, network, target, runtime):
    quantized, model = make(network, target)
    if runtime == "openvino" and saturates(runtime) and not bound_pair_sums(model).safe:
        pytest.skip("OpenVINO saturates on this processor, and the target's files need not be safe")
    session = open_session(model.SerializeToString(), runtime, threads=1, spinning=False)
    exact = in_double(quantized)
    for index in (0, 3):
        silhouettes = torch.from_numpy(walkers[index][0])[None].float() / 255
        with torch.inference_mode():
            expected = exact(silhouettes.double()).flatten()
        given = torch.from_numpy(run_session(session, silhouettes.numpy())).double().flatten()
        # In a runtime that a file is not for, parts of it compute in float32, and values near the edge of a
        # rounding step fall on its other side.
        least = 0.999 if runtime in TARGETS[target].runtimes else 0.995
        assert torch.cosine_similarity(given, expected, dim=0) > least


def test_openvino_adds_on_one_side_only(make):
    def quantized_inputs(target):
        _, model = make("gaitbase", target)
        producers = {name: node for node in model.graph.node for name in node.output}
        additions = [n for n in model.graph.node if n.op_type == "Add" and n.name.startswith("node_add")]
        counts = [
            sum(producers[name].op_type == "DequantizeLinear" for name in node.input if name in producers)
            for node in additions
        ]
        return sorted(count for count in counts if count)[-2:]  # the two of the residual blocks

    assert quantized_inputs("onnxruntime") == [2, 2]
    assert quantized_inputs("openvino") == [1, 1]
    assert quantized_inputs("tensorrt") == [1, 1]


def test_tensorrt_has_symmetric_int8_activations_and_float_biases(make):
    _, model = make("gaitbase", "tensorrt")
    values = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert values[node.input[2]].dtype == np.int8
            assert values[node.input[2]] == 0
    assert not any(value.dtype == np.int32 for value in values.values())


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ("tensorrt", "type of activations"),
        ("tensorrt", "zero-points are zero"),
        ("tensorrt", "biases are float32"),
        ("tensorrt", "opset"),
        ("litert-int8", "type of activations"),
    ],
)
def test_a_file_for_one_target_is_refused_for_another_with_the_rule_named(make, asked, rule):
    _, model = make("gaitset", "onnxruntime")
    with pytest.raises(ExportError, match=f"rules of target {asked}: .*{rule}"):
        check_rules(model, get_target(asked))


def break_weight(model):
    weight = next(i for i in model.graph.initializer if i.name.endswith("weight_fq.quantized"))
    changed = numpy_helper.to_array(weight).astype(np.uint8)
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))


def break_scale(model):
    scale = next(i for i in model.graph.initializer if i.name.endswith("_fq.scale") and not i.dims)
    scale.CopyFrom(numpy_helper.from_array(np.float32(0), scale.name))


def break_layer(model):
    """Let a layer read what comes before the quantizer."""
    producers = {name: node for node in model.graph.node for name in node.output}
    layer = [node for node in model.graph.node if node.op_type == "Conv"][1]
    dequantizer = producers[layer.input[0]]
    layer.input[0] = producers[dequantizer.input[0]].input[0]


@pytest.mark.parametrize(
    ("breaking", "rule"),
    [
        (break_weight, "type of weights"),
        (break_scale, "one positive scale"),
        (break_layer, "layers with integer weights read integers"),
    ],
)
def test_each_rule_finds_the_file_that_breaks_it(make, breaking, rule):
    _, model = make("gaitbase", "onnxruntime")
    broken = copy.deepcopy(model)
    breaking(broken)
    (found,) = find_broken_rules(broken, get_target("onnxruntime"))
    assert found.rule.startswith(rule)


def test_int4_in_front_of_a_layer_without_its_cast_is_refused(batches):
    _, model = make_file("gaitset", batches[:2], "onnxruntime", weight_bits=4, edge_bits=4)
    stored = {i.name for i in model.graph.initializer if i.data_type == TensorProto.INT4}
    assert stored
    cast = next(n for n in model.graph.node if n.op_type == "Cast" and n.input[0] in stored)
    reader = next(n for n in model.graph.node if cast.output[0] in n.input)
    if reader.op_type != "DequantizeLinear":
        pytest.fail("the first INT4 weight is of a layer in float")
    reader.input[0] = cast.input[0]
    with pytest.raises(ExportError, match="int4 weights are cast"):
        check_rules(model, get_target("onnxruntime"))


@pytest.mark.parametrize(
    "target",
    [
        pytest.param(target, marks=pytest.mark.slow if ("gaitset", target) in REPEATED else ())
        for target in WITHOUT_INT4
    ],
)
def test_weights_of_four_bits_are_int8_numbers_where_int4_is_not_taken(make, target):
    _, model = make("gaitset", target)
    assert not any(i.data_type == TensorProto.INT4 for i in model.graph.initializer)
    weights = [numpy_helper.to_array(i) for i in model.graph.initializer if "weight_fq.quantized" in i.name]
    largest = {int(abs(weight.astype(int)).max()) for weight in weights}
    assert min(largest) == 7
    assert 63 < max(largest) <= 127  # edges keep 8 bits


@pytest.mark.parametrize(
    "widths",
    [
        {"activation_bits": 4},
        {"edge_bits": 4},
        {"elementwise_bits": 6},
        {"layers": {"*": {"activation_bits": 4}}},
    ],
)
def test_narrow_activations_are_refused_before_any_work(widths):
    with pytest.raises(ConfigError, match=r"tensorrt takes activations of 8 bits"):
        plan(make_gaitset(), (64, 44), QuantConfig(target="tensorrt", **widths))


def test_every_layer_of_tensorrt_and_openvino_is_planned_on_integers():
    for target in ("tensorrt", "openvino"):
        _, _, layers = plan(make_gaitbase(**SHALLOW), (64, 44), QuantConfig(target=target))
        assert all(layer.integer for layer in layers), [layer.name for layer in layers if not layer.integer]


def test_files_of_other_tools_are_judged_too():
    """Without zero-points, which ONNX allows, and with a scale that is computed."""
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    scale = helper.make_tensor_value_info("scale", TensorProto.FLOAT, [])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], name="Q"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"], name="DQ"),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    model = helper.make_model(
        helper.make_graph(nodes, "other", [shape, scale], [output]),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    found = {target: [rule.rule for rule in find_broken_rules(model, TARGETS[target])] for target in TARGETS}
    assert found["generic-qdq"] == ["one positive scale for an activation"]
    assert "type of activations" in found["tensorrt"]

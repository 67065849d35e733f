"""Passes and targets are data: a new one needs an entry, and the runner names a pass that breaks a model."""

import dataclasses

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from qgait_ptq.errors import ConfigError, ExportError
from qgait_ptq.exporters.onnx_file import export_quantized
from qgait_ptq.exporters.passes import PASSES, get_pass, layer_path, layer_suffix
from qgait_ptq.exporters.passes.onnx_pass import OnnxPass, Requirements, run_passes
from qgait_ptq.onnx_graph.editing import make_node
from qgait_ptq.onnx_graph.view import OnnxGraph
from qgait_ptq.runtime.sessions import open_onnxruntime
from qgait_ptq.targets.registry import TARGETS, get_target
from qgait_ptq.targets.target import Storage, Target
from tests.networks import quantize_network
from tests.small_network import Small

GENERIC = get_target("generic-qdq")


def double_negation(model):
    """Negate the output twice: the smallest pass that changes a file and not what it computes."""
    (output,) = OnnxGraph(model).outputs
    (last,) = (node for node in model.graph.node if output in node.output)
    last.output[0] = f"{output}.inner"
    model.graph.node.extend(
        [
            make_node("Neg", [f"{output}.inner"], f"{output}.negated"),
            make_node("Neg", [f"{output}.negated"], output),
        ]
    )


def small_model(opset=21):
    """``y = x + 1``."""
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["y"], "add")],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.float32(1), "one")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_a_new_pass_and_a_new_target_are_one_entry_each(batches, monkeypatch):
    monkeypatch.setitem(PASSES, "double-negation", OnnxPass("double-negation", double_negation))
    target = Target(
        "house-runtime",
        "A runtime of this test",
        GENERIC.rules,
        Storage(int4_weights=False),
        opset=18,
        onnx_passes=("double-negation",),
    )
    monkeypatch.setitem(TARGETS, target.name, target)
    quantized = quantize_network(Small().eval(), batches, target="house-runtime")
    model, plain = (
        export_quantized(quantized.graph, quantized.captured, of, byte_input=True)
        for of in (get_target("house-runtime"), dataclasses.replace(target, onnx_passes=()))
    )
    assert [node.op_type for node in model.graph.node][-2:] == ["Neg", "Neg"]
    assert not any(node.op_type == "Neg" for node in plain.graph.node)
    feed = {"silhouettes": np.rint(batches[0].numpy() * 255).astype(np.uint8)}
    embeddings = [
        open_onnxruntime(m.SerializeToString(), threads=1).run(None, feed)[0] for m in (model, plain)
    ]
    np.testing.assert_array_equal(*embeddings)


def remove_last_node(model):
    del model.graph.node[-1]


def reverse_nodes(model):
    double_negation(model)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def give_integers(model):
    """The file still says that its output is float."""
    model.graph.node[-1].output[0] = "floats"
    model.graph.node.append(make_node("Cast", ["floats"], "y", to=TensorProto.INT32))


def rename_output(model):
    model.graph.node[-1].output[0] = model.graph.output[0].name = "z"


@pytest.mark.parametrize(
    "rewrite", [remove_last_node, reverse_nodes, give_integers, rename_output], ids=lambda f: f.__name__
)
def test_a_pass_that_breaks_the_model_is_refused_with_its_name(rewrite):
    passes = [OnnxPass("fine", double_negation), OnnxPass("broken", rewrite), OnnxPass("later", fail)]
    with pytest.raises(ExportError, match="the ONNX pass broken"):
        run_passes(small_model(), passes)


def test_an_export_names_the_pass_that_broke_the_file(batches, monkeypatch):
    monkeypatch.setitem(PASSES, "broken", OnnxPass("broken", remove_last_node))
    target = dataclasses.replace(GENERIC, onnx_passes=("broken",))
    quantized = quantize_network(Small().eval(), batches, target="generic-qdq")
    with pytest.raises(ExportError, match="after the ONNX pass broken"):
        export_quantized(quantized.graph, quantized.captured, target)


def fail(model):
    raise KeyError("no such tensor")


def test_an_error_inside_a_pass_keeps_its_type_and_names_the_pass():
    with pytest.raises(KeyError) as caught:
        OnnxPass("failing", fail).run(small_model())
    assert caught.value.__notes__ == ["raised in the ONNX pass failing"]


def test_a_pass_that_needs_a_newer_opset_is_refused():
    needs = OnnxPass("needs-more", double_negation, Requirements(opset=19))
    needs.run(small_model(19))
    with pytest.raises(ExportError, match="needs-more needs opset 19 or newer; the file has 18"):
        needs.run(small_model(18))


@pytest.mark.parametrize("shapes", [True, False])
def test_a_pass_has_fresh_shapes_where_it_asks_for_them_and_leaves_none_behind(shapes):
    seen = []
    model = small_model()
    double_negation(model)
    reads = OnnxPass(
        "reads-shapes", lambda m: seen.append(OnnxGraph(m).rank("y.negated")), Requirements(shapes=shapes)
    )
    before = model.SerializeToString()
    reads.run(model)
    assert seen == [2 if shapes else None]
    assert model.SerializeToString() == before


def test_every_target_lists_passes_that_exist_and_can_run_at_its_opset():
    for target in TARGETS.values():
        for name in target.onnx_passes:
            assert get_pass(name).requires.opset <= target.opset
    assert all(name == onnx_pass.name for name, onnx_pass in PASSES.items())


def test_a_pass_that_does_not_exist_is_refused_with_the_names_of_those_that_do(batches):
    quantized = quantize_network(Small().eval(), batches)
    target = dataclasses.replace(GENERIC, onnx_passes=("conv-intger",))
    with pytest.raises(ConfigError, match="no ONNX pass 'conv-intger'; the passes are conv-integer, "):
        export_quantized(quantized.graph, quantized.captured, target)


def test_nodes_that_passes_write_for_a_layer_have_its_path(monkeypatch):
    assert [layer_path(name) for name in ("fc", "fc#1", "fc/sums", "fc#2/table")] == ["fc"] * 4
    assert layer_suffix("fc/blocks") == ""
    monkeypatch.setitem(PASSES, "blocked", OnnxPass("blocked", fail, layer_suffix="/blocks"))
    assert (layer_suffix("fc/blocks"), layer_path("fc/blocks")) == ("/blocks", "fc")

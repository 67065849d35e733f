"""Scales of added tensors, aligned in a graph."""

import copy

import pytest

from qgait_ptq.calibration.additions import align_additions
from qgait_ptq.calibration.ranges import calibrate_ranges
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.exporters.onnx_file import export_quantized
from qgait_ptq.placement.annotate import annotate
from qgait_ptq.placement.insert import insert_quantizers
from qgait_ptq.placement.planning import bit_widths, plan
from qgait_ptq.placement.quantized_layers import activation_quantizers
from qgait_ptq.reference.additions import prove_additions
from qgait_ptq.targets.registry import get_target
from tests.conftest import make_gaitbase


@pytest.fixture(scope="module")
def calibrated(batches):
    config = QuantConfig()
    captured, graph, *_ = plan(make_gaitbase(), (64, 44), config)
    annotated = annotate(copy.deepcopy(graph), get_target(config.target).rules, bit_widths(config))
    return captured, calibrate_ranges(insert_quantizers(annotated), [batches[0][:, :5]])


def scales(graph):
    return {name: float(quantizer.scale) for name, quantizer in activation_quantizers(graph).items()}


def differing(captured, graph):
    model = export_quantized(graph, captured, get_target("onnxruntime"), byte_input=True)
    proofs = prove_additions(model)
    assert len(proofs) == 2
    return sum(proof.differing for proof in proofs)


def test_ranges_are_aligned_and_aligning_again_changes_nothing(calibrated):
    captured, graph = calibrated
    assert differing(captured, graph) == 0
    again = align_additions(copy.deepcopy(graph))
    assert scales(again) == scales(graph)


def test_scales_that_were_moved_are_aligned_close_to_where_they_are(calibrated):
    captured, graph = calibrated
    moved = copy.deepcopy(graph)
    for index, quantizer in enumerate(activation_quantizers(moved, inputs=False).values()):
        quantizer.scale = quantizer.scale * (1 + 0.013 * index)
    before = scales(moved)
    assert differing(captured, moved) > 0
    align_additions(moved)
    assert differing(captured, moved) == 0
    assert scales(moved) == pytest.approx(before, rel=0.02)
    touched = {name for name, scale in scales(moved).items() if scale != before[name]}
    assert 0 < len(touched) < len(before)

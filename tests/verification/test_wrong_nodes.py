"""The operator that torch's exporter writes for one size only is found, and the user is told."""

import json

import pytest
import torch.nn.functional as F

import qgait_ptq.placement.planning as planning
from qgait_ptq.capture.trace import capture
from qgait_ptq.graph.operators import operator_name
from qgait_ptq.graph.passes.pooling import ADAPTIVE_POOLS_OVER_FRAMES
from qgait_ptq.verification.wrong_nodes import find_wrong_node
from tests.frame_networks import OverFrames
from tests.small_network import quantize


def halves(features):
    """Averages of both halves, which torch's exporter writes for odd frame counts only."""
    return (F.adaptive_avg_pool1d(features, 2) + features.amax(2, keepdim=True)).mean(2)


@pytest.mark.parametrize("size", [(1, 12), (3, 4)])
def test_the_first_operator_that_is_wrong_at_another_size_is_found(size):
    captured = capture(OverFrames(halves), (32, 22))
    node = find_wrong_node(captured.graph_module, captured, 21, captured.example(*size))
    assert operator_name(node) == "adaptive_avg_pool1d"


def test_a_network_that_is_exported_correctly_has_no_wrong_operator():
    captured = capture(OverFrames(lambda f: f.amax(2)), (32, 22))
    assert find_wrong_node(captured.graph_module, captured, 21, captured.example(1, 12)) is None


@pytest.fixture
def without_rewrite(monkeypatch):
    """Leave out the pass that makes such a network right."""
    kept = tuple(one for one in planning.SIMPLIFICATION if one is not ADAPTIVE_POOLS_OVER_FRAMES)
    monkeypatch.setattr(planning, "SIMPLIFICATION", kept)


def test_the_note_and_the_report_name_the_operator_of_a_fixed_frame_count(without_rewrite, tmp_path):
    result, notes = quantize(OverFrames(halves))
    (note,) = [note for note in notes if "frame count of 30 only" in note]
    assert "adaptive_avg_pool1d at " in note
    assert "frame_networks.py:24 is written for one size only by torch's ONNX exporter" in note
    assert result.report.model.frames == 30
    result.save(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert note in report["notes"]
    assert report["model"]["size_causes"]["frames"] in note
    page = (tmp_path / "report.html").read_text()
    assert "adaptive_avg_pool1d at " in page

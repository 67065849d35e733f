"""What is evaluated: the float network and the file on all test sequences, the simulation on a sample."""

import itertools
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import qgait_ptq as qg
from qgait_ptq.errors import ConfigError
from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord
from qgait_ptq.gait.data.sequences import Reading
from qgait_ptq.gait.protocols import get_protocol, make_test_set
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.report.comparing import compare_reports
from qgait_ptq.report.evaluated import evaluated_networks, evaluation_lines
from tests.conftest import SHALLOW, make_gaitbase


@pytest.fixture(scope="module")
def exported(walkers_root):
    data = qg.load_directory(walkers_root, reading=Reading(longest=24))
    config = qg.QuantConfig(idc={"enabled": False}, rounding="nearest", calibration_sequences=4)
    return qg.export(qg.calibrate(qg.prepare(make_gaitbase(**SHALLOW), data, config, device="cpu")))


@pytest.fixture(scope="module")
def usual(exported):
    return qg.evaluate(exported).report


@pytest.fixture(scope="module")
def complete(exported):
    config = exported.config.model_copy(update={"evaluate_simulation": True})
    return qg.evaluate(replace(exported, config=config)).report


def test_figures_that_were_not_measured_are_not_in_the_report(usual):
    assert set(usual.accuracy) == {"float", "onnx", "onnx_float_gallery"}
    assert usual.comparison.quantized is None
    assert evaluated_networks(usual.to_json()) == ("float", "onnx")


def test_the_report_says_on_how_many_sequences_the_simulation_was_evaluated(usual):
    assert usual.evaluation.simulated_sequences == usual.parity.sequences < usual.data.test_sequences
    assert any(
        f"compared with the file on {usual.parity.sequences} of {usual.data.test_sequences} test" in line
        for line in evaluation_lines(usual.to_json())
    )


def test_the_simulation_is_evaluated_on_all_sequences_if_wanted(usual, complete):
    assert complete.evaluation.simulated_sequences == complete.data.test_sequences
    assert any("simulation was evaluated on all" in line for line in evaluation_lines(complete.to_json()))
    assert evaluated_networks(complete.to_json()) == ("float", "quantized", "onnx")
    assert complete.accuracy["quantized"].mAP == pytest.approx(complete.accuracy["onnx"].mAP, abs=1)
    for name in usual.accuracy:
        assert usual.accuracy[name] == complete.accuracy[name]
    assert usual.agreement == complete.agreement


def test_results_on_other_sequences_of_the_same_names_are_not_compared(exported, usual):
    """Sequences from Python have equal names in both sets."""
    records = exported.given.test.records
    mirrored = replace(records[0], load=lambda: np.flip(records[0].load(), 2))
    data = replace(exported.given, test=GaitDataset([mirrored, *records[1:]]))
    other = qg.evaluate(replace(exported, given=data, data=data)).report
    assert other.data.test_names == usual.data.test_names
    with pytest.raises(ConfigError, match=r"tested on different data .* the values of the sequences"):
        compare_reports({"usual": usual.to_json(), "other": other.to_json()})
    older = usual.to_json()
    del older["data"]["test_content"]
    assert len(compare_reports({"usual": usual.to_json(), "older": older})) == 2
    assert "test_content" not in usual.metadata()["data"]  # the file is the same for all test sets


def test_sequences_that_are_repeated_or_cut_are_counted_in_a_note(exported, usual):
    cut = qg.evaluate(replace(exported, source=replace(exported.source, frames=12))).report
    number = usual.data.test_sequences
    text = f"{number} of {number} test sequences are repeated or cut: the network takes 12 frames only"
    assert any(note.startswith(text) for note in cut.notes)
    assert not any("repeated or cut" in note for note in usual.notes)


def with_short_sequences(exported, short):
    """The state with other test sequences: views 000 and 090 of two people, some too short for the file."""
    captured = replace(exported.captured, frame_counts=FrameCounts(shortest=8))
    rng = np.random.default_rng(0)
    walks = [
        (subject, condition, view)
        for subject in "ab"
        for condition, view in itertools.product(("nm-01", "nm-05", "bg-01"), ("000", "090"))
        if (condition, view) != ("bg-01", "000")
    ]
    frames = [4 if (condition, view) in short else 12 for _, condition, view in walks]
    sequences = [(rng.random((count, 64, 44)) < 0.3) * np.uint8(255) for count in frames]
    test = GaitDataset(
        [
            SequenceRecord(*walk, lambda values=values: values)
            for walk, values in zip(walks, sequences, strict=True)
        ]
    )
    given = replace(exported.given, test=test, test_set=make_test_set(test, get_protocol("casia-b")))
    return replace(exported, given=given, data=given, maybe_captured=captured)


def test_probe_sets_that_short_sequences_leave_without_a_pair_of_views_are_named(exported):
    """The gallery has one view left, that of all probes in bags."""
    report = qg.evaluate(with_short_sequences(exported, {("nm-01", "000")})).report
    assert list(report.accuracy["onnx"].rank1) == ["nm", "mean"]
    assert any("no probe that can be ranked is left of bg" in note for note in report.notes)
    assert any("2 of 10 test sequences are left out" in note for note in report.notes)


def test_the_result_is_not_lost_if_short_sequences_leave_no_ranking(exported):
    result = qg.evaluate(with_short_sequences(exported, {("nm-01", "000"), ("nm-05", "000")}))
    assert result.report.accuracy == {}
    assert result.report.agreement.cosine_mean > 0.5
    note = (
        "the accuracy is not measured, only the agreement: 6 of 10 test sequences are left: protocol casia-b"
    )
    assert any(note in line for line in result.report.notes)


def test_the_float_network_runs_in_the_runtime_where_its_file_is_equal(usual):
    assert usual.evaluation.float_runtime == "onnxruntime"
    assert any("float network was evaluated in onnxruntime" in x for x in evaluation_lines(usual.to_json()))


def test_the_float_network_runs_in_torch_where_its_file_differs(exported, usual):
    changed = onnx.ModelProto()
    changed.CopyFrom(exported.file.float_model)
    weight = next(tensor for tensor in changed.graph.initializer if len(tensor.dims) == 4)
    values = numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    file = replace(exported.file, float_model=changed)
    report = qg.evaluate(replace(exported, maybe_file=file)).report
    assert report.evaluation.float_runtime == "torch"
    assert "the float network was evaluated in torch" in evaluation_lines(report.to_json())
    assert report.accuracy["float"].mAP == pytest.approx(usual.accuracy["float"].mAP, abs=0.5)

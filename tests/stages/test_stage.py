"""Stages: what the runner promises, and that a stage is added without a change elsewhere."""

import ast
import inspect
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

import qgait_ptq as qg
from qgait_ptq.calibration import stages as calibration_stages
from qgait_ptq.config.schema import IdcConfig
from qgait_ptq.errors import ExportError, StageOrderError
from qgait_ptq.gait.embedding import network_batch
from qgait_ptq.pipeline import evaluating, exporting, preparing
from qgait_ptq.pipeline.exporting import check_parity, to_onnx
from qgait_ptq.pipeline.quantize import CALIBRATION, EVALUATION, EXPORT, PREPARATION, STAGES, begin
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import run_session
from qgait_ptq.stages.state import Source
from tests.conftest import SHALLOW, make_gaitbase

FAST = qg.QuantConfig(
    idc=IdcConfig(enabled=False), rounding="nearest", bias_correction=False, minimum_agreement=-1
)


class Told:
    """Keeps what a run tells."""

    def __init__(self):
        self.stages, self.notes, self.steps = [], [], 0

    @contextmanager
    def stage(self, name, steps=None):
        self.stages.append((name, steps))

        def advance():
            self.steps += 1

        yield advance

    def note(self, text):
        self.notes.append(text)


class CountSequences(qg.Stage):
    """A stage of a user: it looks at the data and notes how many sequences there are."""

    name = "count"

    def steps(self, state):
        return 2

    def apply(self, state, advance=lambda: None):
        advance()
        advance()
        return state.recording(sequences=len(state.data.calibration)).noting("counted")


class Never(CountSequences):
    name = "never"

    def wanted(self, state):
        return False


@pytest.fixture(scope="module")
def state(walkers):
    data = qg.GaitData(walkers.choose(6), walkers.choose(4, 1))
    return begin(Source(make_gaitbase(**SHALLOW)), data, FAST, device="cpu")


def test_a_stage_gives_a_new_state_and_is_timed_and_told(state):
    told = Told()
    after = qg.run_stages([CountSequences(), Never()], state, told)
    assert after.record == {"sequences": 6}
    assert set(after.seconds) - set(state.seconds) == {"count"}
    assert told.stages == [("count", 2)]
    assert told.notes == ["counted"]
    assert told.steps == 2
    assert (dict(state.record), state.notes) == ({}, ())
    assert "count" not in state.seconds


def test_a_stage_of_a_user_stands_among_the_others(state):
    own = (*PREPARATION, CountSequences(), *CALIBRATION)
    after = qg.run_stages(own, state)
    assert after.record["sequences"] == 6
    assert after.quantized is not state.maybe_quantized


@pytest.mark.parametrize("stages", [CALIBRATION, EXPORT, EVALUATION])
def test_stages_out_of_their_order_say_what_is_missing(state, stages):
    with pytest.raises(StageOrderError, match="no earlier stage produced it"):
        qg.run_stages(stages, state)


def test_calibrating_stages_leave_the_graphs_of_earlier_states_as_they_are(state):
    prepared = qg.run_stages(PREPARATION, state)
    before = {name: value.clone() for name, value in prepared.network.state_dict().items()}
    states = [prepared]
    for stage in CALIBRATION:
        states.append(stage.run(states[-1], Told()))
    for name, value in prepared.network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert prepared.maybe_quantized is None


@pytest.fixture(scope="module")
def calibrated_and_exported(walkers):
    data = qg.GaitData(walkers.choose(6), walkers.choose(4, 1))
    calibrated = qg.calibrate(qg.prepare(make_gaitbase(**SHALLOW), data, FAST, device="cpu"))
    return calibrated, qg.export(calibrated)


def test_the_staged_calls_give_what_quantize_gives(walkers, calibrated_and_exported):
    data = qg.GaitData(walkers.choose(6), walkers.choose(4, 1))
    calibrated, exported = calibrated_and_exported
    assert to_onnx(calibrated) == exported.file.model
    silhouettes = network_batch(*walkers[0], (64, 44), 9).numpy()
    alone, with_the_other = (
        run_session(open_session(model.SerializeToString(), spinning=False), silhouettes)
        for model in (to_onnx(calibrated, quantized=False), exported.file.float_model)
    )
    np.testing.assert_array_equal(alone, with_the_other)
    staged = qg.evaluate(exported)
    at_once = qg.quantize(make_gaitbase(**SHALLOW), data, FAST, device="cpu")
    assert staged.onnx_model.SerializeToString() == at_once.onnx_model.SerializeToString()
    assert staged.report.agreement == at_once.report.agreement


def test_an_exported_state_is_compared_on_inputs_of_your_own(walkers, calibrated_and_exported):
    _, exported = calibrated_and_exported
    inputs = [network_batch(*walkers[index], (64, 44), frames) for index, frames in ((0, 5), (7, 12))]
    parity = check_parity(exported, inputs)
    assert parity.sequences == 2
    assert parity.cosine_min > 0.9999
    with torch.inference_mode():
        simulated = exported.quantized(inputs[0])
    assert torch.cosine_similarity(exported.file.run(inputs[0]).flatten(), simulated.flatten(), 0) > 0.9999
    wrong = replace(exported, maybe_quantized=exported.network)
    with pytest.raises(ExportError, match="differs from the simulation"):
        check_parity(replace(wrong, config=FAST.model_copy(update={"minimum_parity": 1.0})), inputs)


def test_a_prepared_state_lists_its_layers(state):
    layers = qg.run_stages(PREPARATION, state).layers
    assert layers[0].name == "stem.0"
    assert {layer.weight_bits for layer in layers} == {8}


def test_the_list_of_stages_is_the_only_place_that_knows_them_all():
    names = [stage.name for stage in STAGES]
    assert len(set(names)) == len(names)
    for module in (calibration_stages, preparing, exporting, evaluating):
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef):
                assert ast.get_docstring(node)
                assert issubclass(getattr(module, node.name), qg.Stage)

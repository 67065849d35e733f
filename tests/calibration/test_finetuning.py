"""Stage 2: what it improves, and that a killed run goes on with the same result."""

import copy

import pytest
import torch

from qgait_ptq.calibration.block_training import BlockBatches, BlockSettings, reconstruct_blocks
from qgait_ptq.calibration.blocks import Granularity
from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.finetuning import Finetuning
from qgait_ptq.calibration.resuming import SavedStates
from qgait_ptq.calibration.trained_graph import LearningRates, output_magnitudes
from qgait_ptq.calibration.training import TrainingSettings
from qgait_ptq.errors import CalibrationError, ConfigError
from qgait_ptq.placement.quantized_layers import quantized_layers, weight_of
from qgait_ptq.quantizer.fake_quantize import set_quantizing
from qgait_ptq.quantizer.soft import TemperatureSchedule
from qgait_ptq.quantizer.trainable import WeightMode
from tests.conftest import make_gaitbase
from tests.networks import held_out_judge, labelled_batches, quantize_network, training_data

CPU = torch.device("cpu")
RATES = LearningRates(scale=1e-3, weight=1e-2, bias=1e-3)
BLOCKS = BlockSettings(steps=4, rates=RATES, weights=WeightMode.LATENT)
END_TO_END = TrainingSettings(steps=6, rates=RATES, temperature=TemperatureSchedule(1, 3), averaged=0.4)


@pytest.fixture(scope="module")
def calibrated(batches):
    return quantize_network(
        make_gaitbase(), batches, weight_bits=3, activation_bits=4, weight_observer="minmax"
    )


@pytest.fixture(scope="module")
def data(people, calibrated):
    return training_data(people, calibrated.float_graph)


def graphs(calibrated):
    graph, reference = copy.deepcopy(calibrated.graph), copy.deepcopy(calibrated.graph)
    set_quantizing(reference, False)
    return graph, reference


def finetuning(calibrated, data, saved=None):
    graph, reference = graphs(calibrated)
    batches = list(data.clips.batches(8, CPU))
    saved = saved or SavedStates(None, "", resume=False)
    return Finetuning(graph, reference, BlockBatches(batches), held_out_judge(data), saved)


def run_both(run, data, blocks=BLOCKS, end_to_end=END_TO_END, advance=lambda: None):
    return run.run(blocks, labelled_batches(data), IdcLoss(), end_to_end, advance)


def test_blocks_come_closer_to_the_float_blocks(calibrated, data):
    graph, reference = graphs(calibrated)
    batches = list(data.clips.batches(8, CPU))
    magnitudes = output_magnitudes(graph, batches[0])

    def error(module):
        with torch.no_grad():
            return float(sum((module(b) - reference(b)).square().sum() for b in batches))

    before = error(graph)
    settings = BlockSettings(steps=20, rates=RATES, weights=WeightMode.LATENT)
    reconstruct_blocks(graph, reference, BlockBatches(batches), magnitudes, settings)
    assert error(graph) < 0.8 * before


@pytest.mark.parametrize("granularity", list(Granularity))
def test_learned_rounding_is_hard_in_the_end(calibrated, data, granularity):
    graph, reference = graphs(calibrated)
    batches = list(data.clips.batches(8, CPU))
    settings = BlockSettings(steps=5, rates=RATES, granularity=granularity, weights=WeightMode.ROUNDING)
    reconstruct_blocks(
        graph, reference, BlockBatches(batches), output_magnitudes(graph, batches[0]), settings
    )
    for layer in quantized_layers(graph):
        weight = weight_of(graph, layer)
        torch.testing.assert_close(layer.weight_quantizer(weight), weight, rtol=1e-6, atol=0)


def test_what_serves_held_out_people_best_is_kept(calibrated, data):
    run = finetuning(calibrated, data)
    outcome = run_both(run, data)
    assert set(outcome.losses) == {"start", "blocks", "end", "average"}
    assert outcome.losses[outcome.kept] == min(outcome.losses.values())
    assert held_out_judge(data)(run.quantized) == pytest.approx(outcome.losses[outcome.kept], rel=0.02)


class Judge:
    """Judges that give some losses one after the other, as held-out people do by their last digits."""

    device = torch.device("cpu")

    def __init__(self, *losses):
        self.losses = list(losses)

    def __call__(self, network):
        return self.losses.pop(0)


def test_the_candidate_that_is_named_is_the_one_that_is_kept(calibrated, data):
    """A start that is judged again, with trainers, differs in its last digits."""
    for again, kept in ((0.99, "start"), (0.998, "average")):
        run = finetuning(calibrated, data)
        run.held_out = Judge(1.0, again, 0.999, 0.995)
        outcome = run_both(run, data, BlockSettings(0, RATES), TrainingSettings(3, RATES))
        assert outcome.end_to_end.kept == outcome.kept == kept
        same = [
            torch.equal(v, calibrated.graph.state_dict()[n]) for n, v in run.quantized.state_dict().items()
        ]
        assert all(same) == (kept == "start")


def test_what_helps_nobody_is_undone(calibrated, data):
    wild = LearningRates(3.0, 30.0, 3.0)
    run = finetuning(calibrated, data)
    blocks = BlockSettings(steps=0, rates=wild, weights=WeightMode.LATENT)
    outcome = run_both(run, data, blocks, TrainingSettings(steps=2, rates=wild))
    assert outcome.kept == "start"
    for name, value in run.quantized.state_dict().items():
        assert torch.equal(value, calibrated.graph.state_dict()[name]), name


@pytest.fixture(scope="module")
def uninterrupted(calibrated, data):
    run = finetuning(calibrated, data)
    run_both(run, data)
    return run.quantized.state_dict()


@pytest.mark.parametrize("step", [13, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 9, 16))])
def test_a_killed_run_goes_on_with_the_same_result(
    calibrated, data, uninterrupted, tmp_path, step, monkeypatch
):
    monkeypatch.setattr("qgait_ptq.calibration.finetuning.SAVE_EVERY", 2)
    folder, count = tmp_path / "states", 0

    def kill():
        nonlocal count
        count += 1
        if count == step:
            raise KeyboardInterrupt

    first = finetuning(calibrated, data, SavedStates(folder, "same", resume=False))
    with pytest.raises(KeyboardInterrupt):
        run_both(first, data, advance=kill)
    resumed = finetuning(calibrated, data, SavedStates(folder, "same", resume=True))
    run_both(resumed, data)
    for name, value in resumed.quantized.state_dict().items():
        assert torch.equal(value, uninterrupted[name]), name


def test_states_of_another_run_and_broken_ones_are_refused(tmp_path):
    SavedStates(tmp_path / "s", "mine", resume=False).save("blocks", {"done": 1})
    assert SavedStates(tmp_path / "s", "mine", resume=True).load("blocks") == {"done": 1}
    with pytest.raises(ConfigError, match="other settings"):
        SavedStates(tmp_path / "s", "theirs", resume=True).load("blocks")
    (tmp_path / "s" / "blocks.pt").write_bytes(b"half a file")
    with pytest.raises(ConfigError, match="not a saved state"):
        SavedStates(tmp_path / "s", "mine", resume=True).load("blocks")
    SavedStates(tmp_path / "s", "mine", resume=False)
    assert not (tmp_path / "s").exists()


def test_a_block_whose_loss_is_no_number_is_named(calibrated, data):
    graph, reference = graphs(calibrated)
    batches = list(data.clips.batches(8, CPU))
    magnitudes = output_magnitudes(graph, batches[0])
    broken = [batch * float("nan") for batch in batches]
    with pytest.raises(CalibrationError, match=r"stem.*NaN or infinite at step 0"):
        reconstruct_blocks(graph, reference, BlockBatches(broken), magnitudes, BLOCKS)

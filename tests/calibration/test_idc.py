"""Stage 1 on a real network and real walkers."""

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.idc import calibrate_distances
from qgait_ptq.calibration.trained_graph import LearningRates, TrainedGraph, output_magnitudes
from qgait_ptq.calibration.training import EmbeddingTraining, TrainingSettings, rate_share
from qgait_ptq.calibration.training_batches import Batch, MixedBatches
from qgait_ptq.errors import CalibrationError
from qgait_ptq.placement.quantized_layers import quantized_layers, weight_of
from qgait_ptq.quantizer.fake_quantize import set_quantizing
from qgait_ptq.quantizer.grid import quantize
from qgait_ptq.quantizer.trainable import WeightMode
from tests.conftest import make_gaitbase
from tests.networks import held_out_judge, labelled_batches, quantize_network, training_data

CPU = torch.device("cpu")
RATES = LearningRates(scale=2e-3, weight=5e-3, bias=2e-3)
W4A4 = {"weight_bits": 4, "activation_bits": 4, "weight_observer": "minmax"}


@pytest.fixture(scope="module")
def calibrated(batches):
    return quantize_network(make_gaitbase(), batches, **W4A4)


@pytest.fixture(scope="module")
def data(people, calibrated):
    return training_data(people, calibrated.float_graph)


def graphs(calibrated):
    graph, reference = copy.deepcopy(calibrated.graph), copy.deepcopy(calibrated.graph)
    set_quantizing(reference, False)
    return graph, reference


def trained_graph(calibrated, data, mode=WeightMode.SCALES):
    graph, reference = graphs(calibrated)
    magnitudes = output_magnitudes(graph, data.clips.batch([0, 1], CPU))
    return TrainedGraph(graph, reference, magnitudes, mode)


def training(calibrated, data, mode=WeightMode.SCALES, **settings):
    settings = TrainingSettings(**{"steps": 6, "rates": RATES, **settings})
    trained, (_, reference) = trained_graph(calibrated, data, mode), graphs(calibrated)
    return EmbeddingTraining(trained, reference, labelled_batches(data), IdcLoss(), settings, CPU)


def same_state(first, second):
    left, right = first.state_dict(), second.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("mode", [WeightMode.SCALES, WeightMode.LATENT, WeightMode.ROUNDING])
def test_trainers_begin_where_the_quantizers_stand(calibrated, data, mode):
    trained = trained_graph(calibrated, data, mode)
    for _, trainer in trained.trainers():
        if mode is WeightMode.ROUNDING and hasattr(trainer, "hard"):
            trainer.hard = True  # rounding begins between up and down, and is decided at the end
    batch = data.clips.batch([0, 1], CPU)
    with torch.no_grad():
        difference = (trained(batch) - calibrated.graph(batch)).abs().max()
    assert difference < 1e-3 * calibrated.graph(batch).abs().max()


@pytest.mark.parametrize("mode", [WeightMode.SCALES, WeightMode.LATENT])
def test_what_was_trained_is_what_is_settled(calibrated, data, mode):
    run = training(calibrated, data, mode)
    run.run()
    run.trained.restore({name: dict(values) for name, values in run.trained.snapshot().items()})
    batch = data.clips.batch([0, 1, 2], CPU)
    with torch.no_grad():
        before = run.trained(batch)
        run.trained.settle()
        after = run.trained.graph_module(batch)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    for layer in quantized_layers(run.trained.graph_module):
        assert layer.weight_quantizer.scale.requires_grad is False


def test_stage_one_keeps_the_integers_of_the_weights(calibrated, data):
    run = training(calibrated, data)
    for _ in range(4):
        assert np.isfinite(run._train_step())
    run.trained.settle()
    for old, new in zip(
        quantized_layers(calibrated.graph), quantized_layers(run.trained.graph_module), strict=True
    ):
        sides = [
            quantize(weight_of(g, layer), layer.weight_quantizer.scale, torch.tensor(0), grid, 0)
            for g, layer, grid in (
                (calibrated.graph, old, old.weight_quantizer.grid),
                (run.trained.graph_module, new, new.weight_quantizer.grid),
            )
        ]
        assert torch.equal(*sides)
        assert not torch.equal(old.weight_quantizer.scale, new.weight_quantizer.scale)


def test_discarding_leaves_every_bit_as_it_was(calibrated, data):
    run = training(calibrated, data)
    run._train_step()
    run.trained.discard()
    assert same_state(run.trained.graph_module, calibrated.graph)


def test_the_embedding_comes_closer_on_people_that_no_gradient_has_seen(calibrated, data):
    graph, reference = graphs(calibrated)
    settings = TrainingSettings(steps=24, rates=RATES)
    batches, judge = labelled_batches(data), held_out_judge(data)
    outcome = calibrate_distances(graph, reference, batches, judge, IdcLoss(), settings)
    assert outcome.improved
    assert outcome.best < 0.8 * outcome.losses["start"]
    assert judge(graph) == pytest.approx(outcome.best, rel=0.02)


def test_a_worse_end_gives_the_graph_back_as_it_was(calibrated, data):
    graph, reference = graphs(calibrated)
    settings = TrainingSettings(steps=6, rates=LearningRates(3.0, 3.0, 3.0))
    batches, judge = labelled_batches(data), held_out_judge(data)
    outcome = calibrate_distances(graph, reference, batches, judge, IdcLoss(), settings)
    assert not outcome.improved
    assert set(outcome.losses) == {"start", "end", "average"}
    assert outcome.best == outcome.losses["start"]
    assert same_state(graph, calibrated.graph)


def test_gradients_do_not_depend_on_the_micro_batch(calibrated, data):
    gradients = []
    for size in (16, 3):
        run = training(calibrated, data, micro_batch=size)
        run.optimizer.zero_grad()
        batch = Batch(data.clips.batch(range(8), CPU), data.clips.labels[:8])
        assert np.isfinite(run._backward(batch))
        gradients.append([p.grad for p in run.optimizer.parameters])
    for whole, pieces in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, pieces, rtol=2e-2, atol=1e-5)


def test_the_same_seed_gives_the_same_result_and_another_does_not(calibrated, data):
    runs = [training(calibrated, data, seed=seed) for seed in (0, 0, 1)]
    for run in runs:
        for _ in range(3):
            run._train_step()
        run.trained.settle()
    assert same_state(runs[0].trained.graph_module, runs[1].trained.graph_module)
    assert not same_state(runs[0].trained.graph_module, runs[2].trained.graph_module)


def test_a_run_goes_on_from_its_state_with_the_same_result(calibrated, data):
    whole = training(calibrated, data, steps=12)
    whole.run()
    states = []
    killed = training(calibrated, data, steps=12)

    def kill(step):
        states.append(copy.deepcopy(killed.state()))
        if step == 11:  # inside the average
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run(after_step=kill)
    for state in (states[4], states[-1]):
        resumed = training(calibrated, data, steps=12)
        resumed.load(copy.deepcopy(state))
        resumed.run()
        assert resumed.progress.curve == whole.progress.curve
        for name, parameters in whole.progress.average.items():
            for key, value in parameters.items():
                assert torch.equal(value, resumed.progress.average[name][key])
    for run in (whole, resumed):
        run.trained.settle()
    assert same_state(whole.trained.graph_module, resumed.trained.graph_module)


def test_a_loss_that_is_no_number_is_met_with_a_line(calibrated, data):
    broken = data.held_out_embeddings.clone()
    broken[0, 0] = float("nan")
    judge = replace(held_out_judge(data), embeddings=broken)
    with pytest.raises(CalibrationError, match="NaN or infinite before any step"):
        training(calibrated, data).keep_best(judge)


def test_divergence_stops_training_and_keeps_the_start(calibrated, data):
    class Exploding(IdcLoss):
        calls = 0

        def __call__(self, *arguments):
            Exploding.calls += 1
            return super().__call__(*arguments) * (np.inf if Exploding.calls > 3 else 1)

    graph, reference = graphs(calibrated)
    settings = TrainingSettings(steps=6, rates=RATES)
    batches, judge = labelled_batches(data), held_out_judge(data)
    outcome = calibrate_distances(graph, reference, batches, judge, Exploding(), settings)
    assert outcome.diverged
    assert outcome.kept == "start"
    assert same_state(graph, calibrated.graph)


def test_learning_rates_rise_and_then_fall_to_zero():
    shares = [rate_share(step, 100) for step in range(100)]
    assert shares[0] == pytest.approx(0.2)
    assert max(shares) == shares[4] == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(shares[5:]))
    assert shares[-1] < 1e-3


def test_the_average_is_the_mean_of_the_last_steps(calibrated, data):
    run = training(calibrated, data, steps=10, averaged=0.3)
    seen = []
    run.run(after_step=lambda step: seen.append(run.trained.snapshot()))
    for name, parameters in run.progress.average.items():
        for key, mean in parameters.items():
            torch.testing.assert_close(mean, torch.stack([s[name][key] for s in seen[7:]]).mean(0))
    without = training(calibrated, data, steps=2, averaged=0)
    without.run()
    assert set(without.keep_best(held_out_judge(data)).losses) == {"start", "end"}


def test_one_step_in_some_is_labelled(data):
    class Fixed:
        def __init__(self, name):
            self.name = name

        def draw(self, rng, step):
            return self.name

    mixed = MixedBatches(Fixed("labelled"), Fixed("pool"), every=3)
    assert [mixed.draw(None, step) for step in range(6)] == ["pool", "pool", "labelled"] * 2


def test_parts_of_clips_are_frames_of_them_in_order(data):
    rng = np.random.default_rng(0)
    known = torch.rand(len(data.clips), 16, 4)
    whole = replace(labelled_batches(data), embeddings=known).draw(rng, 0)
    assert torch.equal(whole.embeddings, known[_indices(data, 0)])
    for consecutive in (False, True):
        parts = replace(labelled_batches(data, 3), consecutive=consecutive, embeddings=known)
        batch = parts.draw(np.random.default_rng(0), 0)
        assert batch.clips.shape[1] == 3
        assert batch.embeddings is None  # those of whole clips are others
        for part, clip in zip(batch.clips, data.clips.batch(_indices(data, 0), CPU), strict=True):
            places = [next(i for i, frame in enumerate(clip) if torch.equal(frame, one)) for one in part]
            assert places == sorted(places)
            if consecutive:
                assert places[-1] - places[0] == 2


def _indices(data, seed):
    return data.sampler.draw(np.random.default_rng(seed))

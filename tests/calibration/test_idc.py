"""Stage 1 on a real network and real walkers."""

import copy

import numpy as np
import pytest
import torch

from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.idc import calibrate_distances
from qgait_ptq.calibration.trained_graph import LearningRates, TrainedGraph, output_magnitudes
from qgait_ptq.calibration.training import EmbeddingTraining, TrainingSettings, embed_clips
from qgait_ptq.errors import CalibrationError
from qgait_ptq.placement.quantized_layers import quantized_layers, weight_of
from qgait_ptq.quantizer.fake_quantize import set_quantizing
from qgait_ptq.quantizer.grid import quantize
from qgait_ptq.quantizer.trainable import WeightMode
from qgait_ptq.stages.training_data import TrainingData
from tests.conftest import make_gaitbase
from tests.networks import quantize_network, training_data

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
    settings = TrainingSettings(**{"steps": 6, "rates": RATES, "evaluate_every": 3, **settings})
    return EmbeddingTraining(trained_graph(calibrated, data, mode), data, IdcLoss(), settings, CPU)


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
    run = training(calibrated, data, patience=99)
    for _ in range(4):
        assert run._train_step()
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
    settings = TrainingSettings(steps=24, rates=RATES, evaluate_every=4)
    outcome = calibrate_distances(graph, reference, data, IdcLoss(), settings, CPU)
    assert outcome.improved
    assert outcome.best < 0.8 * outcome.start
    labels = data.held_out.labels
    given = embed_clips(graph, data.held_out, 8, CPU)
    assert float(IdcLoss()(given, data.held_out_embeddings, labels)) == pytest.approx(outcome.best, rel=0.02)


def test_where_no_step_is_better_the_graph_is_given_back_as_it_was(calibrated, data):
    graph, reference = graphs(calibrated)
    settings = TrainingSettings(steps=6, rates=LearningRates(3.0, 3.0, 3.0), evaluate_every=3)
    outcome = calibrate_distances(graph, reference, data, IdcLoss(), settings, CPU)
    assert not outcome.improved
    assert outcome.best == outcome.start
    assert same_state(graph, calibrated.graph)


def test_gradients_do_not_depend_on_the_micro_batch(calibrated, data):
    gradients = []
    for size in (16, 3):
        run = training(calibrated, data, micro_batch=size)
        run.optimizer.zero_grad()
        assert run._backward([0, 1, 2, 3, 4, 5, 6, 7])
        gradients.append([p.grad for group in run.optimizer.param_groups for p in group["params"]])
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

    def kill():
        states.append(copy.deepcopy(killed.state()))
        if killed.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.run(after_look=kill)
    resumed = training(calibrated, data, steps=12)
    resumed.load(states[-1])
    resumed.run()
    assert resumed.outcome.curve == whole.outcome.curve
    for run in (whole, resumed):
        run.trained.settle()
    assert same_state(whole.trained.graph_module, resumed.trained.graph_module)


def test_a_loss_that_is_no_number_is_met_with_a_line(calibrated, data):
    broken = data.held_out_embeddings.clone()
    broken[0, 0] = float("nan")
    bad = TrainingData(data.clips, data.embeddings, data.sampler, data.held_out, broken)
    with pytest.raises(CalibrationError, match="NaN or infinite before any step"):
        training(calibrated, bad)


def test_divergence_stops_training_and_keeps_the_best(calibrated, data):
    class Exploding(IdcLoss):
        calls = 0

        def __call__(self, *arguments):
            Exploding.calls += 1
            return super().__call__(*arguments) * (np.inf if Exploding.calls > 3 else 1)

    graph, reference = graphs(calibrated)
    settings = TrainingSettings(steps=6, rates=RATES, evaluate_every=6)
    outcome = calibrate_distances(graph, reference, data, Exploding(), settings, CPU)
    assert outcome.diverged
    assert same_state(graph, calibrated.graph)

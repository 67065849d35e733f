"""The stages that learn compare by the metric of the data, also where they choose what is kept."""

from dataclasses import replace

import pytest
import torch

import qgait_ptq as qg
from qgait_ptq.calibration import ChooseClips, CollectFrames, Refit, SetRanges
from qgait_ptq.calibration.batches import clips_at_once
from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.learning_stages import CalibrateDistances, Finetune
from qgait_ptq.calibration.pool import held_out_identities
from qgait_ptq.config.schema import FinetuneConfig, IdcConfig
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.gait_data import GaitData
from qgait_ptq.placement.quantized_layers import quantized_layers, weight_of
from tests.networks import draw_people
from tests.small_network import Small

METRICS = ("euclidean", "cosine")
STAGES = {"idc": CalibrateDistances, "finetune": Finetune, "refit": Refit}


@pytest.fixture(scope="module")
def state():
    """A network with ranges, and a pool of 12 people to calibrate with and 28 others."""
    records = draw_people(40, 2).records
    calibration, more = GaitDataset(records[:24]), GaitDataset(records[24:])
    config = qg.QuantConfig(
        weight_bits=3,
        activation_bits=4,
        edge_bits=3,
        calibration_frames=6,
        correction_frames=6,
        idc=IdcConfig(frames=6, batch_frames=6, steps=3, identities=4),
        finetune=FinetuneConfig(enabled=True, steps=2, labelled_every=1, rank_steps=3),
    )
    data = GaitData(calibration, calibration, finetuning=more)
    prepared = qg.prepare(Small().eval(), data, config, device="cpu")
    return qg.run_stages([ChooseClips(), SetRanges(), CollectFrames()], prepared)


def by(state, metric):
    return replace(state, data=replace(state.data, metric=metric))


@pytest.fixture(scope="module")
def records(state):
    """What each stage records, by the metric."""
    return {
        name: {metric: stage().apply(by(state, metric)).record[name] for metric in METRICS}
        for name, stage in STAGES.items()
    }


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("stage", STAGES)
def test_held_out_identities_judge_by_the_metric(state, records, stage, metric):
    judge = held_out_identities(state, IdcLoss(metric=metric), clips_at_once(state))
    losses = records[stage][metric]["held_out_loss"]
    assert losses["start"] == pytest.approx(judge(state.quantized), rel=1e-4)
    assert losses["start"] != pytest.approx(
        records[stage][METRICS[metric == METRICS[0]]]["held_out_loss"]["start"], rel=1e-3
    )


@pytest.mark.parametrize("stage", ["idc", "finetune"])
def test_another_metric_trains_another_way(records, stage):
    """Losses of the training itself, from the first step on."""
    curves = [
        (records[stage][metric].get("end_to_end") or records[stage][metric])["curve"] for metric in METRICS
    ]
    assert len(curves[0]) == len(curves[1]) > 0
    assert curves[0][0][1] != pytest.approx(curves[1][0][1], rel=1e-3)


def test_ranks_are_kept_by_the_metric(records):
    """The refit itself compares layers, not people, so that both trainings start from one network."""
    first, second = (records["refit"][metric] for metric in METRICS)
    assert first["kept"] == second["kept"] == "refit"
    starts = [record["ranks"]["held_out_loss"]["start"] for record in (first, second)]
    assert starts[0] != pytest.approx(starts[1], rel=1e-3)


def test_without_labels_the_metric_changes_nothing(state):
    """Then embeddings are compared with those of the float network, which no metric decides."""
    unlabelled = replace(state, training=None)
    weights = []
    for metric in METRICS:
        quantized = Finetune().apply(by(unlabelled, metric)).quantized
        weights.append(weight_of(quantized, quantized_layers(quantized)[-1]))
    assert torch.equal(*weights)


def test_no_note_says_that_learning_compares_otherwise(state):
    chosen = qg.run_stages([ChooseClips()], by(replace(state, notes=()), "cosine"))
    assert chosen.training is not None
    assert not any("Euclidean" in note or "cosine" in note for note in chosen.notes)

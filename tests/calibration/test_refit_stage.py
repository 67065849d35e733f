"""The stage that refits the last layers: what it keeps, and what it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import qgait_ptq as qg
from qgait_ptq.calibration import ChooseClips, CollectFrames, Refit, SetRanges
from qgait_ptq.calibration.refit_stage import DIVERGED, TOO_LARGE
from qgait_ptq.config.schema import FinetuneConfig, IdcConfig
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.gait_data import GaitData
from qgait_ptq.placement.quantized_layers import quantized_layers, weight_of
from tests.conftest import SHALLOW, make_gaitbase
from tests.networks import draw_people
from tests.small_network import Small

FINETUNE = FinetuneConfig(enabled=True, rank_steps=20)


@pytest.fixture(scope="module")
def state():
    """A network with ranges, and a pool of 10 people to calibrate with and 150 others."""
    records = draw_people(160, 2).records
    calibration, more = GaitDataset(records[:20]), GaitDataset(records[20:])
    config = qg.QuantConfig(
        weight_bits=2,
        activation_bits=3,
        calibration_frames=6,
        correction_frames=6,
        idc=IdcConfig(frames=6),
        finetune=FINETUNE,
    )
    data = GaitData(calibration, calibration, finetuning=more)
    prepared = qg.prepare(make_gaitbase(**SHALLOW), data, config, device="cpu")
    return qg.run_stages([ChooseClips(), SetRanges(), CollectFrames()], prepared)


def with_finetune(state, **changes):
    finetune = FINETUNE.model_copy(update=changes)
    return replace(state, config=state.config.model_copy(update={"finetune": finetune}))


def without_labels(state):
    return replace(state, maybe_pool=replace(state.pool, labels=np.full_like(state.pool.labels, -1)))


def last_weight(state):
    return weight_of(state.quantized, quantized_layers(state.quantized)[-1])


def test_both_parts_are_judged_and_recorded_and_the_old_state_stays(state):
    before, counted = last_weight(state).clone(), []
    stage = Refit()
    after = stage.apply(state, lambda: counted.append(1))
    assert len(counted) == stage.steps(state)
    assert torch.equal(last_weight(state), before)
    assert not torch.equal(last_weight(after), before)
    record = after.record["refit"]
    assert record["kept"] == "refit"
    assert record["held_out_loss"]["refit"] < record["held_out_loss"]["start"]
    assert record["judged_by"] == "held-out identities"
    ranks = record["ranks"]
    assert ranks["kept"] == "end"
    assert ranks["held_out_loss"]["end"] < ranks["held_out_loss"]["start"]
    assert after.notes == state.notes


def test_why_ranks_are_not_trained_is_said(state):
    for changed, note in (
        (without_labels(state), "fewer than 16 people with known labels and two sequences"),
        (with_finetune(state, memory_mb=0), TOO_LARGE),
    ):
        after = Refit().apply(changed)
        (said,) = after.notes[len(state.notes) :]
        assert said.startswith("the last layers are not trained to keep ranks: ")
        assert said.endswith(note)
        assert after.record["refit"]["ranks"] is None
        assert after.record["refit"]["kept"] == "refit"
    silent = Refit().apply(with_finetune(state, rank_weight=0.0))
    assert silent.notes == state.notes
    assert silent.record["refit"]["ranks"] is None


def test_a_refit_that_serves_nobody_is_undone_and_said(state):
    blank = replace(state.pool, frames=np.zeros_like(state.pool.frames))
    after = Refit().apply(with_finetune(replace(state, maybe_pool=blank), rank_weight=0.0))
    assert after.record["refit"]["kept"] == "start"
    assert torch.equal(last_weight(after), last_weight(state))
    (said,) = after.notes[len(state.notes) :]
    assert said == "the refit of the last layers did not improve the held-out identities; reverted"


def test_training_that_serves_nobody_is_undone_and_said(state):
    refitted = Refit().apply(with_finetune(state, rank_weight=0.0))
    after = Refit().apply(with_finetune(state, rank_learning_rate=100.0, rank_steps=3))
    assert after.record["refit"]["ranks"]["kept"] == "start"
    assert not torch.equal(last_weight(after), last_weight(state))
    (said,) = after.notes[len(state.notes) :]
    assert said == "training the last layers to keep ranks did not serve other people; reverted"
    assert after.record["refit"]["held_out_loss"] == pytest.approx(
        refitted.record["refit"]["held_out_loss"], rel=0.1
    )


def test_training_that_diverges_is_undone_and_said(state):
    after = Refit().apply(with_finetune(state, rank_learning_rate=float("nan"), rank_steps=3))
    assert set(after.record["refit"]["ranks"]["held_out_loss"]) == {"start"}
    assert after.record["refit"]["ranks"]["kept"] == "start"
    assert after.notes[len(state.notes) :] == (DIVERGED,)
    assert torch.isfinite(last_weight(after)).all()


class OneHeadForTwoParts(Small):
    """Its last layer embeds the upper and the lower half of the body."""

    def forward(self, silhouettes):
        halves = silhouettes.chunk(2, 2)
        return torch.stack([self.fc(self.features(half)) for half in halves], -1)


def test_last_layers_that_share_their_weight_are_not_refitted_and_it_is_said(state):
    network = OneHeadForTwoParts().eval()
    prepared = qg.prepare(network, replace(state.data, test_set=None), state.config, device="cpu")
    before = qg.run_stages([ChooseClips(), SetRanges(), CollectFrames()], prepared)
    after = qg.run_stages([Refit()], before)
    assert after.notes[-1] == "the last layers are not refitted: other layers share their weights"
    assert torch.equal(last_weight(after), last_weight(before))
    assert "refit" not in after.record

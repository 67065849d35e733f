"""The clips that stages without labels get, and those that are held out."""

import numpy as np
import pytest
import torch

import qgait_ptq as qg
from qgait_ptq.calibration.stages import ChooseClips
from qgait_ptq.config.schema import IdcConfig
from tests.small_network import Small


def chosen(pairs, **settings):
    """The state after clips were chosen from (silhouettes, subject) pairs."""
    data = qg.GaitDataset.from_pairs(pairs)
    state = qg.prepare(Small().eval(), qg.GaitData(data, data), qg.QuantConfig(**settings), device="cpu")
    return qg.run_stages([ChooseClips()], state)


def test_people_who_are_held_out_are_in_no_other_stage_though_someone_is_missing_there():
    """Of one person, all sequences are too short for the longer clips of the corrections."""
    rng = np.random.default_rng(0)
    pairs = [
        ((rng.random((13 if person == 0 else 40, 32, 22)) < 0.3).astype(np.uint8) * 255, f"p{person:02d}")
        for person in range(12)
        for _ in range(3)
    ]
    owner = {frame.tobytes(): subject for frames, subject in pairs for frame in frames}
    state = chosen(pairs)
    held_out = state.training.held_out_subjects
    learned = {owner[clip[0].numpy().tobytes()] for clip in state.unlabelled}
    assert len(held_out) == 3
    assert learned == {subject for _, subject in pairs} - held_out - {"p00"}


@pytest.mark.parametrize("people", [20, 200])
def test_idc_runs_however_many_people_there_are(people):
    """The calibration set has 128 sequences. With one of each person, IDC would have nothing to compare."""
    rng = np.random.default_rng(0)
    pairs = [
        ((rng.random((4, 32, 22)) < 0.3).astype(np.uint8) * 255, f"p{person:03d}")
        for person in range(people)
        for _ in range(3)
    ]
    state = chosen(pairs, idc=IdcConfig(enabled=True))
    assert len(state.training.held_out_subjects) == min(people, 64) // 4


def test_too_few_people_with_two_sequences_are_the_cause_that_idc_is_left_out():
    silhouettes = [torch.randint(0, 2, (4, 32, 22)).to(torch.uint8).numpy() * 255 for _ in range(10)]
    state = chosen([(one, f"p{number // 2}") for number, one in enumerate(silhouettes)])
    assert state.training is None
    assert any("10 sequences has 5 identities with two sequences" in note for note in state.notes)

"""Accuracy of a network on data that it takes in part."""

import itertools

import numpy as np
import pytest
import torch

import qgait_ptq as qg
from qgait_ptq.evaluation.accuracy import agreement_of, evaluate_network
from qgait_ptq.gait.data.dataset import SequenceRecord
from qgait_ptq.gait.protocols import PROTOCOLS, make_test_set
from tests.small_network import Listener, Small


class FiveFrames(Small):
    """Shorter sequences are refused."""

    def forward(self, silhouettes):
        if silhouettes.shape[1] < 5:
            raise ValueError("too short")
        return super().forward(silhouettes)


@pytest.fixture(scope="module")
def data():
    """Three people from two views; sequences in another coat have three frames."""
    rng = np.random.default_rng(0)
    records = []
    for subject, condition, view in itertools.product("abc", ("nm-01", "nm-05", "cl-01"), ("000", "090")):
        frames = rng.random((3 if condition == "cl-01" else 12, 32, 22)) < 0.3
        silhouettes = frames.astype(np.uint8) * 255
        records.append(SequenceRecord(subject, condition, view, lambda own=silhouettes: own))
    everything = qg.GaitDataset(records)
    return qg.GaitData(everything, everything, make_test_set(everything, PROTOCOLS["casia-b"]))


def test_sequences_that_are_repeated_or_cut_are_counted_in_a_note(data):
    listener = Listener()
    for frames in (None, 5, 12):
        evaluate_network(FiveFrames().eval(), data, "cpu", frames, progress=listener)
    notes = [note for note in listener.notes if "repeated or cut" in note]
    assert [note.split(".")[0] for note in notes] == [
        "18 of 18 test sequences are repeated or cut: the network takes 5 frames only",
        "6 of 18 test sequences are repeated or cut: the network takes 12 frames only",
    ]


def test_a_probe_set_that_the_network_refuses_is_named_and_not_counted(data):
    listener = Listener()
    accuracy = evaluate_network(FiveFrames().eval(), data, device="cpu", progress=listener)
    assert list(accuracy.rank1) == ["nm", "mean"]
    assert any("6 of 18 sequences left out" in note for note in listener.notes)
    assert any("no probe that can be ranked is left of cl" in note for note in listener.notes)


def test_embeddings_of_zeros_agree_with_float():
    """Half of the sequences are blank and give zeros behind a last ReLU. The ranking has not collapsed."""
    embeddings = torch.tensor([[1.0, 2], [2, 1], [0, 0], [0, 0]])[:, :, None]
    agreement = agreement_of({"float": embeddings, "onnx": embeddings}, qg.QuantConfig())
    assert [agreement["cosine_mean"], agreement["cosine_min"]] == pytest.approx([1, 1])

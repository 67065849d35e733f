"""Pairs of a sequence and a label in memory: which labels name the same person."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.dataset import GaitDataset

WALK = np.full((3, 64, 44), 255, np.uint8)


@pytest.mark.parametrize(
    "label", [7, np.int64(7), np.array(7, np.uint8), torch.tensor(7), "7", np.str_("7"), 7.0]
)
def test_a_label_is_text_or_an_integer_also_of_numpy_and_torch(label):
    assert GaitDataset.from_pairs([(WALK, label), (WALK, 7)]).subjects == ["7"]


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        (None, r"None \(NoneType\)"),
        (float("nan"), r"nan \(float\)"),
        (1.5, r"1\.5 \(float\)"),
        (True, r"True \(bool\)"),
        (np.array([7]), r"array\(\[7\]\) \(ndarray\)"),
        (torch.tensor(0.5), r"tensor\(0\.5.*\) \(Tensor\)"),
        (Path("anna"), r".* \(PosixPath\)"),
        (("anna", 1), r"\('anna', 1\) \(tuple\)"),
    ],
)
def test_other_labels_are_refused(label, shown):
    """Their texts can differ for one person, or be the same for two."""
    with pytest.raises(DataError, match=rf"sequence 1: its label is {shown}; use a text or an integer"):
        GaitDataset.from_pairs([(WALK, "anna"), (WALK, label)])


RAGGED = [WALK[0], WALK[1][:, :30]]


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (RAGGED, r"sequence 1: not an array \[s, \.\.\.\] \(.*inhomogeneous"),
        ({"silhouettes": RAGGED}, r"sequence 0, silhouettes: not an array"),
        (torch.ones(3, 64, 44, requires_grad=True), r"sequence 1: not an array .*tensor\.detach\(\)"),
    ],
)
def test_sequences_that_form_no_array_are_refused(sequence, message):
    pairs = [(sequence, "ben")] if isinstance(sequence, dict) else [(WALK, "anna"), (sequence, "ben")]
    with pytest.raises(DataError, match=message):
        GaitDataset.from_pairs(pairs)


def test_data_that_are_no_pairs_are_refused():
    with pytest.raises(DataError, match=r"the data are a NoneType, not \(sequence, label\) pairs"):
        GaitDataset.from_pairs(None)


def test_the_items_of_a_data_set_are_pairs_of_the_same_people():
    data = GaitDataset.from_pairs([(WALK, "anna"), (WALK, "ben"), (WALK, "anna")])
    again = GaitDataset.from_pairs(data)
    assert [record.subject for record in again.records] == ["anna", "ben", "anna"]


def test_data_that_are_indexed_only_are_pairs_too():
    walks = torch.full((4, 3, 64, 44), 255, dtype=torch.uint8)
    data = GaitDataset.from_pairs(torch.utils.data.TensorDataset(walks, torch.tensor([0, 0, 1, 1])))
    assert data.subjects == ["0", "1"]

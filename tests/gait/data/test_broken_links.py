"""Links that lead nowhere, and folders with the name of a frame: they are left out and named."""

import shutil

import numpy as np
import pytest

from qgait_ptq.gait.data.dataset import GaitDataset
from tests.gait.data.test_layout import FRAMES, write_array, write_frames


@pytest.fixture
def root(tmp_path):
    """One sequence as an array file, one as png frames."""
    write_array(tmp_path / "001/nm-01/000")
    write_frames(tmp_path / "002/nm-05/090")
    return tmp_path


def test_a_broken_link_in_the_place_of_a_sequence_is_left_out_and_named(root):
    (root / "001/nm-01/000/x.pkl").unlink()
    (root / "001/nm-01/000/x.pkl").symlink_to("nowhere.pkl")
    data = GaitDataset.from_directory(root)
    assert [(len(sequence), record.subject) for sequence, record in data] == [(12, "002")]
    assert data.notes.lines == [
        "1 broken link (001/nm-01/000/x.pkl)",
        "1 folder without a sequence (001/nm-01/000)",
    ]


def test_a_broken_link_does_not_change_the_number_of_a_modality(root):
    """The other file would be read as the first modality."""
    write_array(root / "001/nm-01/000", "y.npy", FRAMES[:1])
    (root / "001/nm-01/000/x.pkl").unlink()
    (root / "001/nm-01/000/x.pkl").symlink_to("nowhere.pkl")
    assert [record.subject for record in GaitDataset.from_directory(root).records] == ["002"]
    shutil.move(root / "001/nm-01/000/y.npy", root / "001/nm-01/000/a.npy")
    data = GaitDataset.from_directory(root)
    assert [len(sequence) for sequence, _ in data] == [1, 12]


@pytest.mark.parametrize("others", [12, 0])
def test_what_is_no_frame_of_a_folder_of_frames_is_left_out_and_named(others, root):
    view = root / "002/nm-05/090"
    for frame in list(view.iterdir())[others:]:
        frame.unlink()
    (view / "1000.png").mkdir()
    (view / "1001.png").symlink_to("nowhere")
    data = GaitDataset.from_directory(root)
    assert [len(sequence) for sequence, _ in data] == ([12, 12] if others else [12])
    np.testing.assert_array_equal(data[-1][0], FRAMES)
    assert data.notes.lines[:2] == [
        "1 folder inside a view folder (002/nm-05/090/1000.png)",
        "1 broken link (002/nm-05/090/1001.png)",
    ]

"""Folders of a data set: what is read, what is ignored, in which order, and what is said of the rest."""

import os
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.names import is_ignored, natural_key
from qgait_ptq.gait.data.notes import DataNotes
from qgait_ptq.gait.data.sequences import Reading, read_sequence

FRAMES = np.stack([np.pad(np.full((64, w), 255, np.uint8), ((0, 0), (0, 44 - w))) for w in range(1, 13)])
HIDDEN = (".ipynb_checkpoints", ".DS_Store", "._x.pkl", "._000.png", "__MACOSX", "Thumbs.db", "desktop.ini")


def write_array(view, name="x.pkl", array=FRAMES):
    view.mkdir(parents=True, exist_ok=True)
    path = view / name
    if name.lower().endswith(".pkl"):
        path.write_bytes(pickle.dumps(array))
    elif name.lower().endswith(".npz"):
        with path.open("wb") as file:
            np.savez_compressed(file, array)
    else:
        with path.open("wb") as file:
            np.save(file, array)
    return path


def write_frames(view, name="{:03d}.png", kind="PNG"):
    view.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(view / name.format(index), format=kind)


@pytest.fixture
def root(tmp_path):
    """Two subjects with two walks from two views, one sequence as png frames."""
    for subject in ("001", "002"):
        for condition in ("nm-01", "nm-05"):
            for view in ("000", "090"):
                write_array(tmp_path / subject / condition / view)
    shutil.rmtree(tmp_path / "002/nm-05/090")
    write_frames(tmp_path / "002/nm-05/090")
    return tmp_path


@pytest.mark.parametrize("name", ["x.PKL", "x.Npy", "x.NPZ"])
def test_suffixes_of_arrays_are_read_in_any_case(name, root):
    (root / "001/nm-01/000/x.pkl").unlink()
    write_array(root / "001/nm-01/000", name)
    data = GaitDataset.from_directory(root)
    assert len(data) == 8
    np.testing.assert_array_equal(data[0][0], FRAMES)


@pytest.mark.parametrize("name", ["{:03d}.PNG", "{:03d}.Png"])
def test_suffixes_of_frames_are_read_in_any_case(name, root):
    shutil.rmtree(root / "002/nm-05/090")
    write_frames(root / "002/nm-05/090", name)
    data = GaitDataset.from_directory(root)
    assert len(data) == 8
    np.testing.assert_array_equal(data[7][0], FRAMES)


def test_frames_with_suffixes_in_both_cases_are_one_sequence(tmp_path):
    write_frames(tmp_path)
    for index in range(0, 12, 2):
        (tmp_path / f"{index:03d}.png").rename(tmp_path / f"{index:03d}.PNG")
    np.testing.assert_array_equal(read_sequence(tmp_path), FRAMES)


def test_frames_are_read_in_the_natural_order_of_their_names(tmp_path):
    write_frames(tmp_path, "frame-{}.png")
    np.testing.assert_array_equal(read_sequence(tmp_path), FRAMES)


def test_modalities_are_counted_in_the_natural_order_of_their_names(tmp_path):
    view = tmp_path / "anna/nm-01/090"
    for index in range(12):
        write_array(view, f"{index}-map.npy", FRAMES[index : index + 1])
    for index in (2, 10, 11):
        ((frame,), _) = GaitDataset.from_directory(tmp_path, reading=Reading(modalities=(index,)))[0]
        np.testing.assert_array_equal(frame, FRAMES[index])


def test_a_longer_name_comes_first_where_opengait_has_it_first(tmp_path):
    """Configurations of OpenGait count in this order."""
    view = tmp_path / "anna/nm-01/090"
    write_array(view, "090.npy", FRAMES[0:1])
    write_array(view, "090-aligned.npy", FRAMES[1:2])
    ((frame,), _) = GaitDataset.from_directory(tmp_path, reading=Reading(modalities=(0,)))[0]
    np.testing.assert_array_equal(frame, FRAMES[1])


@given(st.lists(st.integers(0, 10**12), max_size=20, unique=True), st.sampled_from(["", "a", "7-"]))
def test_numbers_in_names_are_compared_as_numbers(numbers, prefix):
    names = [f"{prefix}{number}.png" for number in numbers]
    assert sorted(names, key=natural_key) == [f"{prefix}{number}.png" for number in sorted(numbers)]


@given(st.lists(st.text(max_size=8), max_size=8))
def test_any_names_can_be_put_in_order(names):
    assert sorted(sorted(names, key=natural_key)) == sorted(names)


def test_names_of_equal_length_keep_their_order():
    names = [f"{number:03d}-a.pkl" for number in range(120)] + ["frame.png", "frame1.png"]
    assert sorted(names, key=natural_key) == sorted(names)


@pytest.mark.parametrize("level", ["", "001", "001/nm-01", "001/nm-01/000", "002/nm-05/090"])
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_hidden_names_are_ignored_at_every_level(level, kind, root):
    before = [record.name for record in GaitDataset.from_directory(root).records]
    for name in HIDDEN:
        assert is_ignored(name)
        if kind == "file":
            (root / level / name).write_bytes(b"\0\5\26\7Mac OS X")
        else:
            write_array(root / level / name / "nm-01" / "000")
            write_array(root / level / name / "000")
            write_array(root / level / name)
    data = GaitDataset.from_directory(root)
    assert [record.name for record in data.records] == before
    assert data.notes.lines == []
    for sequence, _ in data:
        np.testing.assert_array_equal(sequence, FRAMES)


def test_nothing_is_noted_of_clean_data(root):
    (root / "partition.json").write_text("{}")
    data = GaitDataset.from_directory(root)
    assert data.summary == "data: 8 sequences of 2 identities."
    (one,) = [data.where(lambda record: record.name == "001/nm-01/000")]
    assert one.summary == "data: 1 sequence of 1 identity."


def make_empty_folders(root):
    for name in ("003", "001/cl-01", "001/nm-01/180"):
        (root / name).mkdir(parents=True)


def make_links(root):
    (root / "001/nm-01/180").symlink_to("nowhere")
    (root / "001/cl-01").symlink_to("cl-01")  # to itself
    (root / "005").symlink_to("nowhere")


def make_folder_of_jpg(root):
    write_frames(root / "001/cl-01/000", "{:03d}.Jpg", "JPEG")


def make_files_outside(root):
    for name in ("x.npy", "001/x.pkl", "001/nm-01/list.txt", "README.md"):
        (root / name).write_bytes(b"")


def make_frames_beside(root):
    (root / "001/nm-01/000/preview.png").write_bytes(b"")


def make_others(root):
    (root / "002/nm-05/090/notes.txt").write_bytes(b"")
    (root / "002/nm-05/090/000.jpg").write_bytes(b"")
    write_frames(root / "002/nm-05/000/frames")


def make_more_arrays(root):
    for condition in ("nm-01", "nm-05"):
        write_array(root / "001" / condition / "000", "y.npy")


STRAY = {
    make_empty_folders: ["3 folders without a sequence (001/cl-01, 001/nm-01/180, 003)"],
    make_links: ["3 broken links (005, 001/cl-01, 001/nm-01/180)"],
    make_folder_of_jpg: [
        "12 images that need conversion to png (001/cl-01/000/000.Jpg, 001/cl-01/000/001.Jpg, "
        "001/cl-01/000/002.Jpg, …)",
        "1 folder without a sequence (001/cl-01/000)",
    ],
    make_files_outside: ["3 files outside the view folders (x.npy, 001/x.pkl, 001/nm-01/list.txt)"],
    make_frames_beside: ["1 png frame beside an array file (001/nm-01/000/preview.png)"],
    make_others: [
        "1 folder inside a view folder (002/nm-05/000/frames)",
        "1 image that needs conversion to png (002/nm-05/090/000.jpg)",
        "1 file with an unknown suffix (002/nm-05/090/notes.txt)",
    ],
    make_more_arrays: [
        "2 array files of other modalities (001/nm-01/000/y.npy, 001/nm-05/000/y.npy)",
        "5 view folders with fewer array files than others (001/nm-01/090, 001/nm-05/090, 002/nm-01/000, …)",
    ],
}


@pytest.mark.parametrize("make", STRAY, ids=lambda make: make.__name__)
def test_what_is_left_out_is_noted_with_its_reason(make, root):
    make(root)
    data = GaitDataset.from_directory(root)
    assert len(data) == 8
    assert data.notes.lines == STRAY[make]
    for line in data.notes.lines:
        assert line in data.summary
    assert data.choose(2).notes.lines == data.where(lambda record: True).notes.lines == STRAY[make]


def test_the_summary_tells_what_is_left_out_from_what_is_to_be_checked(root):
    make_more_arrays(root)
    assert GaitDataset.from_directory(root).summary == (
        "data: 8 sequences of 2 identities. "
        "Left out: 2 array files of other modalities (001/nm-01/000/y.npy, 001/nm-05/000/y.npy). "
        "Please check: 5 view folders with fewer array files than others (001/nm-01/090, 001/nm-05/090, "
        "002/nm-01/000, …)."
    )


def test_notes_of_two_sets_are_added_and_hold_few_names(root):
    make_folder_of_jpg(root)
    notes = GaitDataset.from_directory(root).notes
    total = notes + notes + DataNotes()
    assert [line.split(" ")[0] for line in total.lines] == ["24", "2"]
    assert total.lines[1] == "2 folders without a sequence (001/cl-01/000)"
    assert sum(len(group.names) for group in total.groups.values()) < 10
    assert notes.lines[0].startswith("12 ")


def test_data_without_a_sequence_are_refused_with_what_was_found(tmp_path):
    write_frames(tmp_path / "001/nm-01/000", "{}.jpg", "JPEG")
    with pytest.raises(DataError, match=r"1 subject folders \(001\); .*found 12 images that need conversion"):
        GaitDataset.from_directory(tmp_path)


def test_a_missing_view_level_is_named(tmp_path):
    write_array(tmp_path / "001/nm-01")
    with pytest.raises(DataError, match=r"found 1 file outside the view folders \(001/nm-01/x\.pkl\)"):
        GaitDataset.from_directory(tmp_path)


def test_a_subject_named_twice_is_refused(root):
    with pytest.raises(DataError, match=r"1 subjects are named twice \(001\); name each once"):
        GaitDataset.from_directory(root, ["001", "002", "001"])


def test_a_folder_that_cannot_be_read_is_one_line(root, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("nm-05"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"001/nm-05: the folder cannot be read \(Permission denied\); check"):
        GaitDataset.from_directory(root)


def test_a_name_that_is_not_utf_8_is_one_line(root):
    view = os.fsencode(root) + b"/001/nm-01/\xff0"
    os.mkdir(view)
    with open(view + b"/x.pkl", "wb") as file:
        file.write(pickle.dumps(FRAMES))
    with pytest.raises(DataError, match=r"nm-01/\\udcff0: the name is not UTF-8 text; rename") as caught:
        GaitDataset.from_directory(root)
    str(caught.value).encode()


def test_names_in_notes_are_short_and_can_be_stored(root):
    with open(os.fsencode(root) + b"/001/nm-01/000/\xff" + b"a" * 200, "wb"):
        pass
    (line,) = GaitDataset.from_directory(root).notes.lines
    assert "001/nm-01/000/\\udcffaaa" in line
    assert len(line.encode()) < 120

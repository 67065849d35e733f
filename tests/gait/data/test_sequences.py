import pickle
import warnings

import numpy as np
import pytest
from PIL import Image

from qgait_ptq.errors import ConfigError, DataError
from qgait_ptq.gait.data.dataset import GaitDataset, PackedSilhouettes
from qgait_ptq.gait.data.gait_data import as_gait_data
from qgait_ptq.gait.data.sequences import (
    Reading,
    check_silhouettes,
    check_values,
    cut_width,
    read_array,
    read_sequence,
)

WALK = (np.random.default_rng(0).random((6, 64, 44)) < 0.4).astype(np.uint8) * np.uint8(255)


def write(folder, name, array):
    path = folder / name
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps(array))
    elif name.endswith(".npy"):
        np.save(path, array)
    elif name.endswith(".npz"):
        np.savez_compressed(path, array)
    else:
        path.mkdir()
        for index, frame in enumerate(array):
            Image.fromarray(frame).save(path / f"{index:03d}.png")
    return path


@pytest.mark.parametrize("name", ["a.pkl", "a.npy", "a.npz", "frames"])
def test_all_kinds_of_files_give_the_same_silhouettes(name, tmp_path):
    np.testing.assert_array_equal(read_sequence(write(tmp_path, name, WALK)), WALK)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_pickle_protocol_are_read(protocol, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(WALK, protocol=protocol))
    np.testing.assert_array_equal(read_sequence(path), WALK)


class Bomb:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return (open, (str(self.victim), "w"))


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "victim")))
    with pytest.raises(DataError, match=r"io\.open|open, which arrays do not need"):
        read_sequence(path)
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (WALK.astype(np.float32) / 255, "float32; store them as uint8"),
        (WALK // 2, "values of 0 to 127 are not silhouettes"),
        (WALK[0], r"shape \[64, 44\]"),
        (WALK[:0], "empty sequence"),
        ({"a": 1}, "found a dict"),
        (WALK.astype(np.int64), "int64"),
    ],
)
def test_what_is_no_silhouette_sequence_is_refused_with_the_file(array, message, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(array))
    with pytest.raises(DataError, match=message) as caught:
        read_sequence(path)
    assert str(path) in str(caught.value)


def test_damaged_files_are_refused(tmp_path):
    for name in ("a.npy", "b.npz", "c.pkl"):
        path = write(tmp_path, name, WALK)
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(DataError, match=name):
            read_sequence(path)


def test_masks_of_zeros_and_ones_and_bools_become_0_and_255():
    for mask in (WALK // 255, WALK > 0):
        np.testing.assert_array_equal(check_silhouettes(mask, "x"), WALK)


def test_grey_edges_are_kept():
    grey = np.where(WALK > 0, WALK, 90).astype(np.uint8)
    np.testing.assert_array_equal(check_silhouettes(grey, "x"), grey)


@pytest.mark.parametrize(("size", "columns"), [(64, 44), (128, 88), (32, 32)])
def test_square_silhouettes_lose_their_empty_columns(size, columns):
    wide = np.zeros((2, size, size), np.uint8)
    assert cut_width(wide).shape == (2, size, columns)
    assert cut_width(cut_width(wide)).shape == (2, size, columns)


def test_packed_silhouettes_come_back_as_they_were():
    packed = PackedSilhouettes(WALK)
    np.testing.assert_array_equal(packed(), WALK)
    np.testing.assert_array_equal(PackedSilhouettes.from_bits(packed.bits, WALK.shape[-1])(), WALK)


def layout(root, subjects=("001", "002"), suffix=".pkl"):
    for subject in subjects:
        for condition in ("nm-01", "bg-01"):
            for view in ("000", "090"):
                folder = root / subject / condition / view
                folder.mkdir(parents=True)
                write(folder, f"{view}{suffix}", WALK)
    return root


def test_the_opengait_layout_is_found_with_its_labels(tmp_path):
    data = GaitDataset.from_directory(layout(tmp_path))
    assert len(data) == 8
    assert data.records[0].name == "001/bg-01/000"
    assert data.subjects == ["001", "002"]
    assert data[0][0].shape == (6, 64, 44)


def test_nothing_is_read_before_it_is_needed(tmp_path):
    root = layout(tmp_path)
    (root / "001/nm-01/000/000.pkl").write_bytes(b"broken")
    data = GaitDataset.from_directory(root)
    with pytest.raises(DataError, match=r"001/nm-01/000/000\.pkl"):
        list(data)


def test_the_first_of_several_modalities_is_taken(tmp_path):
    root = layout(tmp_path, subjects=("001",))
    write(root / "001/nm-01/000", "100-other.npy", np.ones((2, 3)))
    assert (
        GaitDataset.from_directory(root).where(lambda r: r.name == "001/nm-01/000")[0][0].shape == WALK.shape
    )


def test_subjects_without_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match="077"):
        GaitDataset.from_directory(layout(tmp_path), ["001", "077"])


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_root_without_sequences_is_refused(kind, tmp_path):
    with pytest.raises(DataError):
        GaitDataset.from_directory(tmp_path / ("no" if kind == "missing" else "."))


def test_choosing_spreads_over_identities_and_follows_the_seed():
    data = GaitDataset.from_pairs([(WALK, f"p{i % 5}") for i in range(50)])
    chosen = data.choose(10, seed=1)
    assert sorted(r.subject for r in chosen.records) == sorted([f"p{i}" for i in range(5)] * 2)
    assert [r.name for r in chosen.records] == [r.name for r in data.choose(10, seed=1).records]
    assert [r.name for r in chosen.records] != [r.name for r in data.choose(10, seed=2).records]
    assert len(data.choose(1000)) == 50


def test_pairs_must_be_pairs():
    with pytest.raises(DataError, match="item 1"):
        GaitDataset.from_pairs([(WALK, "a"), WALK[0]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"longest": 0}, "longest is 0; it must be an integer of at least 1"),
        ({"longest": -5}, "longest is -5; it must"),
        ({"longest": 2.5}, r"longest is 2\.5; it must"),
        ({"cut_columns": -5}, "cut_columns is -5; it must be an integer of at least 0"),
        ({"cut_columns": True}, "cut_columns is True; it must"),
        ({"modalities": (0, -1)}, "an index in modalities is -1; it must be an integer of at least 0"),
        ({"modalities": ("0",)}, "an index in modalities is '0'; it must"),
        ({"modalities": ()}, r"modalities is \(\); it must be a tuple of at least one index"),
        ({"modalities": 1}, "modalities is 1; it must be a tuple"),
        ({"modalities": (1, 0, 1)}, r"modalities \(1, 0, 1\) names a file twice"),
    ],
)
def test_settings_of_reading_that_are_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Reading(**settings)


def test_settings_of_reading_can_be_integers_of_numpy():
    reading = Reading(cut_columns=np.int64(0), longest=np.uint8(1), modalities=(np.int32(2),))
    assert reading == Reading(cut_columns=0, longest=1, modalities=(2,))
    assert {type(value) for value in (reading.cut_columns, reading.longest, *reading.modalities)} == {int}


def test_columns_are_cut_as_told_and_not_at_all_with_zero():
    wide = np.arange(64, dtype=np.uint8).reshape(1, 1, 64).repeat(64, axis=1)
    np.testing.assert_array_equal(cut_width(wide, 0), wide)
    np.testing.assert_array_equal(cut_width(wide, 3), wide[..., 3:-3])


def test_a_reading_says_which_file_of_a_folder_and_how_much_of_it(tmp_path):
    view = tmp_path / "anna" / "nm-01" / "090"
    view.mkdir(parents=True)
    maps = np.arange(5 * 2 * 64 * 64, dtype=np.uint32).reshape(5, 2, 64, 64).astype(np.uint8)
    np.save(view / "0-silhouettes.npy", WALK)
    np.save(view / "1-maps.npy", maps)
    reading = Reading(cut_columns=1, longest=3, modalities=(1,))
    read, _ = GaitDataset.from_directory(tmp_path, reading=reading)[0]
    np.testing.assert_array_equal(read, maps[:3, ..., 1:-1])
    with pytest.raises(DataError, match="2 array files; modality 2 is missing"):
        GaitDataset.from_directory(tmp_path, reading=Reading(modalities=(2,)))
    with pytest.raises(DataError, match="32 columns on each side"):
        GaitDataset.from_directory(tmp_path, reading=Reading(cut_columns=32, modalities=(1,)))[0]


def test_raw_values_are_taken_as_they_are(tmp_path):
    poses = np.random.default_rng(0).normal(300, 100, (9, 17, 3))
    view = tmp_path / "anna" / "nm-01" / "090"
    view.mkdir(parents=True)
    with (view / "pose.pkl").open("wb") as file:
        pickle.dump(poses, file)
    read, _ = GaitDataset.from_directory(tmp_path, reading=Reading(raw=True, longest=5))[0]
    np.testing.assert_array_equal(read, poses[:5].astype(np.float32))
    with pytest.raises(DataError, match=r"use --raw"):
        GaitDataset.from_directory(tmp_path)[0]


def test_raw_values_can_be_a_list_of_frames(tmp_path):
    poses = np.random.default_rng(0).normal(300, 100, (9, 17, 3))
    (tmp_path / "pose.pkl").write_bytes(pickle.dumps(list(poses)))
    read = read_sequence(tmp_path / "pose.pkl", Reading(raw=True))
    np.testing.assert_array_equal(read, poses.astype(np.float32))
    (tmp_path / "uneven.pkl").write_bytes(pickle.dumps([poses[0], poses[1, :5]]))
    with pytest.raises(DataError, match=r"uneven\.pkl: its lists do not form an array"):
        read_sequence(tmp_path / "uneven.pkl", Reading(raw=True))


def test_label_maps_are_taken_as_they_are_and_cut_if_asked_for(tmp_path):
    maps = np.random.default_rng(0).integers(0, 12, (5, 64, 64), dtype=np.uint8)
    np.save(tmp_path / "parsing.npy", maps)
    whole = read_sequence(tmp_path / "parsing.npy", Reading(raw=True))
    cut = read_sequence(tmp_path / "parsing.npy", Reading(raw=True, cut_columns=10))
    np.testing.assert_array_equal(whole, maps)
    np.testing.assert_array_equal(cut, maps[..., 10:-10])
    assert whole.dtype == cut.dtype == np.float32


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 17, 3), np.nan), "NaN or infinite"),
        (np.zeros((0, 17, 3)), r"shape \[0, 17, 3\]"),
        (np.zeros(5), r"shape \[5\]"),
        (np.array([["a", "b"]]), "expected an array of numbers"),
        ([[1, 2], [3, 4]], "found list"),
    ],
)
def test_raw_values_that_are_no_numbers_for_each_frame_are_refused(array, message):
    with pytest.raises(DataError, match=message):
        check_values(array, "here")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_values_of_any_byte_order_are_read(kind, order, tmp_path):
    values = np.asarray(np.arange(24).reshape(2, 3, 4), ">f4", order=order)
    path = write(tmp_path, f"a.{kind}", values)
    np.testing.assert_array_equal(read_sequence(path, Reading(raw=True)), values)
    assert read_array(path).flags.writeable
    assert read_array(path).dtype == np.float32


def test_the_first_of_several_arrays_in_one_npy_file_is_read(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, WALK)
        np.save(file, WALK[:1])
    np.testing.assert_array_equal(read_sequence(tmp_path / "a.npy"), WALK)


@pytest.mark.parametrize("name", ["a.pkl", "a.npy", "frames"])
def test_links_to_regular_files_are_read(name, tmp_path):
    write(tmp_path, name, WALK)
    (tmp_path / f"link-{name}").symlink_to(tmp_path / name)
    np.testing.assert_array_equal(read_sequence(tmp_path / f"link-{name}"), WALK)


@pytest.mark.parametrize("name", ["a.pkl", "a.npy", "a\0.npz", "a" * 300 + ".npy", "loop.npy"])
def test_missing_files_are_named(name, tmp_path):
    (tmp_path / "loop.npy").symlink_to("loop.npy")
    with pytest.raises(DataError, match=r"cannot be read \("):
        read_sequence(tmp_path / name)


def test_values_beyond_float32_are_refused_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="NaN or infinite"):
            check_values(np.full((2, 3), 1e300), "here")


def test_a_set_of_files_keeps_how_it_was_read(tmp_path):
    """The file of a network that it calibrates says so, and deployment reads in the same way."""
    for person in range(4):
        view = tmp_path / f"p{person}" / "nm-01" / "090"
        view.mkdir(parents=True)
        for name in ("0.npy", "1.npy"):
            np.save(view / name, np.full((4, 16, 12), 255, np.uint8))
    reading = Reading(cut_columns=2, longest=3, modalities=(1,))
    data = as_gait_data(GaitDataset.from_directory(tmp_path, reading=reading).choose(3))
    assert (data.cut_columns, data.longest, data.modalities) == (2, 3, (1,))

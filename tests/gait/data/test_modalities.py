"""Sequences of several modalities: what is taken, what is refused, and that nothing is lost side by side."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.modalities import check_modalities, read_modalities
from qgait_ptq.gait.data.sequences import Reading
from qgait_ptq.graph.frame_layout import LARGEST_INTEGER, InputKind, layout_of, parse_layout
from tests.fuzz.mutate import read_in_child

SILHOUETTES = np.full((6, 64, 44), 255, np.uint8)
BODIES = np.linspace(-3, 3, 6 * 85, dtype=np.float32).reshape(6, 85)


@st.composite
def modalities(draw):
    frames = draw(st.integers(1, 4))
    return {
        "silhouettes": draw(arrays(np.uint8, (frames, 3, 2))),
        "values": draw(arrays(np.float32, (frames, 4), elements=st.floats(-1e6, 1e6, width=32))),
        "labels": draw(arrays(np.int64, (frames,), elements=st.integers(-LARGEST_INTEGER, LARGEST_INTEGER))),
    }


@given(modalities())
def test_what_lies_side_by_side_comes_back_as_it_was(given_arrays):
    layout = layout_of(given_arrays)
    packed = layout.pack(list(given_arrays.values()))
    assert packed.shape == (len(packed), layout.size) == (len(packed), 3 * 2 + 4 + 1)
    unpacked = layout.unpack(packed)
    for name, array in given_arrays.items():
        assert unpacked[name].dtype == array.dtype
        np.testing.assert_array_equal(unpacked[name], array)
    assert parse_layout(layout.describe()) == layout


def test_silhouettes_are_scaled_and_values_are_not():
    layout = layout_of({"silhouettes": SILHOUETTES, "bodies": BODIES})
    packed = layout.pack([SILHOUETTES, BODIES])
    assert (packed[:, : 64 * 44] == 1).all()
    np.testing.assert_array_equal(packed[:, 64 * 44 :], BODIES)


@pytest.mark.parametrize(
    ("array", "raw", "kind"),
    [
        (SILHOUETTES, False, InputKind.SILHOUETTES),
        (SILHOUETTES > 0, False, InputKind.SILHOUETTES),
        (SILHOUETTES, True, InputKind.VALUES),
        (BODIES.astype(np.float64), False, InputKind.VALUES),
        (BODIES.astype(np.int32), False, InputKind.INTEGERS),
    ],
)
def test_the_type_of_an_array_says_what_it_holds(array, raw, kind):
    (only,) = layout_of(check_modalities({"one": array}, "here", raw)).inputs
    assert only.kind is kind


@pytest.mark.parametrize(
    ("arrays_given", "message"),
    [
        ({"a": SILHOUETTES, "b": BODIES[:5]}, "the same number of frames; found a 6, b 5"),
        ({"a b": SILHOUETTES}, "an input is named 'a b'"),
        ({"a": np.array([[LARGEST_INTEGER + 1]])}, "which float32 cannot represent"),
        ({"a": np.full((2, 3), np.iinfo(np.int64).min)}, "which float32 cannot represent"),
        ({"a": np.full((2, 3), np.nan)}, "here, a: NaN"),
        ({"a": np.zeros((0, 3), np.int64)}, "expected frames"),
        ({}, "found no input"),
    ],
)
def test_wrong_arrays_are_refused_by_name(arrays_given, message):
    with pytest.raises(DataError, match=message):
        check_modalities(arrays_given, "here")


def test_pairs_may_hold_tuples_or_dictionaries_of_arrays():
    by_place = GaitDataset.from_pairs([((SILHOUETTES, BODIES), "anna")])
    assert [part.name for part in by_place.layout.inputs] == ["modality_0", "modality_1"]
    by_name = GaitDataset.from_pairs([({"silhouettes": SILHOUETTES, "bodies": BODIES}, "anna")])
    assert str(by_name.layout) == "silhouettes 64×44, bodies 85"
    np.testing.assert_array_equal(by_place[0][0], by_name[0][0])
    assert by_name.choose(1).layout == by_name.where(lambda _: True).layout == by_name.layout


def test_square_silhouettes_among_them_lose_their_empty_columns():
    wide = np.pad(SILHOUETTES, ((0, 0), (0, 0), (10, 10)))
    data = GaitDataset.from_pairs([((wide, BODIES), "anna")])
    assert data.layout.inputs[0].shape == (64, 44)


@pytest.mark.parametrize(
    "second", [SILHOUETTES, (SILHOUETTES,), (SILHOUETTES, BODIES[:, :3]), (BODIES, SILHOUETTES)]
)
def test_all_sequences_have_the_same_inputs(second):
    with pytest.raises(DataError, match="sequence 1: "):
        GaitDataset.from_pairs([((SILHOUETTES, BODIES), "anna"), (second, "ben")])


@pytest.fixture
def folder(tmp_path):
    for person in ("anna", "ben"):
        view = tmp_path / person / "nm-01" / "090"
        view.mkdir(parents=True)
        np.save(view / "0-silhouettes.npy", np.pad(SILHOUETTES, ((0, 0), (0, 0), (10, 10))))
        np.save(view / "1-bodies.npy", BODIES)
    return tmp_path


def test_files_of_a_folder_are_read_in_the_order_that_is_asked_for(folder):
    data = GaitDataset.from_directory(folder, reading=Reading(modalities=(1, 0), longest=4))
    assert str(data.layout) == "modality_1 85, modality_0 64×44"
    sequence, record = data[1]
    assert record.subject == "ben"
    assert sequence.shape == (4, 85 + 64 * 44)
    np.testing.assert_array_equal(data.layout.unpack(sequence)["modality_1"], BODIES[:4])


def test_a_folder_that_lacks_a_modality_or_holds_another_shape_is_named(folder):
    np.save(folder / "ben" / "nm-01" / "090" / "1-bodies.npy", BODIES[:, :10])
    data = GaitDataset.from_directory(folder, reading=Reading(modalities=(0, 1)))
    with pytest.raises(DataError, match=r"ben.*modality_1 10 .*the other sequences have .*modality_1 85"):
        data[1]
    with pytest.raises(DataError, match="2 array files; modality 2 is missing"):
        GaitDataset.from_directory(folder, reading=Reading(modalities=(0, 2)))


def doubled(value, times):
    for _ in range(times):
        value = [value, value]
    return value


def lists_in_themselves():
    value = []
    value += [value, value]
    return value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([SILHOUETTES[0], SILHOUETTES[0, 1:]], "its lists do not form an array"),
        ([[1.5, 2], [3]], "its lists do not form an array"),
        ({"a": SILHOUETTES}, "found dict, expected an array"),
        (7, "found int, expected an array"),
        ([None, None], "expected an array of numbers"),
        ([10**400, 1], "expected an array of numbers"),
        (doubled(1, 30), "not a pickled array"),
        (doubled(np.zeros(2**20, np.uint8), 10), "its lists of arrays amount to 8589934592 bytes"),
        (lists_in_themselves(), "not a pickled array"),
        (["a" * 2**20] * 5000, "not a pickled array"),
    ],
)
def test_containers_in_files_that_do_not_form_an_array_are_refused(content, message, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content))
    outcome = read_in_child(lambda: read_modalities({"a": path}, Reading()))
    assert not outcome.failures
    assert str(path) in outcome.refused[0]
    assert message in outcome.refused[0]


def test_lists_of_arrays_and_of_numbers_in_files_are_read(tmp_path):
    frames, numbers = tmp_path / "frames.pkl", tmp_path / "numbers.pkl"
    frames.write_bytes(pickle.dumps(list(SILHOUETTES)))
    numbers.write_bytes(pickle.dumps([[1, -2.5]] * 6))
    found = read_modalities({"a": frames, "b": numbers}, Reading())
    np.testing.assert_array_equal(found["a"], SILHOUETTES)
    np.testing.assert_array_equal(found["b"], np.array([[1, -2.5]] * 6, np.float32))


@pytest.mark.parametrize("name", ["class", "None", "self", "embedding"])
def test_names_that_code_or_the_file_uses_are_refused(name):
    with pytest.raises(DataError, match=f"an input is named '{name}'"):
        check_modalities({"silhouettes": np.zeros((3, 8, 8), np.uint8), name: np.zeros((3, 2))}, "here")

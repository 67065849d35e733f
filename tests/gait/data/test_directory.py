"""Data of a run: what of a partition is used, what is left out, and that it is said."""

import json
import unicodedata
from dataclasses import replace

import numpy as np
import pytest

import qgait_ptq as qg
from qgait_ptq.errors import ConfigError, DataError

WALK = np.full((3, 64, 44), 255, np.uint8)
PARTITION = {"TRAIN_SET": ["001", "002"], "TEST_SET": ["003", "004"]}
USED = "data: 8 sequences of 2 identities for calibration, 8 sequences of 2 identities for testing"
COMPARED = f"{USED} (4 gallery, 4 probes)."


def add(root, subject, condition, view):
    folder = root / subject / condition / view
    folder.mkdir(parents=True)
    np.save(folder / "x.npy", WALK)


@pytest.fixture
def root(tmp_path):
    for subject in ("001", "002", "003", "004"):
        for condition in ("nm-01", "nm-05"):
            for view in ("000", "090"):
                add(tmp_path, subject, condition, view)
    return tmp_path


def load(root, protocol="casia-b", **changes):
    (root / "partition.json").write_text(json.dumps({**PARTITION, **changes}))
    return qg.load_directory(root, protocol=protocol)


def test_the_summary_says_what_is_used(root):
    data = load(root)
    assert data.summary == COMPARED
    assert data.notes.lines == []


def test_data_with_an_unknown_metric_are_refused(root):
    data = load(root)
    for make in (
        lambda: qg.load_directory(root, metric="Cosine"),
        lambda: qg.load_walkers(metric="Cosine"),
        lambda: replace(data, metric="Cosine"),
    ):
        with pytest.raises(ConfigError, match="unknown metric 'Cosine'; choose euclidean or cosine"):
            make()


def test_identities_without_a_folder_are_named_and_left_out(root):
    data = load(root, TRAIN_SET=["001", "005", "002"], TEST_SET=["003", "004", "006", "007", "008"])
    assert data.calibration.subjects == ["001", "002"]
    assert data.test.subjects == ["003", "004"]
    assert data.summary == (
        f"{COMPARED} Left out: 4 identities of the partition without a folder (005, 006, 007, …)."
    )
    assert data.description == f"{root}: 2 subjects for calibration, 2 for tests (8 sequences)"


def test_a_partition_of_another_type_is_refused(root):
    with pytest.raises(DataError, match="the path of the partition is of type int"):
        qg.load_directory(root, partition=3)


@pytest.mark.parametrize(
    ("key", "names"), [("TRAIN_SET", ["1", "2"]), ("TEST_SET", ["3", "4"]), ("TRAIN_SET", ["001 "])]
)
def test_a_partition_of_other_data_is_refused(key, names, root):
    with pytest.raises(DataError) as caught:
        load(root, **{key: names})
    assert str(caught.value) == (
        f"{root}: no identity of {key} in {root / 'partition.json'} has a folder ({', '.join(names)}; "
        "folders: 001, 002, 003, …). Use the partition of this data set"
    )


def test_a_test_set_that_cannot_be_ranked_is_refused_with_what_was_left_out(root):
    with pytest.raises(DataError) as caught:
        load(root, TEST_SET=["003", "007"])
    assert str(caught.value) == (
        "protocol casia-b: the data have one identity only; ranking needs at least two. "
        "Left out: 1 identity of the partition without a folder (007); "
        "1 identity that the partition does not list (004)."
    )


def test_identities_that_the_partition_does_not_list_are_named(root):
    for subject in ("000", "logs"):
        add(root, subject, "nm-01", "000")
    assert load(root).summary == (
        f"{COMPARED} Left out: 2 identities that the partition does not list (000, logs)."
    )


def test_conditions_that_the_protocol_does_not_use_are_named(root):
    for view in ("000", "090"):
        add(root, "003", "cr-01", view)
        add(root, "004", "NM-02", view)
        add(root, "001", "cr-01", view)  # calibration knows no conditions
    data = load(root)
    assert data.notes.lines == [
        "4 test sequences of conditions that the protocol does not use (cr-01, NM-02)"
    ]
    assert len(data.calibration) == 10


def test_probes_that_are_listed_and_not_there_are_named(root):
    data = load(root, "gait3d", PROBE_SET=["003-nm-01-000", "003-nm-09-000"])
    assert data.test_set.all_probes == [0]
    assert data.notes.lines == ["1 entry of PROBE_SET without a sequence (003-nm-09-000)"]


def test_keys_of_the_partition_that_are_not_used_are_named(root):
    data = load(root, PROBE_SET=["003-nm-01-000"], GALLERY_SET=[])
    assert data.notes.lines == [
        "2 entries of the partition that the protocol does not use (PROBE_SET, GALLERY_SET)"
    ]


def test_probes_without_their_identity_in_the_gallery_are_to_be_checked(root):
    add(root, "005", "bg-01", "000")
    data = load(root, TEST_SET=["003", "004", "005"])
    assert data.summary.endswith(
        " (4 gallery, 5 probes). Please check: 1 probe whose identity is not in the gallery (005/bg-01/000)."
    )


def test_probes_without_a_gallery_sequence_of_another_view_are_to_be_checked(root):
    for condition in ("nm-01", "nm-05"):
        add(root, "005", condition, "090")
    changes = {"TEST_SET": ["003", "004", "005"]}
    assert load(root, **changes).summary.endswith(
        " Please check: 1 probe whose identity has no gallery sequence of another view (005/nm-05/090)."
    )
    assert load(root, "gait3d", **changes, PROBE_SET=["005-nm-05-090", "003-nm-05-000"]).notes.lines == []


def test_folders_of_both_parts_without_a_sequence_are_one_note(root):
    for name in ("001/nm-02", "003/nm-02/000"):
        (root / name).mkdir(parents=True)
    assert load(root).notes.lines == ["2 folders without a sequence (001/nm-02, 003/nm-02/000)"]


def test_a_data_set_keeps_its_notes_in_a_run(root):
    (root / "001/nm-01/090/x.txt").write_bytes(b"")
    dataset = qg.GaitDataset.from_directory(root)
    (note,) = dataset.notes.lines
    from qgait_ptq.gait.data.gait_data import as_gait_data

    data = as_gait_data(dataset)
    assert data.notes.lines == [note]
    assert data.summary == (
        "data: 12 sequences of 4 identities for calibration, 4 sequences of 4 identities for testing. "
        f"Left out: {note}."
    )


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_compared_in_the_form_of_every_system(form, root):
    """macOS stores names in another form (NFD) than an editor does."""
    name = unicodedata.normalize(form, "José")
    (root / "003").rename(root / unicodedata.normalize({"NFC": "NFD", "NFD": "NFC"}[form], "José"))
    data = load(root, TEST_SET=[name, "004"])
    assert (len(data.test), data.notes.lines) == (8, [])
    data = load(root, "gait3d", TEST_SET=[name, "004"], PROBE_SET=[f"{name}-nm-05-090"])
    assert (len(data.test_set.all_probes), data.notes.lines) == (1, [])


@pytest.mark.parametrize("key", ["TRAIN_SET", "TEST_SET"])
def test_one_folder_under_two_names_is_refused(key, root):
    """Otherwise, calibration sequences are test sequences, or one person is two."""
    (root / "009").symlink_to(root / "003", target_is_directory=True)
    with pytest.raises(DataError, match=r"one folder \((003, 009|009, 003)\); list it once"):
        load(root, **{key: [*PARTITION[key], "009"]})
    assert load(root).notes.lines == ["1 identity that the partition does not list (009)"]


def test_one_name_in_two_forms_is_refused(root):
    (root / "003").rename(root / "José")
    names = [unicodedata.normalize(form, "José") for form in ("NFC", "NFD")]
    with pytest.raises(DataError, match="two identities of the partition are one folder"):
        load(root, TRAIN_SET=["001", names[0]], TEST_SET=[names[1], "004"])


def test_test_sequences_of_another_test_set_are_refused_and_fewer_are_chosen_with_it(root):
    data = load(root)
    for count in (3, 7):  # of 8
        with pytest.raises(DataError, match=rf"sequence 7, but the data have {count} sequences .*with_test"):
            replace(data, test=data.test.choose(count))
    kept = [index for index in range(len(data.test)) if index != 1]
    fewer = data.with_test(kept)
    assert max(fewer.test_set.gallery + fewer.test_set.all_probes) == len(kept) - 1
    assert replace(data, test=data.test.choose(3), test_set=None).test_set is None

"""Partition files: what is read, and that crafted files end in a `DataError`."""

import json
import os

import pytest

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.partition import read_partition
from tests.fuzz.mutate import read_in_child

CRAFTED = {
    "deep nesting": ("[" * 100_000, "not a valid JSON file"),
    "a long integer": ('{"TRAIN_SET": [' + "9" * 5000 + "]}", "not a valid JSON file"),
    "half a pair of surrogates": ('{"TRAIN_SET": ["\\ud800"], "TEST_SET": []}', "item 0 is not valid text"),
    "many wrong items": (json.dumps({"TRAIN_SET": [1] * 2_000_000, "TEST_SET": []}), "item 0 is of type int"),
    "a large file": (" " * (8 * 2**20 + 1), "the limit is 8.0 MiB"),
    "long names in both": (
        json.dumps({"TRAIN_SET": ["a" * 10**6], "TEST_SET": ["a" * 10**6]}),
        "1 identities are in TRAIN_SET and in TEST_SET",
    ),
    "a text instead of a list": ('{"TRAIN_SET": "abc", "TEST_SET": []}', "TRAIN_SET"),
    "zero bytes": ("\0" * 100, "not a valid JSON file"),
    "an identity twice": (
        '{"TRAIN_SET": ["a", "b", "a"], "TEST_SET": ["c", "d", "d", "d"]}',
        "identities are listed more than once (TRAIN_SET a; TEST_SET d); list each of them once",
    ),
    "a long identity many times": (
        json.dumps({"TRAIN_SET": ["a" * 10**5] * 50, "TEST_SET": []}),
        "listed more than once (TRAIN_SET aaa",
    ),
    "a key twice": (
        '{"TRAIN_SET": ["a"], "TEST_SET": ["b"], "TEST_SET": ["c"]}',
        "a key is given twice (TEST_SET); keep one of the two",
    ),
    "numbers": ('{"TRAIN_SET": [1], "TEST_SET": [2]}', "expected text; write names of folders in quotes"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_partitions_are_refused(name, tmp_path):
    content, message = CRAFTED[name]
    path = tmp_path / "p.json"
    path.write_text(content)
    outcome = read_in_child(lambda: read_partition(path))
    assert not outcome.failures
    assert outcome.read == 0, "the file was read"
    assert str(path) in outcome.refused[0]
    assert message in outcome.refused[0]
    assert len(outcome.refused[0]) < 1000


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device"])
def test_what_is_no_regular_file_is_refused(kind, tmp_path):
    path = tmp_path / "p.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    outcome = read_in_child(lambda: read_partition(path))
    assert not outcome.failures
    assert ("cannot be read" if kind == "missing" else "not a regular file") in outcome.refused[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_link_to_a_partition_of_another_encoding_is_read(encoding, tmp_path):
    content = {"TRAIN_SET": ["Jürgen"], "TEST_SET": ["b"]}
    (tmp_path / "p.json").write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    (tmp_path / "link.json").symlink_to("p.json")
    assert read_partition(tmp_path / "link.json").train == ("Jürgen",)


def test_a_partition_in_latin_1_is_refused_in_one_line(tmp_path):
    path = tmp_path / "p.json"
    path.write_bytes('{"TRAIN_SET": ["Jürgen"], "TEST_SET": ["b"]}'.encode("latin-1"))
    expected = r"p\.json: not a valid JSON file \('utf-8' codec can't decode byte 0xfc"
    with pytest.raises(DataError, match=expected):
        read_partition(path)


def test_an_identity_in_both_parts_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"TRAIN_SET": ["a", "b"], "TEST_SET": ["b"]}')
    with pytest.raises(DataError, match=r"in TRAIN_SET and in TEST_SET \(b\); remove them from"):
        read_partition(path)


def test_other_keys_are_known_beside_those_of_a_partition(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"TRAIN_SET": ["a"], "TEST_SET": ["b"], "GALLERY_SET": ["c"], "other_keys": 7}')
    partition = read_partition(path)
    assert partition.other_keys == {"GALLERY_SET": ["c"], "other_keys": 7}
    assert set(partition.model_dump(by_alias=True)) == {"TRAIN_SET", "TEST_SET", "PROBE_SET"}


def test_wrong_items_are_named(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"TRAIN_SET": ["a"], "TEST_SET": ["b", "c", 7]}')
    with pytest.raises(DataError, match=r"TEST_SET: .*item 2 is of type int, expected text"):
        read_partition(path)

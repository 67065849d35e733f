"""Pickled arrays: real files load with their values; crafted files are refused and not run."""

import base64
import pickle
import struct

import numpy as np
import pytest

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.pickles import load_array_pickle
from qgait_ptq.gait.data.sequences import read_sequence
from tests.fuzz.mutate import read_in_child

CUBE = np.arange(24).reshape(2, 3, 4)
ARRAYS = {
    **{name: (CUBE * 37 % 100).astype(name) for name in ("i1", "u1", ">i2", "<i4", ">i8", "u2", ">u4", "u8")},
    **{name: (CUBE / 3).astype(name) for name in (">f2", "<f4", ">f8")},
    "bool": CUBE % 3 > 0,
    "Fortran order": np.asfortranarray(CUBE.astype(">i4")),
    "transposed": CUBE.astype("f4").transpose(1, 0, 2),
    "sliced": CUBE[:, ::2, ::-2],
    "without axes": np.array(5.5, ">f8"),
    "empty": np.zeros((0, 3), bool),
}
NUMPY_1 = {  # numpy 1.26.4: np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))
    2: (
        "gAJjbnVtcHkuY29yZS5tdWx0aWFycmF5Cl9yZWNvbnN0cnVjdApxAGNudW1weQpuZGFycmF5CnEBSwCFcQJjX2NvZGVjcwpl"
        "bmNvZGUKcQNYAQAAAGJxBFgGAAAAbGF0aW4xcQWGcQZScQeHcQhScQkoSwFLAksDhnEKY251bXB5CmR0eXBlCnELWAIAAABp"
        "NHEMiYiHcQ1ScQ4oSwNYAQAAAD5xD05OTkr/////Sv////9LAHRxEGKIaANYGAAAAAAAAAAAAAADAAAAAQAAAAQAAAACAAAA"
        "BXERaAWGcRJScRN0cRRiLg=="
    ),
    4: (
        "gASVogAAAAAAAACMFW51bXB5LmNvcmUubXVsdGlhcnJheZSMDF9yZWNvbnN0cnVjdJSTlIwFbnVtcHmUjAduZGFycmF5lJOU"
        "SwCFlEMBYpSHlFKUKEsBSwJLA4aUaAOMBWR0eXBllJOUjAJpNJSJiIeUUpQoSwOMAT6UTk5OSv////9K/////0sAdJRiiEMY"
        "AAAAAAAAAAMAAAABAAAABAAAAAIAAAAFlHSUYi4="
    ),
    5: (
        "gAWVjQAAAAAAAACMEm51bXB5LmNvcmUubnVtZXJpY5SMC19mcm9tYnVmZmVylJOUKJYYAAAAAAAAAAAAAAAAAAADAAAAAQAA"
        "AAQAAAACAAAABZSMBW51bXB5lIwFZHR5cGWUk5SMAmk0lImIh5RSlChLA4wBPpROTk5K/////0r/////SwB0lGJLAksDhpSM"
        "AUaUdJRSlC4="
    ),
}


def load(tmp_path, data):
    path = tmp_path / "a.pkl"
    path.write_bytes(data)
    return load_array_pickle(path)


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, expected)
        assert found.flags.writeable
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, dict):
        assert_same(list(found.items()), list(expected.items()))
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_every_type_order_and_protocol_are_read(name, protocol, tmp_path):
    assert_same(load(tmp_path, pickle.dumps(ARRAYS[name], protocol)), ARRAYS[name])


@pytest.mark.parametrize("protocol", NUMPY_1)
def test_arrays_of_numpy_1_are_read(protocol, tmp_path):
    found = load(tmp_path, base64.b64decode(NUMPY_1[protocol]))
    assert_same(found, np.arange(6, dtype="i4").reshape(2, 3))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_containers_of_arrays_are_read(protocol, tmp_path):
    content = {"a": [CUBE, CUBE > 2], "b": (CUBE, (1, -2.5, None, True, 2**40)), 3: [], "c": {}}
    assert_same(load(tmp_path, pickle.dumps(content, protocol)), content)


def test_an_array_of_python_2_is_read(tmp_path):
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85U\x01b\x87R"
        b"(K\x01K\x02K\x01K\x01\x87cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89U\x02\x00\xfftb."
    )
    assert_same(load(tmp_path, data), np.array([[[0]], [[255]]], np.uint8))


def plain(value):
    """The opcodes of a value, without those that begin and end a pickle."""
    return pickle.dumps(value, 2)[2:-1]


def dtype(name="u1", state=(3, "|", None, None, None, -1, -1, 0)):
    return b"cnumpy\ndtype\n" + plain((name, False, True)) + b"R" + plain(state) + b"b"


def reconstructed(shape, kind, data, fortran=False):
    state = b"(" + plain(1) + plain(shape) + kind + plain(fortran) + data + b"t"
    return EMPTY_ARRAY + state + b"b"


def binary(data):
    return b"B" + struct.pack("<I", len(data)) + data


EMPTY_ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + plain((0,)) + binary(b"b") + b"tR"
BYTES = reconstructed((2, 2, 2), dtype(), binary(bytes(range(8))))
FIELD = b"cnumpy\ndtype\n" + plain(("V8", False, True)) + b"R"
LAYOUT = (
    b"(" + plain(3) + plain("|") + plain(None) + plain(("a",)) + b"}" + plain("a")
    + b"(" + dtype() + plain(2_000_000_000) + b"ts" + plain(8) + plain(1) + plain(0) + b"tb"
)  # fmt: skip
OUTSIDE = b"cnumpy\nndarray\n(" + plain((4,)) + FIELD + LAYOUT + b"tR" + plain("a") + plain(7) + b"s"
OBJECTS = dtype("O", (3, "|", None, None, None, -1, -1, 0))
REFERENCES = reconstructed((8,), OBJECTS, binary(b"A" * 64)) + plain(0) + plain(1) + b"s"


def doubled(times, begin, end):
    """A value in the memo that holds another twice, which holds another twice, and so on."""
    return plain(1) + b"q\x00" + (begin + b"h\x00h\x00" + end + b"q\x00") * times


CRAFTED = {
    "a dtype with a layout of its own": (OUTSIDE, "type 'V8'"),
    "a dtype of objects without its flag": (REFERENCES, "type 'O'"),
    "a dtype of objects": (
        reconstructed((1,), dtype("O", (3, "|", None, None, None, -1, -1, 63)), b"]"),
        "'O'",
    ),
    "a dtype with fields": (
        reconstructed((1,), dtype("u1", (3, "|", None, ("a",), {"a": 1}, 1, 1, 0)), binary(b"1")),
        "with fields or with a layout",
    ),
    "a dtype with a subarray": (
        reconstructed((1,), dtype("u1", (3, "|", (1, 2), None, None, 1, 1, 0)), binary(b"1")),
        "with fields or with a layout",
    ),
    "a dtype of dates": (reconstructed((1,), dtype("M8"), binary(b"1" * 8)), "type 'M8'"),
    "a dtype of another size": (
        reconstructed((1,), dtype("u1", (3, "|", None, None, None, 99, -1, 0)), binary(b"1")),
        "with fields or with a layout",
    ),
    "an item of an array is set": (BYTES + plain(0) + plain(1) + b"s", "sets items of ndarray"),
    "the state of an array is set twice": (
        BYTES + plain((1, (1,), None, False, b"")) + b"b",
        "sets the state",
    ),
    "an array without values": (EMPTY_ARRAY, "an array without values"),
    "an array without values in a list": (b"]" + EMPTY_ARRAY + b"a", "an array without values"),
    "an array without values in the memo": (EMPTY_ARRAY + b"q\x00h\x00", "an array without values"),
    "an array that numpy allocates": (
        b"cnumpy\nndarray\n" + plain(((2**36,),)) + b"R",
        "calls ndarray in another way",
    ),
    "an array of another type": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(I0\ntU\x01btR",
        "calls _reconstruct in another",
    ),
    "a shape beyond the bytes": (reconstructed((2**20, 8), dtype(), binary(b"12345678")), "holds 8 bytes"),
    "a shape of negative lengths": (
        reconstructed((-2, -4), dtype(), binary(b"12345678")),
        "shape is not valid",
    ),
    "a shape of texts": (reconstructed(("8",), dtype(), binary(b"12345678")), "shape is not valid"),
    "a shape of many axes": (reconstructed((1,) * 65, dtype(), binary(b"1")), "65 axes"),
    "many lists in lists": (doubled(25, b"](", b"e"), "its lists hold more than"),
    "a list in itself": (b"]q\x00h\x00a", "deep"),
    "a key that takes long to hash": (doubled(40, b"", b"\x86") + b"}h\x00K\x01s", "keys other than texts"),
    "keys that share a hash": (
        # Written without the dictionary, which takes long to build here, too.
        b"}(" + b"".join(plain(i * (2**61 - 1)) + b"N" for i in range(50_000)) + b"u",
        "keys other than texts",
    ),
    "many copies of an array": (
        binary(bytes(2**22)) + b"q\xc8](" + reconstructed((2**22,), dtype(), b"h\xc8") * 300 + b"e",
        "arrays of more than",
    ),
    "another codec": (b"c_codecs\nencode\n" + plain(("abc", "rot13")) + b"R", "encode in another way"),
    "a constructor without a call": (b"cnumpy\nndarray\n", "other than arrays and numbers"),
    "texts in a list": (plain(["a" * 1000, 1]), "other than arrays and numbers"),
    "a global outside the list": (b"cos\nsystem\nU\x04true\x85R", "'os.system', which arrays do not need"),
    "a global in a long name": (b"\x8c\xffnumpy" + b"x" * 250 + b"\x8c\x05dtype\x93", "arrays do not need"),
    "an object": (b"cnumpy\nndarray\n(I3\nt\x81", "opcode NEWOBJ"),
    "an instance": (b"(inumpy\nndarray\n", "opcode INST"),
    "an identifier": (b"Pname\n", "opcode PERSID"),
    "an extension": (b"\x82\x01", "opcode EXT1"),
    "an integer of many bytes": (b"\x8b" + struct.pack("<i", 5000) + b"1" * 5000, "opcode LONG4"),
    "many opcodes": (b"]" + b"Na" * 500_001, "more than 1000000 opcodes"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_pickles_are_refused_without_a_crash_or_a_hang(name, tmp_path):
    content, message = CRAFTED[name]
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02" + content + b".")
    outcome = read_in_child(lambda: load_array_pickle(path))
    assert not outcome.failures
    assert outcome.read == 0, "the file was read"
    (refusal,) = outcome.refused
    assert refusal.startswith(f"{path}: not a pickled array (")
    assert refusal.endswith("); no code from it was run")
    assert message in refusal


@pytest.mark.parametrize(
    "data", [b"", b".", b"\x80\x02", b"no pickle", b"\x80\x05t.", b"(." * 5, b"\x80\x02K\x01b."]
)
def test_damaged_pickles_are_refused(data, tmp_path):
    with pytest.raises(DataError, match="no code from it was run"):
        load(tmp_path, data)


def test_bools_of_other_bytes_than_0_and_1_become_bools(tmp_path):
    path = tmp_path / "a.pkl"
    content = reconstructed((1, 1, 3), dtype("b1"), binary(b"\x00\x01\x07"))
    path.write_bytes(b"\x80\x02" + content + b".")
    np.testing.assert_array_equal(read_sequence(path), [[[0, 255, 255]]])


def test_a_large_index_of_the_memo_takes_no_memory(tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x02" + BYTES + b"r" + struct.pack("<I", 2**28) + b".")
    outcome = read_in_child(lambda: load_array_pickle(path))
    assert not outcome.failures
    assert outcome.read == 1


def test_a_large_pickle_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "a.pkl"
    with path.open("wb") as file:
        file.truncate(2**33)
    outcome = read_in_child(lambda: load_array_pickle(path))
    assert not outcome.failures
    assert "8192.0 MiB; the limit is 129.0 MiB" in outcome.refused[0]

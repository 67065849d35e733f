"""Mutated data files are read or end in a `DataError`."""

import io
import json
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from qgait_ptq.gait.data.modalities import read_modalities
from qgait_ptq.gait.data.partition import read_partition
from qgait_ptq.gait.data.sequences import Reading, read_sequence
from tests.fuzz.mutate import CANARY, run_fuzz

FEW, MANY = 300, 10_000
WALK = (np.random.default_rng(0).random((3, 8, 6)) < 0.4).astype(np.uint8) * np.uint8(255)
NUMBERS = [WALK, WALK > 0, WALK.astype(">i4"), np.asfortranarray(WALK.astype("f4"))]


class Bomb:
    def __reduce__(self):
        return (open, (CANARY, "w"))


class Calls:
    """An object whose pickle calls one of numpy's constructors."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __reduce__(self):
        return self.arguments


def to_bytes(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def pickles():
    containers = [list(NUMBERS), tuple(NUMBERS), {"a": NUMBERS[0], "b": [1, 2.5]}, [[1, 2], [3, 4]]]
    hostile = [Bomb(), [WALK, Bomb()], Calls(np.ndarray, ((2**40,),)), Calls(np.dtype, ("O", False, True))]
    contents = [*NUMBERS, *containers, *hostile]
    return [pickle.dumps(content, protocol) for content in contents for protocol in range(6)]


def pictures():
    modes = ["L", "1", "P", "RGBA", "I;16", "LA"]
    frames = [to_bytes(lambda f, m=mode: Image.new(m, (8, 6)).save(f, "png")) for mode in modes]
    return [*frames, to_bytes(lambda file: Image.fromarray(WALK[0]).save(file, "png"))]


def partitions():
    split = {"TRAIN_SET": ["001", "002"], "TEST_SET": ["003"], "PROBE_SET": ["003-nm-01-090"]}
    return [json.dumps(split).encode(), json.dumps(split, indent=2).encode("utf-16")]


def read_both(path):
    """Read a file as one sequence and as one of several modalities; the first refusal counts."""
    read_modalities({"a": path}, Reading(raw=True))
    return read_sequence(path, Reading(raw=True))


def read_frames(path):
    return read_sequence(path.parent, Reading(raw=True))


def repack(content):
    """Put the content into an archive with the right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("arr_0.npy", content)
    return file.getvalue()


def correct_checksums(content):
    """Correct the checksum of each chunk of a png."""
    data, at = bytearray(content), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


ARRAYS = [to_bytes(lambda file, a=array: np.save(file, a)) for array in NUMBERS]
ARCHIVES = [to_bytes(lambda file, a=array: np.savez_compressed(file, a)) for array in NUMBERS]
KINDS = {
    "pkl": ("pkl", pickles(), read_both, None),
    "npy": ("npy", ARRAYS, read_both, None),
    "npz": ("npz", ARCHIVES, read_both, None),
    "npy in npz": ("npz", ARRAYS, read_both, repack),
    "png": ("png", pictures(), read_frames, correct_checksums),
    "json": ("json", partitions(), read_partition, None),
}


def fuzz(name, tries, seed):
    kind, seeds, read, repair = KINDS[name]
    done = run_fuzz(kind, seeds, read, tries, seed, repair)
    assert done.refused
    return done


@pytest.mark.parametrize("name", KINDS)
def test_mutated_files_are_read_or_refused(name):
    assert fuzz(name, FEW, seed=0).read


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_mutated_files_are_read_or_refused(name):
    fuzz(name, MANY, seed=1)

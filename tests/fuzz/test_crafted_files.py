"""Crafted array files and png frames end in a `DataError`, without a crash, a hang or much memory."""

import io
import os
import socket
import struct
import zipfile
import zlib
from itertools import product

import numpy as np
import pytest

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data import png_frames
from qgait_ptq.gait.data.limits import SEQUENCE_BYTES
from qgait_ptq.gait.data.sequences import read_sequence
from tests.fuzz.mutate import read_in_child

WALK = (np.random.default_rng(0).random((6, 64, 44)) < 0.4).astype(np.uint8) * np.uint8(255)


def npy_with(header, values=b"", version=b"\x01\x00"):
    """An npy file with a header of its own."""
    text = header.encode("latin1").ljust(117) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + values


def header(shape, kind="|u1"):
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"


def zip_of(members, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npz_bytes():
    file = io.BytesIO()
    np.savez_compressed(file, WALK)
    return file.getvalue()


def changed(data, at, new):
    """The same bytes with others in one place; a negative place counts from the end."""
    at %= len(data)
    return data[:at] + new + data[at + len(new) :]


def many_entries():
    """An archive whose directory has two million entries."""
    archive = zip_of({"a.npy": b"1"})
    start = archive.index(b"PK\x01\x02")
    end = archive.index(b"PK\x05\x06")
    directory = archive[start:end] * 2_000_000
    sizes = struct.pack("<HHII", 0, 0, len(directory), start)
    return archive[:start] + directory + archive[end : end + 8] + sizes + b"\0\0"


NPZ = npz_bytes()
DIRECTORY = NPZ.index(b"PK\x01\x02")
CRAFTED = {
    "npy larger than the memory": (
        "npy",
        lambda: npy_with(header((2**20, 2**20)), b"1"),
        "MiB; the limit is",
    ),
    "npy larger than the file": (
        "npy",
        lambda: npy_with(header((6, 64, 44)), b"1"),
        "the file holds 1 bytes",
    ),
    "npy with a negative length": ("npy", lambda: npy_with(header((-6, 64, 44)), b"1"), "shape is not valid"),
    "npy with an unfinished header": ("npy", lambda: npy_with("{'descr': ("), "cannot be read as a sequence"),
    "npy with deep nesting": ("npy", lambda: npy_with("(" * 110), "cannot be read as a sequence"),
    "npy of objects": ("npy", lambda: npy_with(header((1,), "|O"), b"A" * 8), "type '|O'"),
    "npy of texts": ("npy", lambda: npy_with(header((1,), "<U2"), b"A" * 8), "type '<U2'"),
    "npy of version 3": ("npy", lambda: npy_with(header((1,)), b"A", b"\x03\x00"), "npy version 3.0"),
    "npz with a damaged stream": ("npz", lambda: changed(NPZ, 60, b"\xff" * 20), "cannot be read"),
    "npz with an unknown compression": (
        "npz",
        lambda: changed(changed(NPZ, DIRECTORY + 10, b"\x63"), 8, b"\x63"),
        "a compression other than that of numpy",
    ),
    "npz with a password": ("npz", lambda: changed(changed(NPZ, DIRECTORY + 8, b"\1"), 6, b"\1"), "cannot"),
    "npz with LZMA": (
        "npz",
        lambda: zip_of({"a.npy": npy_with(header((1,)), b"1")}, zipfile.ZIP_LZMA),
        "a compression other than that of numpy",
    ),
    "npz with a bomb": (
        "npz",
        lambda: zip_of(
            {"a.npy": npy_with(header((300, 1024, 1024))) + bytes(300 << 20)}, zipfile.ZIP_DEFLATED
        ),
        "the limit is",
    ),
    "npz with a bomb of a small declared size": (
        "npz",
        lambda: changed(NPZ, DIRECTORY + 24, struct.pack("<I", 200)),
        "cannot be read",
    ),
    "npz of two arrays": ("npz", lambda: zip_of({"a.npy": b"1", "b.npy": b"2"}), "2 arrays ['a', 'b']"),
    "npz of no array": ("npz", lambda: zip_of({}), "0 arrays"),
    "npz of something else": ("npz", lambda: zip_of({"a.txt": b"hello there"}), "cannot be read"),
    "npz with many entries": ("npz", many_entries, "more than 1000 entries"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_array_files_are_refused(name, tmp_path):
    kind, make, message = CRAFTED[name]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(make())
    outcome = read_in_child(lambda: read_sequence(path))
    assert not outcome.failures
    assert outcome.read == 0, "the file was read"
    assert str(path) in outcome.refused[0]
    assert message in outcome.refused[0]


@pytest.mark.parametrize(
    ("kind", "suffix"), product(("named pipe", "device", "socket"), ("pkl", "npy", "npz", "png"))
)
def test_what_is_no_regular_file_is_refused_without_opening_it(kind, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.close()
    outcome = read_in_child(lambda: read_sequence(tmp_path if suffix == "png" else path))
    assert not outcome.failures
    what = "the frame" if suffix == "png" else "the sequence"
    assert outcome.refused == (f"{path}: {what} cannot be read (a {kind}, not a regular file)",)


def png(*chunks):
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def png_start(width, height):
    return (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))


def png_of(width, height):
    rows = zlib.compress(bytes((width + 1) * height))
    return png(png_start(width, height), (b"IDAT", rows), (b"IEND", b""))


FRAMES = {
    "a frame beyond the limit": (lambda: png_of(2049, 2048), "2049×2048 pixels; the limit is 4194304"),
    "a frame that Pillow calls a bomb": (lambda: png(png_start(30_000, 30_000)), "30000×30000 pixels"),
    "a frame of two sizes": (
        lambda: png(png_start(8, 8), png_start(9_000, 9_000), (b"IDAT", b"x"), (b"IEND", b"")),
        "two sizes",
    ),
    "a frame with a short header": (lambda: png((b"IHDR", b"\0" * 8)), "cannot be read as a PNG frame"),
    "a frame with a text bomb": (
        lambda: png(png_start(8, 8), (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28))), (b"IDAT", b"x")),
        "cannot be read as a PNG frame",
    ),
    "a frame with damaged rows": (
        lambda: png(png_start(8, 8), (b"IDAT", b"xyz"), (b"I\0ND", b"")),
        "cannot be read as a PNG frame",
    ),
    "a picture of another kind": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
        "not a PNG image",
    ),
}


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.filterwarnings("error")
def test_crafted_png_frames_are_refused(name, tmp_path):
    make, message = FRAMES[name]
    (tmp_path / "000.png").write_bytes(make())
    outcome = read_in_child(lambda: read_sequence(tmp_path))
    assert not outcome.failures
    assert outcome.read == 0, "the frame was read"
    assert f"{tmp_path}/000.png" in outcome.refused[0]
    assert message in outcome.refused[0]


def test_frames_that_exceed_the_limit_together_are_refused(tmp_path):
    (tmp_path / "000.png").write_bytes(png_of(2048, 2048))
    for index in range(1, 70):
        (tmp_path / f"{index:03d}.png").symlink_to("000.png")
    outcome = read_in_child(lambda: read_sequence(tmp_path))
    assert not outcome.failures
    assert f"{tmp_path}/032.png" in outcome.refused[0]
    assert f"the frames exceed {SEQUENCE_BYTES} bytes" in outcome.refused[0]


def test_folders_of_many_frames_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(png_frames, "PNG_FRAMES", 5)
    for index in range(6):
        (tmp_path / f"{index}.png").write_bytes(png_of(8, 8))
    with pytest.raises(DataError, match="more than 5 PNG frames"):
        read_sequence(tmp_path)

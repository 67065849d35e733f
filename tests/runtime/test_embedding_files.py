"""Files of embeddings: pieces of a run that did not end, and what they are taken for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qgait_ptq as qg
from qgait_ptq.errors import ConfigError, DataError
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.sequences import Reading
from qgait_ptq.runtime.embedding_files import PIECE, _fingerprint, embed_to_file, read_embeddings

COUNT = PIECE + 6


@pytest.fixture(scope="module")
def embedder(eight_bit_file):
    return qg.Embedder(eight_bit_file, threads=1)


def write_walk(view: Path, number: int, png: bool = False) -> None:
    view.mkdir(parents=True, exist_ok=True)
    frames = 255 * np.random.default_rng(number).integers(0, 2, (3, 64, 44), np.uint8)
    if not png:
        np.save(view / "0.npy", frames)
        np.save(view / "1.npy", frames.astype(np.float32))
        return
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(view / f"{index}.png", compress_level=0)


@pytest.fixture
def people(tmp_path):
    for number in range(COUNT):
        write_walk(tmp_path / "people" / f"{number:03d}" / "nm-01" / "090", number, png=number == 0)
    return tmp_path / "people"


def stop() -> None:
    raise KeyboardInterrupt


class Advance:
    """Stops a run after so many sequences."""

    def __init__(self, last: int) -> None:
        self.left = last

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            stop()


@pytest.mark.parametrize("replaced", [None, "000", "001", "069"])
def test_pieces_are_taken_unless_a_source_was_replaced(embedder, people, tmp_path, replaced):
    out = tmp_path / "out.npz"
    with pytest.raises(KeyboardInterrupt):
        embed_to_file(embedder, GaitDataset.from_directory(people), out, 1, Advance(PIECE + 2))
    assert [path.name for path in tmp_path.glob(".out.npz.*/*")] == ["00000000.npy"]
    if replaced is not None:
        write_walk(people / replaced / "nm-01" / "090", 1000, png=replaced == "000")
    data = GaitDataset.from_directory(people)
    assert embed_to_file(embedder, data, out, 2) == (PIECE if replaced is None else 0)
    embeddings, names = read_embeddings(out)
    assert names == [record.name for record in data.records]
    for index in (0, 1, COUNT - 1):
        np.testing.assert_array_equal(embeddings[index], embedder(data[index][0]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npz", "people"]


def test_every_file_of_a_sequence_counts(embedder, people):
    both = Reading(modalities=(0, 1))

    def fingerprint(reading: Reading = Reading()) -> str:  # noqa: B008 - frozen
        return _fingerprint(embedder, GaitDataset.from_directory(people, ["001"], reading))

    first, several = fingerprint(), fingerprint(both)
    status = (people / "001/nm-01/090/1.npy").stat()
    os.utime(people / "001/nm-01/090/1.npy", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert fingerprint() == first
    assert fingerprint(both) != several


def test_a_png_folder_counts_with_each_frame(embedder, people):
    folder = people / "000/nm-01/090"
    found = set()
    for change in (
        lambda: None,
        lambda: os.utime(folder / "1.png", ns=(1, 1)),
        lambda: (folder / "1.png").write_bytes(b"short"),
        lambda: (folder / "2.png").rename(folder / "3.png"),
        lambda: (folder / "3.png").unlink(),
        lambda: (folder / "1.png").rename(folder / "1.PNG"),
        lambda: os.utime(folder / "1.PNG", ns=(2, 2)),
        lambda: (folder / "._1.png").write_bytes(b"hidden"),
    ):
        change()
        found.add(_fingerprint(embedder, GaitDataset.from_directory(people, ["000"])))
    assert len(found) == 7  # the hidden file does not count


def test_sequences_in_memory_have_no_sources_and_are_embedded(embedder, walkers, tmp_path):
    data = GaitDataset.from_pairs([(walkers[i][0], str(i)) for i in range(3)])
    assert all(record.sources == () for record in data.records)
    assert embed_to_file(embedder, data, tmp_path / "new" / "out.npz", 2) == 0
    assert len(read_embeddings(tmp_path / "new" / "out.npz")[0]) == 3


def test_a_source_that_is_gone_is_named(embedder, people, tmp_path):
    data = GaitDataset.from_directory(people)
    (people / "001/nm-01/090/0.npy").unlink()
    with pytest.raises(DataError, match=r"001/nm-01/090.*No such file"):
        embed_to_file(embedder, data, tmp_path / "out.npz", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["people"]


def test_pieces_of_a_killed_run_are_not_touched_while_it_may_live(embedder, people, tmp_path):
    (tmp_path / ".out.npz.0123456789abcdef").mkdir()
    (tmp_path / ".out.npz.backup").mkdir()
    data = GaitDataset.from_directory(people, ["000", "001"])
    code = "import sys; from pathlib import Path; from qgait_ptq.system.locking import locked\n"
    code += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    other = subprocess.Popen(  # another process, since a thread may take its lock again
        [sys.executable, "-c", code, tmp_path / "out.npz"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(ConfigError, match=f"another run .process {other.pid} on"):
        embed_to_file(embedder, data, tmp_path / "out.npz", 1)
    assert (tmp_path / ".out.npz.0123456789abcdef").exists()
    other.communicate()
    embed_to_file(embedder, data, tmp_path / "out.npz", 1)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".out.npz.backup"]

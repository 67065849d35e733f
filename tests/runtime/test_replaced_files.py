"""Files that are replaced or deleted while an embedder uses them."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

import qgait_ptq as qg
from qgait_ptq.errors import ModelError
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.runtime import written_file
from qgait_ptq.runtime.embedding_files import _fingerprint, embed_to_file, read_embeddings
from tests.runtime.small_model import SEQUENCE, save, small_model

LONG = np.concatenate([SEQUENCE] * 4)


def other_model():
    """Another network with the same shapes: each of its weights has the other sign."""
    model = small_model()
    (weight,) = (value for value in model.graph.initializer if value.name == "weight")
    weight.raw_data = (-np.frombuffer(weight.raw_data, np.int8)).tobytes()
    return model


def replace_file(path: Path, model: onnx.ModelProto) -> None:
    (path.parent / "new.onnx").write_bytes(model.SerializeToString())
    os.replace(path.parent / "new.onnx", path)


@pytest.fixture
def path(tmp_path):
    return save(small_model(), tmp_path)


@pytest.fixture
def expected(path):
    """The embeddings of the file before it is replaced, of a short and of a long sequence."""
    embedder = qg.Embedder(path, threads=1, longest_piece=1000)
    return embedder(SEQUENCE), embedder(LONG)


def test_an_embedder_keeps_its_network_when_the_file_is_replaced(path, expected):
    embedder = qg.Embedder(path, threads=1, longest_piece=4)
    replace_file(path, other_model())
    other = qg.Embedder(path, threads=1, longest_piece=4)
    assert embedder.streams
    np.testing.assert_array_equal(embedder(LONG), expected[1])  # loads the parts for streaming
    np.testing.assert_array_equal(embedder(SEQUENCE), expected[0])
    assert not np.array_equal(other(LONG), expected[1])
    assert not np.array_equal(other(SEQUENCE), expected[0])


def test_an_embedder_keeps_working_when_the_file_is_deleted_or_the_folder_is_changed(
    path, expected, monkeypatch
):
    monkeypatch.chdir(path.parent)
    embedder = qg.Embedder(path.name, threads=1, longest_piece=4)
    assert embedder.path == path
    monkeypatch.chdir("/")
    path.unlink()
    np.testing.assert_array_equal(embedder(LONG), expected[1])
    np.testing.assert_array_equal(embedder(SEQUENCE), expected[0])
    batch = SEQUENCE[None]
    assert embedder.session.infer(batch).shape[0] == 1  # the complete file, opened again


def test_intermediate_files_belong_to_the_opened_network_and_not_to_its_replacement(path, tmp_path):
    data = GaitDataset.from_pairs([(SEQUENCE, "a")])
    embedder, out = qg.Embedder(path, threads=1), tmp_path / "out.npz"
    of_opened = _fingerprint(embedder, data)
    replace_file(path, other_model())
    assert _fingerprint(embedder, data) == of_opened
    assert _fingerprint(qg.Embedder(path, threads=1), data) != of_opened
    path.unlink()
    embed_to_file(embedder, data, out, 1)
    np.testing.assert_array_equal(read_embeddings(out)[0][0], embedder(SEQUENCE))


def test_a_file_that_is_replaced_while_it_is_loaded_is_refused(path, monkeypatch):
    """Its session and the parts for streaming could come from two networks."""
    open_session = written_file.open_session

    def replace_and_open(model, *settings):
        replace_file(path, other_model())
        return open_session(model, *settings)

    monkeypatch.setattr(written_file, "open_session", replace_and_open)
    with pytest.raises(ModelError, match=r"model\.onnx: the model was replaced while it was read; read it"):
        qg.Embedder(path)

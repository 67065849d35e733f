import threading

import numpy as np
import onnx
import pytest
import torch

import qgait_ptq as qg
from qgait_ptq.config import IdcConfig
from qgait_ptq.errors import DataError, ModelError
from qgait_ptq.export.onnx_file import export_float
from qgait_ptq.gait.dataset import GaitDataset
from qgait_ptq.gait.zoo import GaitGraph
from qgait_ptq.graph.trace import capture
from tests.conftest import make_gaitbase, randomise_batch_norms


@pytest.fixture(scope="module")
def result(walkers):
    return qg.quantize(make_gaitbase(), walkers, qg.QuantConfig(calibration_sequences=12), device="cpu")


@pytest.fixture(scope="module")
def path(result, tmp_path_factory):
    return result.save(tmp_path_factory.mktemp("result")) / "model.onnx"


def test_a_sequence_gives_parts_times_channels(path, result, walkers):
    silhouettes, _ = walkers[0]
    embedding = qg.Embedder(path)(silhouettes)
    assert embedding.shape == (16, 16)
    with torch.inference_mode():
        expected = result.model(torch.from_numpy(silhouettes)[None].float() / 255)[0].T.numpy()
    cosine = (embedding * expected).sum() / np.linalg.norm(embedding) / np.linalg.norm(expected)
    assert cosine > 0.999


def test_masks_bools_and_square_silhouettes_are_the_same_sequence(path, walkers):
    embedder = qg.Embedder(path, threads=1)
    silhouettes, _ = walkers[0]
    expected = embedder(silhouettes)
    square = np.pad(silhouettes, ((0, 0), (0, 0), (10, 10)))
    for same in (silhouettes // 255, silhouettes > 0, square):
        np.testing.assert_array_equal(embedder(same), expected)


def test_threads_may_share_an_embedder(path, walkers):
    embedder = qg.Embedder(path)
    sequences = [walkers[i][0] for i in range(8)]
    expected = [embedder(sequence) for sequence in sequences]
    given = [None] * len(sequences)

    def work(index):
        given[index] = embedder(sequences[index])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(sequences))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(expected, given, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (np.zeros((0, 64, 44), np.uint8), "empty"),
        (np.ones((3, 64, 30), np.uint8), "64×30"),
        (np.ones((64, 44), np.uint8), r"\[64, 44\]"),
        (np.ones((3, 64, 44), np.float32), "float32"),
    ],
)
def test_what_is_no_sequence_is_refused(path, sequence, message):
    with pytest.raises(DataError, match=message):
        qg.Embedder(path)(sequence)


def test_files_that_are_not_ours_are_refused(tmp_path, path):
    with pytest.raises(ModelError, match="no such file"):
        qg.Embedder(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match="cannot load it"):
        qg.Embedder(tmp_path / "text.onnx")
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match="cannot load it"):
        qg.Embedder(tmp_path / "cut.onnx")
    captured = capture(make_gaitbase(), (64, 44))
    onnx.save(export_float(captured.graph_module, captured, 21), tmp_path / "foreign.onnx")
    with pytest.raises(ModelError, match="not one that qgait-ptq wrote"):
        qg.Embedder(tmp_path / "foreign.onnx")


def test_poses_are_embedded_as_they_are(tmp_path):
    torch.manual_seed(0)
    network = randomise_batch_norms(GaitGraph(channels=(4, 8), embedding=16))
    rng = np.random.default_rng(0)
    poses = [rng.normal(0, 1, (12 + i % 4, 17, 3)).cumsum(0) for i in range(12)]
    data = GaitDataset.from_pairs([(pose, f"person {i // 3}") for i, pose in enumerate(poses)], raw=True)
    config = qg.QuantConfig(idc=IdcConfig(enabled=False))
    qg.quantize(network, data, config, device="cpu").save(tmp_path)
    embedder = qg.Embedder(tmp_path / "model.onnx")
    assert embedder.raw
    assert embedder.frame_shape == (17, 3)
    with torch.inference_mode():
        expected = network(torch.from_numpy(poses[3].astype(np.float32))[None])[0]
    given = torch.from_numpy(embedder(poses[3]))[0]
    assert torch.cosine_similarity(given, expected, dim=0) > 0.99
    with pytest.raises(DataError, match="NaN"):
        embedder(np.full((5, 17, 3), np.nan))
    with pytest.raises(DataError, match="frames of 16×3"):
        embedder(np.zeros((5, 16, 3)))

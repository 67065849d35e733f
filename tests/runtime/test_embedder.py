import re
import threading
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from torch import nn

import qgait_ptq as qg
from qgait_ptq.capture.trace import capture
from qgait_ptq.cli import embed
from qgait_ptq.config.schema import IdcConfig
from qgait_ptq.errors import ConfigError, DataError, ModelError
from qgait_ptq.exporters.onnx_file import export_float
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.sequences import Reading
from qgait_ptq.gait.zoo import GaitGraph
from tests.conftest import make_gaitbase, randomise_batch_norms


@pytest.fixture(scope="module")
def result(eight_bits):
    return eight_bits


@pytest.fixture(scope="module")
def path(eight_bit_file):
    return eight_bit_file


def test_a_sequence_gives_parts_times_channels(path, result, walkers):
    silhouettes, _ = walkers[0]
    embedding = qg.Embedder(path, threads=1)(silhouettes)
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
    embedder = qg.Embedder(path, threads=1)
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
        (
            np.arange(3, dtype=np.uint8).repeat(64 * 44).reshape(3, 64, 44),
            "values of 0 to 2 are not silhouettes",
        ),
    ],
)
def test_what_is_no_sequence_is_refused(path, sequence, message):
    with pytest.raises(DataError, match=message):
        qg.Embedder(path, threads=1)(sequence)


def test_files_that_are_not_ours_are_refused(tmp_path, path):
    with pytest.raises(ModelError, match="no such file"):
        qg.Embedder(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelError, match="cannot load the model"):
        qg.Embedder(tmp_path / "text.onnx")
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelError, match="cannot load the model"):
        qg.Embedder(tmp_path / "cut.onnx")
    newer = onnx.load(path)
    newer.opset_import[0].version = 99
    (tmp_path / "newer.onnx").write_bytes(newer.SerializeToString())
    with pytest.raises(ModelError, match=r"install a newer onnxruntime"):
        qg.Embedder(tmp_path / "newer.onnx")
    captured = capture(make_gaitbase(), (64, 44))
    onnx.save(export_float(captured.graph_module, captured, 21), tmp_path / "foreign.onnx")
    with pytest.raises(ModelError, match="not written by qgait-ptq"):
        qg.Embedder(tmp_path / "foreign.onnx")


def foreign_model(path, operator, element):
    """One operator on a vector."""
    values = [helper.make_tensor_value_info(name, element, ["n"]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "foreign", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, path)
    return path


def test_a_file_with_a_kernel_that_the_runtime_lacks_asks_for_a_newer_one(tmp_path):
    """ONNX has the arc tangent of doubles, onnxruntime has none."""
    with pytest.raises(ModelError, match=r"NOT_IMPLEMENTED.*install a newer onnxruntime"):
        qg.Embedder(foreign_model(tmp_path / "atan.onnx", "Atan", TensorProto.DOUBLE))


def test_a_file_of_other_input_types_is_named(tmp_path):
    path = foreign_model(tmp_path / "words.onnx", "Identity", TensorProto.STRING)
    with pytest.raises(ModelError, match=r"words.onnx: its input x has the type tensor\(string\)"):
        qg.Embedder(path)


def test_poses_are_embedded_as_they_are(tmp_path):
    torch.manual_seed(0)
    network = randomise_batch_norms(GaitGraph(channels=(4,), embedding=16))
    rng = np.random.default_rng(0)
    poses = [rng.normal(0, 1, (12 + i % 4, 17, 3)).cumsum(0) for i in range(12)]
    data = GaitDataset.from_pairs([(pose, f"person {i // 3}") for i, pose in enumerate(poses)], raw=True)
    config = qg.QuantConfig(idc=IdcConfig(enabled=False), rounding="nearest", bias_correction=False)
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


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """A float file of poses, whose sums exceed float32 for poses of 1e38."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(2), nn.Linear(6, 16), nn.ReLU(), LargestOverFrames(), nn.Linear(16, 8))
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(size=(12, 2, 3)), index % 4) for index in range(8)]
    data = GaitDataset.from_pairs(pairs, raw=True)
    config = qg.QuantConfig(idc=IdcConfig(enabled=False), rounding="nearest", bias_correction=False)
    result = qg.quantize(network.eval(), data, config, device="cpu")
    return result.save(tmp_path_factory.mktemp("overflowing"), float_file=True) / "float.onnx"


class LargestOverFrames(nn.Module):
    def forward(self, frames):
        return frames.amax(1)


def test_an_embedding_that_is_not_finite_is_refused(overflowing, tmp_path):
    embedder = qg.Embedder(overflowing, threads=1)
    small, large = np.ones((12, 2, 3), np.float32), np.full((12, 2, 3), 3e38, np.float32)
    reason = r"the sequence has an embedding with NaN or infinite values in .*float\.onnx; compare"
    with pytest.raises(DataError, match=rf"sequence 1: {reason}"):
        embedder.embed([small, large])
    for name, poses in {"anna": small, "ben": large}.items():
        (tmp_path / "poses" / name / "nm-01" / "090").mkdir(parents=True)
        np.save(tmp_path / "poses" / name / "nm-01" / "090" / "poses.npy", poses)
    command = [str(overflowing), str(tmp_path / "poses"), "--out", str(tmp_path / "out.npz")]
    done = CliRunner().invoke(embed.command, command, standalone_mode=False)
    assert isinstance(done.exception, DataError)
    assert re.match(rf"ben/nm-01/090: {reason}", str(done.exception))
    assert not (tmp_path / "out.npz").exists()


def test_a_long_sequence_in_pieces_gives_the_same_to_the_bit(path, walkers):
    sequence = np.concatenate([walkers[i][0] for i in range(6)])
    in_pieces, whole = qg.Embedder(path, longest_piece=16), qg.Embedder(path, longest_piece=10**6)
    assert in_pieces.streams
    np.testing.assert_array_equal(in_pieces(sequence), whole(sequence))
    np.testing.assert_array_equal(in_pieces(sequence[:17]), whole(sequence[:17]))


def test_networks_whose_frames_meet_otherwise_are_not_streamed(tmp_path, few_walkers):
    """A mean over frames is no maximum, and a convolution over frames sees neighbours."""
    torch.manual_seed(0)
    config = qg.QuantConfig(idc=IdcConfig(enabled=False), rounding="nearest")
    for name, network in {"mean": MeanOverFrames(), "neighbours": NeighbouringFrames()}.items():
        folder = qg.quantize(network.eval(), few_walkers, config, device="cpu").save(tmp_path / name)
        embedder = qg.Embedder(folder / "model.onnx", longest_piece=8)
        assert not embedder.streams
        assert embedder(few_walkers[0][0]).shape == (1, 8)


def test_several_sequences_of_different_lengths(path, walkers):
    embedder = qg.Embedder(path, threads=1)
    sequences = [walkers[0][0][:9], walkers[1][0]]
    together = embedder.embed(sequences)
    assert together.shape == (2, 16, 16)
    np.testing.assert_array_equal(together[1], embedder(sequences[1]))
    with pytest.raises(DataError, match=r"sequence 1: .*empty"):
        embedder.embed([sequences[0], sequences[0][:0]])
    with pytest.raises(DataError, match="no sequence"):
        embedder.embed([])


def test_a_sequence_is_matched_with_its_person(path, walkers):
    embedder = qg.Embedder(path, threads=1)
    gallery = embedder.embed([walkers[i][0] for i in range(4)])
    found = embedder.match(gallery, embedder(walkers[2][0]), top_k=2)
    assert found.indices[0, 0] == 2
    assert found.distances[0, 0] < found.distances[0, 1]


def test_openvino_embeds_what_was_written_for_it_and_refuses_the_rest(path, walkers, few_walkers, tmp_path):
    config = qg.QuantConfig(target="openvino", idc=IdcConfig(enabled=False), rounding="nearest")
    result = qg.quantize(make_gaitbase(), few_walkers, config, device="cpu")
    file = result.save(tmp_path, float_file=True) / "model.onnx"
    embedder = qg.Embedder(file, runtime="openvino", threads=1)
    given = torch.from_numpy(embedder(walkers[0][0]))
    with torch.inference_mode():
        expected = result.model(torch.from_numpy(walkers[0][0])[None].float() / 255)[0].T
    assert torch.cosine_similarity(given.flatten(), expected.flatten(), dim=0) > 0.999
    with pytest.raises(ModelError, match="the file is for the target openvino, not for onnxruntime"):
        qg.Embedder(file)
    with pytest.raises(ModelError, match="the file is for the target onnxruntime, not for openvino"):
        qg.Embedder(path, runtime="openvino")
    with pytest.raises(ConfigError, match="unknown runtime 'tensorflow'"):
        qg.Embedder(path, runtime="tensorflow")
    for runtime in ("onnxruntime", "openvino"):  # the float file is for both
        assert qg.Embedder(tmp_path / "float.onnx", runtime=runtime)(walkers[0][0]).shape == (16, 16)


class MeanOverFrames(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 8, 3, 2, 1)
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, silhouettes):
        n, s = silhouettes.shape[:2]
        x = self.conv(silhouettes.flatten(0, 1).unsqueeze(1)).relu().amax((2, 3))
        return self.linear(x.reshape(n, s, -1).mean(1))


class NeighbouringFrames(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 8, 3, (1, 2, 2), 1)
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, silhouettes):
        return self.linear(self.conv(silhouettes.unsqueeze(1)).relu().amax((2, 3, 4)))


def test_wider_silhouettes_are_cut_as_those_that_calibrated(tmp_path, walkers_root):
    """The file remembers the columns: 64×64 lost 16 on each side."""
    data = qg.load_directory(walkers_root, reading=Reading(longest=12, cut_columns=16))
    config = qg.QuantConfig(idc=IdcConfig(enabled=False), rounding="nearest")
    few = replace(data, calibration=data.calibration.choose(6), test=data.test.choose(6), test_set=None)
    result = qg.quantize(make_gaitbase(), few, config, device="cpu")
    embedder = qg.Embedder(result.save(tmp_path) / "model.onnx")
    assert embedder.frame_shape == (64, 32)
    square, _ = GaitDataset.from_directory(walkers_root, reading=Reading(cut_columns=0))[0]
    assert square.shape[1:] == (64, 64)
    np.testing.assert_array_equal(embedder(square), embedder(square[:, :, 16:-16]))
    with pytest.raises(DataError, match="64×8"):
        embedder(square[:, :, :8])


def test_frames_of_different_sizes_and_no_threads_are_refused(eight_bit_file):
    with pytest.raises(DataError, match=r"the sequence: not an array \[s, \.\.\.\]"):
        qg.Embedder(eight_bit_file)([[[0, 1]], [[0]]])
    with pytest.raises(ConfigError, match="threads is 0; it must be an integer from 1 to 1024"):
        qg.Embedder(eight_bit_file, threads=0)


def test_a_tensor_that_requires_grad_is_refused_with_the_remedy(eight_bit_file):
    with pytest.raises(DataError, match=r"the sequence: not an array .*tensor\.detach\(\)"):
        qg.Embedder(eight_bit_file)(torch.rand(3, 64, 44, requires_grad=True))


@pytest.mark.parametrize(
    "settings",
    [{name: value} for name in ("threads", "longest_piece") for value in (2.5, "2", 0, True)]
    + [{"threads": 10**12}],
)
def test_settings_that_are_no_integers_or_out_of_range_are_refused(settings, eight_bit_file):
    ((name, value),) = settings.items()
    with pytest.raises(ConfigError, match=rf"{name} is {value!r}; it must be an integer"):
        qg.Embedder(eight_bit_file, **settings)


def test_settings_can_be_integers_of_numpy(eight_bit_file, walkers):
    sequence = walkers[0][0]
    expected = qg.Embedder(eight_bit_file, threads=1)(sequence)
    embedder = qg.Embedder(eight_bit_file, threads=np.int64(1), longest_piece=np.uint8(8))
    np.testing.assert_array_equal(embedder(sequence), expected)


@pytest.mark.parametrize("path", [None, 3, b"model.onnx", []])
def test_a_path_of_another_type_is_refused(path):
    kind = type(path).__name__
    for load in (qg.Embedder, qg.load_submodule):
        with pytest.raises(ModelError, match=f"the path of the model is of type {kind}; pass a text"):
            load(path)
    for load in (qg.load_directory, qg.GaitDataset.from_directory):
        with pytest.raises(DataError, match=f"the path of the data set is of type {kind}; pass a text"):
            load(path)


def test_a_result_is_not_saved_to_a_path_of_another_type(eight_bits):
    with pytest.raises(ConfigError, match="the path of the output directory is of type NoneType"):
        eight_bits.save(None)

"""Networks of several inputs, the whole way: data, quantization, file, embedder, command line."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import qgait_ptq as qg
from qgait_ptq.errors import CaptureError, DataError, ModelError
from qgait_ptq.gait import GaitDataset, Reading
from qgait_ptq.gait.zoo import SmplGait
from qgait_ptq.runtime.embedding_files import embed_to_file, read_embeddings
from qgait_ptq.verification.file_bytes import random_batches, verify
from tests.cli.test_cli import assert_refused, run
from tests.conftest import randomise_batch_norms

SMALL = {"channels": (4, 8, 8), "embedding": 16}


def make_network():
    torch.manual_seed(0)
    return randomise_batch_norms(SmplGait(**SMALL))


def bodies_of(silhouettes):
    """Numbers that belong to a sequence, as a body model's do."""
    rng = np.random.default_rng(int(silhouettes.astype(np.int64).sum()))
    return (rng.normal(0, 0.1, (len(silhouettes), 85)) + rng.normal(0, 1, 85)).astype(np.float32)


@pytest.fixture(scope="module")
def recordings(people):
    return [
        ({"silhouettes": silhouettes, "bodies": bodies_of(silhouettes)}, record.subject)
        for silhouettes, record in ((sequence[:24], record) for sequence, record in people)
    ]


@pytest.fixture(scope="module")
def result(recordings):
    config = qg.QuantConfig(weight_bits=4, activation_bits=4, idc={"steps": 2}, calibration_frames=20)
    return qg.quantize(make_network(), recordings, config, device="cpu")


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    out = tmp_path_factory.mktemp("several") / "out"
    result.save(out, float_file=True, torch_file=True)
    return out


def test_the_file_has_the_inputs_of_the_network_each_with_its_type(folder):
    inputs = onnx.load(folder / "model.onnx").graph.input
    assert [value.name for value in inputs] == ["silhouettes", "bodies"]
    types = [value.type.tensor_type for value in inputs]
    assert [t.elem_type for t in types] == [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT]
    dimensions = [[d.dim_param or d.dim_value for d in t.shape.dim] for t in types]
    assert dimensions == [["batch", "frames", 64, 44], ["batch", "frames", 85]]


def test_each_input_has_a_range_of_its_own_and_its_first_layer_is_an_edge(result):
    layers = {layer.name: layer for layer in result.report.layers}
    first_of_each = layers["frames.0"], layers["body.layers.0"]
    assert [layer.activation_bits for layer in first_of_each] == [8, 8]
    assert layers["body.layers.1"].activation_bits == 4
    silhouettes, bodies = (layer.scales.activation_range for layer in first_of_each)
    assert silhouettes == pytest.approx([0, 1])
    assert bodies[0] < -1.5 < 1.5 < bodies[1]


def test_the_file_computes_what_the_simulation_does_at_other_lengths_too(result, folder, recordings):
    assert result.report.parity.cosine_min > 0.999
    embedder = qg.Embedder(folder / "model.onnx")
    for length in (1, 13, 70):
        sequence = {
            name: np.resize(array, (length, *array.shape[1:])) for name, array in recordings[0][0].items()
        }
        silhouettes, bodies = (torch.from_numpy(array)[None] for array in sequence.values())
        with torch.inference_mode():
            expected = result.model(silhouettes / 255, bodies)[0].T.numpy()
        given = embedder(sequence)
        assert np.abs(given - expected).max() < 0.02 * np.abs(expected).max()


def test_every_byte_of_the_runtime_is_that_of_the_integer_reference(folder):
    embedder = qg.Embedder(folder / "model.onnx")
    verification = verify(folder / "model.onnx", random_batches(embedder.session, 2, 9))
    assert len(verification.tensors) > 10
    assert verification.differing == 0


def test_long_sequences_are_streamed_with_the_same_result(folder, recordings):
    whole, pieces = (qg.Embedder(folder / "model.onnx", longest_piece=length) for length in (1000, 7))
    assert pieces.streams
    sequence, _ = recordings[0]
    np.testing.assert_array_equal(pieces(sequence), whole(sequence))


def test_the_embedder_takes_tuples_in_order_and_refuses_what_is_not_the_networks(folder, recordings):
    embedder = qg.Embedder(folder / "model.onnx")
    sequence, _ = recordings[0]
    silhouettes, bodies = sequence["silhouettes"], sequence["bodies"]
    expected = embedder(sequence)
    np.testing.assert_array_equal(embedder((silhouettes, bodies)), expected)
    np.testing.assert_array_equal(embedder({"bodies": bodies, "silhouettes": silhouettes > 0}), expected)
    wide = np.pad(silhouettes, ((0, 0), (0, 0), (10, 10)))
    np.testing.assert_array_equal(embedder((wide, bodies)), expected)
    for wrong, message in (
        (silhouettes, "one array, .* takes 2: silhouettes, bodies"),
        ((silhouettes,), "1 arrays"),
        (
            {"silhouettes": silhouettes, "poses": bodies},
            "silhouettes, poses, but .* takes silhouettes, bodies",
        ),
        ((silhouettes, bodies[:-1]), "the same number of frames"),
        ((silhouettes, bodies[:, 1:]), "bodies 84"),
        ((bodies, silhouettes), "holds NaN|silhouettes|bodies"),
    ):
        with pytest.raises(DataError, match=message):
            embedder(wrong)


def test_model_pt2_takes_the_inputs_too(result, folder, recordings):
    import torch.ao.quantization.fx._decomposed

    program = torch.export.load(folder / "model.pt2").module()
    sequence, _ = recordings[0]
    silhouettes = torch.from_numpy(sequence["silhouettes"])[None] / 255
    bodies = torch.from_numpy(sequence["bodies"])[None]
    with torch.inference_mode():
        given, expected = program(silhouettes, bodies), result.model(silhouettes, bodies)
    assert (given - expected).abs().max() < 0.02 * expected.abs().max()


class WithLabels(nn.Module):
    """Silhouettes, and a number of each frame that is looked up."""

    def __init__(self):
        super().__init__()
        self.convolution, self.known = nn.Conv2d(1, 8, 3, 2, 1), nn.Embedding(5, 8)
        self.linear = nn.Linear(8, 12)

    def forward(self, silhouettes, labels):
        n, s, h, w = silhouettes.shape
        frames = self.convolution(silhouettes.reshape(n * s, 1, h, w)).relu().mean((2, 3)).reshape(n, s, -1)
        return self.linear((frames + self.known(labels)).amax(1))


class ReadsOneOnly(WithLabels):
    def forward(self, silhouettes, labels):
        return super().forward(silhouettes, torch.zeros_like(silhouettes[:, :, 0, 0], dtype=torch.long))


def with_labels(people):
    return [
        ((silhouettes, np.arange(len(silhouettes), dtype=np.int64) % 5), record.subject)
        for silhouettes, record in people
    ]


@pytest.fixture(scope="module")
def labelled(people, tmp_path_factory):
    """A network with labels, one of its sequences, and the folder of its result."""
    torch.manual_seed(0)
    network, pairs = WithLabels().eval(), with_labels(people)
    config = qg.QuantConfig(idc={"enabled": False}, target="generic-qdq")
    folder = qg.quantize(network, pairs, config).save(tmp_path_factory.mktemp("labelled"))
    return network, pairs[3][0], folder


def test_integers_reach_the_network_and_the_file_as_integers(labelled):
    network, (silhouettes, labels), folder = labelled
    embedder = qg.Embedder(folder / "model.onnx")
    assert [given.dtype for given in embedder.session.inputs] == [np.uint8, np.int64]
    with torch.inference_mode():
        expected = network(torch.from_numpy(silhouettes)[None] / 255, torch.from_numpy(labels)[None])[0]
    assert torch.cosine_similarity(torch.from_numpy(embedder((silhouettes, labels))[0]), expected, 0) > 0.999
    other = embedder((silhouettes, labels * 0))
    assert not np.allclose(other, embedder((silhouettes, labels)))


@pytest.mark.parametrize("label", [-1, 5])
@pytest.mark.parametrize("longest_piece", [5, 1000], ids=["streamed", "whole"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_label_that_the_network_does_not_have_is_refused(labelled, runtime, longest_piece, label):
    """OpenVINO computes an embedding for it, and every runtime takes -1 for the last label."""
    pytest.importorskip(runtime)
    _, (silhouettes, labels), folder = labelled
    embedder = qg.Embedder(folder / "model.onnx", runtime=runtime, longest_piece=longest_piece)
    wrong = labels.copy()
    wrong[7] = label
    with pytest.raises(DataError, match=f"modality_1: found {label}; the network takes integers from 0 to 4"):
        embedder((silhouettes, wrong))


@pytest.mark.parametrize(("position", "label"), [(0, -1), (3, 5)], ids=["calibration", "test"])
def test_data_with_a_label_that_the_network_does_not_have_are_refused(people, position, label):
    """One in four sequences is a test sequence."""
    pairs = [((frames[:5], labels[:5].copy()), who) for (frames, labels), who in with_labels(people)[:8]]
    pairs[position][0][1][2] = label
    config = qg.QuantConfig(idc={"enabled": False}, rounding="nearest", target="generic-qdq")
    place = rf"seq-000{position}/000, modality_1: found {label}; the network takes integers from 0 to 4"
    with pytest.raises(DataError, match=place):
        qg.quantize(WithLabels().eval(), pairs, config, device="cpu")


def test_the_data_of_a_state_know_the_limits_of_labels(people):
    pairs = with_labels(people.choose(4))
    state = qg.prepare(WithLabels().eval(), pairs, qg.QuantConfig(target="generic-qdq"), device="cpu")
    assert state.data is state.given
    for data in (state.data.calibration.choose(1), state.data.test):
        assert [entry.largest for entry in data.layout.inputs] == [None, 4]


def test_a_runtime_that_fails_on_a_chunk_does_not_blame_the_file(labelled):
    """Files of older versions do not say which labels the network has."""
    _, (silhouettes, labels), folder = labelled
    embedder = qg.Embedder(folder / "model.onnx", longest_piece=5)
    assert embedder.streams
    embedder._sequences = dataclasses.replace(embedder._sequences, largest={})
    with pytest.raises(ModelError, match=r"model.onnx: onnxruntime .* cannot run .* idx=5 must be within"):
        embedder((silhouettes, np.where(np.arange(len(labels)) == 7, 5, labels)))


@pytest.mark.parametrize("first", ["cut", "uncut"])
def test_sequences_of_a_folder_are_cut_one_by_one(labelled, first, tmp_path):
    """As `Embedder` and `evaluate` cut them: some can be cut already."""
    _, (silhouettes, labels), folder = labelled
    uncut = np.pad(silhouettes, ((0, 0), (0, 0), (10, 10)))
    for name, frames in (("cut", silhouettes), ("uncut", uncut)):
        view = tmp_path / "data" / f"{int(name != first)}" / "nm-01" / "090"
        view.mkdir(parents=True)
        np.save(view / "0.npy", frames)
        np.save(view / "1.npy", labels)
    reading = Reading(cut_columns=0, modalities=(0, 1))  # as the command reads
    data = GaitDataset.from_directory(tmp_path / "data", reading=reading)
    embedder = qg.Embedder(folder / "model.onnx")
    embed_to_file(embedder, data, tmp_path / "out.npz", 1)
    embeddings, _ = read_embeddings(tmp_path / "out.npz")
    for embedding in embeddings:
        np.testing.assert_array_equal(embedding, embedder((silhouettes, labels)))


def test_an_input_that_changes_nothing_is_named(people):
    with pytest.raises(CaptureError, match="does not read its input modality_1"):
        qg.quantize(ReadsOneOnly().eval(), with_labels(people))


@pytest.fixture(scope="module")
def on_disk(walkers_root, tmp_path_factory):
    """Walkers with a file of bodies beside each file of silhouettes."""
    root = tmp_path_factory.mktemp("modalities")
    for file in sorted(walkers_root.rglob("*.npz")):
        folder = root / file.parent.relative_to(walkers_root)
        folder.mkdir(parents=True)
        with np.load(file) as archive:
            (silhouettes,) = archive.values()
        np.save(folder / "0-silhouettes.npy", silhouettes)
        np.save(folder / "1-bodies.npy", bodies_of(silhouettes))
    (root / "partition.json").write_text((walkers_root / "partition.json").read_text())
    weights = root / "weights.pt"
    torch.save(make_network().state_dict(), weights)
    return root, weights


@pytest.fixture(scope="module")
def typed(on_disk):
    """Arguments that name the model, and its data."""
    root, weights = on_disk
    model = [weights, "--model", "qgait_ptq.gait.zoo:SmplGait"]
    for name, value in SMALL.items():
        model += ["--model-argument", f"{name}={list(value) if isinstance(value, tuple) else value}"]
    return model, ["--data", root, "--modality", 0, "--modality", 1]


def test_inspect_is_told_the_shapes_of_inputs(typed):
    model, _ = typed
    inspected = run("inspect", *model, "--input", "64x44", "--input", 85)
    assert "modality_0 64×44, modality_1 85" in " ".join(inspected.stdout.split())
    assert_refused(
        run("inspect", *model, "--input", "64x44", "--input", 84),
        "does not run on sequences [2, 7] of modality_0 64×44, modality_1 84",
    )
    wrong = run("inspect", *model, "--input", "64x44", "--input", "85:numbers")
    assert wrong.returncode == 2
    assert "not a frame shape such as 64x44, 17:integers or scalar:integers" in wrong.stderr


def test_inspect_describes_an_input_of_one_integer_per_frame(tmp_path):
    torch.save(WithLabels().state_dict(), tmp_path / "weights.pt")
    model = [tmp_path / "weights.pt", "--factory", f"{__name__}:WithLabels"]
    inspected = run("inspect", *model, "--input", "64x44", "--input", "scalar:integers")
    assert inspected.returncode == 0, inspected.stderr
    text = " ".join(inspected.stdout.split())
    assert "modality_0 64×44, modality_1 scalar" in text
    assert "batch free, frames free" in text


@pytest.mark.slow
def test_the_command_line_takes_modalities_by_their_number(typed, on_disk, tmp_path):
    (model, data), (root, _) = typed, on_disk
    out = tmp_path / "out"
    quantized = run("quantize", *model, *data, "--out", out, "--device", "cpu")
    assert quantized.returncode == 0, quantized.stderr
    report = json.loads((out / "report.json").read_text())
    assert [part["name"] for part in report["model"]["inputs"]] == ["modality_0", "modality_1"]
    evaluated = run("evaluate", out / "model.onnx", *data, "--json")
    assert json.loads(evaluated.stdout)["rank1"] == report["accuracy"]["onnx"]["rank1"]
    embedded = run("embed", out / "model.onnx", root, "--out", tmp_path / "all.npz")
    assert embedded.returncode == 0, embedded.stderr
    assert run("verify", out).returncode == 0
    assert run("inspect", "--against", out).returncode == 0
    alone = run("evaluate", out / "model.onnx", "--data", root, "--json")  # the file names its modalities
    assert alone.stdout == evaluated.stdout

"""A part of a network quantized alone, for networks of which not all can be captured."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import qgait_ptq as qg
from qgait_ptq.capture.submodule import isolate
from qgait_ptq.errors import CaptureError, ConfigError, DataError, ModelError, SequenceLengthWarning
from qgait_ptq.gait.data.directory import load_directory
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.graph.submodule_shapes import FramesAt, Replacement, SubmoduleShapes
from tests.cli.test_cli import assert_refused, run

NO_CORRECTIONS = {"rounding": "nearest", "bias_correction": False, "equalization": "none"}
CODE = '''
import torch
from torch import nn


class Frames(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 5, 2, 2), nn.ReLU(inplace=True), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()
        )

    def forward(self, frames):
        return self.layers(frames)


class Branching(nn.Module):
    """Its head decides by the values of a tensor, which no graph can hold."""

    def __init__(self):
        super().__init__()
        self.backbone = Frames()
        self.head = nn.Linear(16, 24)

    def forward(self, silhouettes):
        n, s, h, w = silhouettes.shape
        frames = self.backbone(silhouettes.reshape(n * s, 1, h, w))
        pooled = frames.amax((2, 3)).reshape(n, s, -1).amax(1)
        if pooled.sum().item() > 0:
            pooled = pooled / pooled.norm(dim=1, keepdim=True)
        return self.head(pooled)


def make():
    torch.manual_seed(0)
    return Branching().eval()
'''


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    folder = tmp_path_factory.mktemp("code")
    (folder / "branching.py").write_text(CODE)
    return folder


@pytest.fixture(scope="module")
def network(code):
    names = {"__name__": "branching"}
    exec(compile(CODE, str(code / "branching.py"), "exec"), names)
    return names["make"]()


class Volume(nn.Module):
    """A part that takes whole sequences, ``[n, c, s, h, w]``, and gives half as many frames."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv3d(1, 8, 3, (2, 2, 2), 1)
        self.head = nn.Linear(8, 24)

    def forward(self, silhouettes):
        maps = self.convolution(silhouettes.unsqueeze(1)).relu()
        pooled = maps.amax((2, 3, 4))
        return self.head(pooled * 2 if float(pooled.mean()) > 0 else pooled)


class Twice(Volume):
    def forward(self, silhouettes):
        maps = self.convolution(silhouettes.unsqueeze(1)) + self.convolution(silhouettes.unsqueeze(1))
        return self.head(maps.amax((2, 3, 4)))


def test_the_whole_network_is_refused_and_the_way_out_is_named(network, walkers_root):
    with pytest.raises(CaptureError, match="--capture-submodule NAME"):
        qg.quantize(network, load_directory(walkers_root), device="cpu")


@pytest.fixture(scope="module")
def result(network, walkers_root):
    config = qg.QuantConfig(
        weight_bits=4, activation_bits=4, edge_bits=4, calibration_sequences=12, evaluate_simulation=True
    )
    return qg.quantize(network, load_directory(walkers_root), config, submodule="backbone", device="cpu")


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    out = tmp_path_factory.mktemp("part") / "out"
    result.save(out, float_file=True)
    return out


def test_its_layers_have_the_names_of_the_network_and_what_lies_outside_is_in_float(result):
    assert [layer.name for layer in result.report.layers] == ["backbone.layers.0", "backbone.layers.2"]
    assert all(layer.integer for layer in result.report.layers[:1])
    assert result.report.model.submodule["name"] == "backbone"


def test_accuracy_and_agreement_are_of_the_whole_network_with_the_part_inside(result, network, walkers_root):
    accuracy = result.report.accuracy
    assert accuracy["float"].mAP != accuracy["quantized"].mAP
    assert accuracy["onnx"].mAP == pytest.approx(accuracy["quantized"].mAP, abs=1)
    assert 0.9 < result.report.agreement.cosine_min < 1
    assert (result.report.model.channels, result.report.model.parts) == (24, 1)


def test_the_file_put_back_gives_the_embedding_of_the_report(network, folder, walkers):
    hosted = copy.deepcopy(network)
    hosted.backbone = qg.load_submodule(folder / "model.onnx")
    cosines = []
    for index, batch in ((0, 1), (20, 2), (40, 3)):
        silhouettes = torch.from_numpy(walkers[index][0]).float().repeat(batch, 1, 1, 1) / 255
        with torch.inference_mode():
            given, expected = hosted(silhouettes), network(silhouettes)
        assert given.shape == expected.shape == (batch, 24)
        cosines.append(torch.cosine_similarity(given, expected).min())
    assert 0.9 < min(cosines) < 0.99999
    report = json.loads((folder / "report.json").read_text())
    assert min(cosines) >= report["agreement"]["cosine_min"] - 0.05


def test_a_part_that_takes_whole_sequences_may_give_fewer_frames(walkers, tmp_path):
    torch.manual_seed(0)
    network = Volume().eval()
    isolated = isolate(network, "convolution", (64, 44))
    assert (isolated.shapes.given.axis, isolated.shapes.result.axis) == (2, 2)
    assert isolated.frame_shape == (1, 64, 44)
    pairs = [(walkers[i][0], walkers[i][1].subject) for i in range(0, 120, 15)]
    result = qg.quantize(network, pairs, qg.QuantConfig(**NO_CORRECTIONS), submodule="convolution")
    result.save(tmp_path / "out")
    part = qg.load_submodule(tmp_path / "out" / "model.onnx")
    for batch, frames in ((1, 9), (2, 30), (3, 61)):
        walk = np.resize(walkers[5][0], (batch, frames, 64, 44))  # what it was calibrated for
        given = torch.from_numpy(walk).float().unsqueeze(1) / 255
        with torch.inference_mode():
            expected, found = network.convolution(given), part(given)
        assert found.shape == expected.shape
        assert (found - expected).norm() < 0.03 * expected.norm()


class LimitedPart(nn.Module):
    """It sees at most 40 frames at once; what it does with more is not in the graph."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 16)

    def forward(self, frames):
        return self.linear(frames if frames.shape[1] <= 40 else 2 * frames.flip(2)).relu().mean(1)


class CallsByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.part, self.head = nn.Conv2d(1, 8, 5, 4), LimitedPart(), nn.Linear(16, 24)

    def forward(self, silhouettes):
        frames = self.convolution(silhouettes.flatten(0, 1).unsqueeze(1)).relu().mean((2, 3))
        return self.head(self.part(frames=frames.unflatten(0, silhouettes.shape[:2])))


def test_the_file_put_back_takes_the_frame_counts_that_it_is_captured_for(walkers, tmp_path):
    torch.manual_seed(0)
    network = CallsByKeyword().eval()
    walks = [(np.resize(walkers[i][0], (n, 64, 44)), f"{i}") for n in (9, 30, 50) for i in (0, 60)]
    data = qg.GaitData(qg.GaitDataset.from_pairs(walks[:4]), qg.GaitDataset.from_pairs(walks[2:]))
    result = qg.quantize(network, data, qg.QuantConfig(**NO_CORRECTIONS), submodule="part", device="cpu")
    notes = " ".join(result.report.notes)
    assert "captured for 1 to 40 frames" in notes
    assert "2 of 4 test sequences are left out of the evaluation, and the file refuses them" in notes
    result.save(tmp_path / "out")
    hosted = copy.deepcopy(network)
    hosted.part = qg.load_submodule(tmp_path / "out" / "model.onnx")
    few, many = (torch.from_numpy(walks[i][0])[None].float() / 255 for i in (0, 4))
    with torch.inference_mode():
        assert torch.cosine_similarity(hosted(few), network(few)).min() > 0.999
        with pytest.raises(DataError, match="50 frames; the network is captured for 1 to 40 frames"):
            hosted(many)


def test_frames_that_the_network_needs_are_not_left_out():
    given = FramesAt(1)
    part = Replacement(lambda frames: frames, SubmoduleShapes(given, FramesAt(1), (4,)), FrameCounts(30, 30))
    pooled = Replacement(
        lambda frames: frames.amax(1), SubmoduleShapes(given, FramesAt(None), (4,)), part.counts
    )
    frames = torch.rand(2, 50, 4)
    assert torch.equal(part(frames[:, :30]), frames[:, :30])
    with pytest.raises(DataError, match="gets 50 frames; its file takes 30 frames only"):
        part(frames)
    with pytest.warns(SequenceLengthWarning, match="takes 30 frames only, but got 50"):  # as `Embedder` does
        assert torch.equal(pooled(frames=frames), frames[:, :30].amax(1))


def test_what_is_not_a_part_is_refused(network, walkers):
    pairs = [(walkers[i][0], "anna") for i in (0, 10, 20, 30)]
    for model, name, error, message in (
        (network, "backbon", ConfigError, "no module 'backbon'; similar names are backbone"),
        (network, "head", CaptureError, r"takes \[2, 16\] and returns \[2, 24\] for 2 sequences of 7 frames"),
        (Twice().eval(), "convolution", CaptureError, "called 2 times in one pass"),
    ):
        with pytest.raises(error, match=message):
            qg.quantize(model, pairs, submodule=name)


@pytest.mark.parametrize(
    "asked",
    [
        {"idc": {"enabled": True}},
        {"finetune": {"enabled": True}},
        {"budget": {"size_mb": 1.0}},
        {"max_drop": 1},
    ],
)
def test_stages_that_need_the_embedding_in_the_graph_are_refused(network, walkers, asked):
    pairs = [(walkers[i][0], "anna") for i in (0, 10, 20, 30)]
    with pytest.raises(ConfigError, match="Only a submodule is captured"):
        qg.quantize(network, pairs, qg.QuantConfig(**asked), submodule="backbone")


def test_embedder_and_submodule_tell_each_others_files(folder, eight_bit_file):
    with pytest.raises(ModelError, match="holds only the submodule backbone"):
        qg.Embedder(folder / "model.onnx")
    with pytest.raises(ModelError, match=r"a complete network; load it with qgait_ptq\.Embedder"):
        qg.load_submodule(eight_bit_file)


@pytest.fixture
def typed(network, code, walkers_root):
    """Arguments that name the model, its part and the data."""
    torch.save(network.state_dict(), code / "weights.pt")
    model = [code / "weights.pt", "--model", "branching:make"]
    return model, ["--capture-submodule", "backbone"], ["--data", walkers_root]


@pytest.mark.slow
def test_the_command_line_captures_a_part(typed, code, tmp_path):
    model, part, data = typed
    refused = run("quantize", *model, *data, "--out", tmp_path / "no", cwd=code)
    assert refused.returncode == 2
    assert "--capture-submodule NAME" in refused.stderr
    inspected = run("inspect", *model, *part, "--json", cwd=code)
    assert [layer["name"] for layer in json.loads(inspected.stdout)] == [
        "backbone.layers.0",
        "backbone.layers.2",
    ]
    out = tmp_path / "out"
    done = run("quantize", *model, *part, *data, "--bits", 4, "--out", out, cwd=code)
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    assert "only backbone is captured and quantized" in printed
    assert "the file and its size are those of backbone alone" in printed
    assert "submodule backbone, W4A" in (out / "report.html").read_text()
    assert "submodule: backbone" in (out / "recipe.yaml").read_text()
    shape = onnx.load(out / "model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in shape] == ["batch", "frames", 1, 64, 44]
    assert run("verify", out).returncode == 0
    assert_refused(run("evaluate", out / "model.onnx", *data), "holds only the submodule backbone")


def test_sensitivity_of_a_part_is_refused_instead_of_measuring_something_else(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {path: weights.pt, submodule: backbone}\n")
    assert_refused(
        run("sensitivity", "--recipe", recipe), "sensitivity needs embeddings, but a submodule gives none"
    )


@pytest.mark.slow
def test_a_run_of_a_part_is_foretold_and_repeated_by_its_recipe(typed, code, tmp_path):
    model, part, data = typed
    out = tmp_path / "out"
    dry = run("quantize", *model, *part, *data, "--dry-run", "--out", out, cwd=code)
    assert dry.returncode == 0, dry.stderr
    assert not out.exists()
    assert run("quantize", *model, *part, *data, "--out", out, cwd=code).returncode == 0
    recipe = ("--recipe", out / "recipe.yaml", "--trust-code")
    again = run("quantize", *recipe, "--out", tmp_path / "again", cwd=code)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()

"""What is done with a written file: targets, verify, bench, embed, and the example programs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qgait_ptq as qg
from qgait_ptq.config.schema import IdcConfig
from qgait_ptq.evaluation.macs import macs_of_sequence
from qgait_ptq.runtime.embedding_files import read_embeddings
from tests.cli.forks import run_forked
from tests.conftest import make_gaitbase

ROOT = Path(__file__).parents[2]
CONFIG = {"idc": IdcConfig(enabled=False), "rounding": "nearest", "bias_correction": False}


@pytest.fixture(scope="module")
def folders(few_walkers, tmp_path_factory):
    made = {}
    for target in ("onnxruntime", "openvino"):
        result = qg.quantize(
            make_gaitbase(), few_walkers, qg.QuantConfig(target=target, **CONFIG), device="cpu"
        )
        made[target] = result.save(tmp_path_factory.mktemp(target), float_file=True, torch_file=True)
    return made


def run(*arguments, status=0):
    environment = {"PATH": "/usr/bin:/bin", "COLUMNS": "200", "HOME": "/tmp"}
    done = run_forked(list(map(str, arguments)), None, environment)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_targets_are_listed_with_their_limits():
    text = run("targets").stdout
    for name in ("onnxruntime", "openvino", "tensorrt", "litert-int8", "generic-qdq"):
        assert name in text
    assert "not run in TensorRT" in text


def test_targets_say_which_rules_a_file_keeps(folders):
    described = json.loads(run("targets", folders["onnxruntime"] / "model.onnx", "--json").stdout)
    assert described["onnxruntime"]["broken_rules"] == []
    assert any("zero-points are zero" in rule for rule in described["tensorrt"]["broken_rules"])
    assert "keeps all rules" in run("targets", folders["onnxruntime"] / "model.onnx").stdout


def test_verify_finds_no_byte_that_differs(folders):
    text = run("verify", folders["onnxruntime"], "--sequences", 1, "--frames", 8).stdout
    assert "0 of " in text
    assert "QLinearConv" in text
    arguments = ("verify", folders["onnxruntime"], "--sequences", 1, "--frames", 8, "--json")
    found = json.loads(run(*arguments).stdout)
    assert found["differing"] == 0
    assert sum(tensor["values"] for tensor in found["tensors"]) > 100_000


def test_verify_says_that_a_float_file_has_nothing_to_verify(folders):
    text = run("verify", folders["onnxruntime"] / "float.onnx", "--sequences", 1, "--frames", 8).stdout
    assert "nothing to verify: no layer of the file computes in integers" in text
    assert "same integers" not in text


@pytest.mark.parametrize("command", ["verify", "bench"])
@pytest.mark.parametrize("frames", [10**13, 10**21])
def test_more_frames_than_memory_are_not_called_damage_of_the_file(command, frames, folders):
    done = run(command, folders["onnxruntime"] / "model.onnx", "--frames", frames, status=2)
    assert re.match(r"qgait-ptq: there is not enough memory for this \(.*\); ask for less\n$", done.stderr)


def test_bench_compares_files_in_turn(folders):
    folder = folders["onnxruntime"]
    arguments = ("bench", folder / "model.onnx", "--against", folder / "float.onnx", "--rounds", 2)
    measured = json.loads(run(*arguments, "--frames", 8, "--json").stdout)
    first, second = measured["files"]
    assert first["timing"]["faster"] == [1, 1, 1]
    assert second["timing"]["cpu_ms"][0] > 0
    assert second["megabytes"] < first["megabytes"]
    macs = macs_of_sequence(qg.Embedder(folder / "model.onnx").metadata["model"], 8)
    assert second["macs_per_second"] * second["timing"]["cpu_ms"][0] / 1000 == pytest.approx(macs)


@pytest.mark.slow  # the same measurement again
def test_bench_prints_a_table(folders):
    folder = folders["onnxruntime"]
    arguments = ("bench", folder / "model.onnx", "--against", folder / "float.onnx", "--rounds", 2)
    assert "times faster" in run(*arguments, "--frames", 8).stdout


def test_embed_writes_all_sequences_and_goes_on_where_it_was(folders, walkers_root, tmp_path):
    out = tmp_path / "embeddings.npz"
    run("embed", folders["onnxruntime"] / "model.onnx", walkers_root, "--out", out, "--jobs", 2)
    embeddings, names = read_embeddings(out)
    assert embeddings.shape == (len(names), 16, 16)
    embedder = qg.Embedder(folders["onnxruntime"] / "model.onnx", threads=1)
    with np.load(next(walkers_root.joinpath(names[0]).glob("*.npz"))) as archive:
        np.testing.assert_array_equal(embeddings[0], embedder(archive[archive.files[0]]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["embeddings.npz"]


def test_embed_leaves_nothing_behind_where_the_first_sequence_is_wrong(folders, tmp_path):
    view = tmp_path / "data" / "001" / "nm-01" / "090"
    view.mkdir(parents=True)
    np.save(view / "090.npy", np.ones((5, 64, 30), np.uint8))
    out = tmp_path / "out.npz"
    done = run("embed", folders["onnxruntime"] / "model.onnx", tmp_path / "data", "--out", out, status=2)
    assert "001/nm-01/090" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("verify", "nowhere"), "no such file"),
        (("verify", "README.md"), "cannot load the model"),
        (("bench", "nowhere.onnx"), "no such file"),
        (("bench", "README.md"), "cannot load the model"),
        (("targets", "README.md"), "not an ONNX file"),
        (("embed", "nowhere.onnx", "."), "no such file"),
    ],
)
def test_wrong_files_are_one_line_and_exit_code_two(arguments, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = run(*arguments, status=2)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_file_of_another_target_is_refused_by_each_command(folders, walkers_root, tmp_path):
    model = folders["openvino"] / "model.onnx"
    for arguments in (("verify", model), ("embed", model, walkers_root, "--out", tmp_path / "e.npz")):
        assert "the file is for the target openvino" in run(*arguments, status=2).stderr


def test_evaluate_takes_the_runtime_that_a_file_is_for(folders, walkers_root):
    for target in ("onnxruntime", "openvino"):
        found = json.loads(
            run("evaluate", folders[target] / "model.onnx", "--data", walkers_root, "--json").stdout
        )
        report = json.loads((folders[target] / "report.json").read_text())
        assert found["mAP"] > 30
        assert report["target"] == {"name": target, "runtimes": [target]}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_deployment_example_names_the_person(folders, walkers_root, runtime):
    probe = sorted(walkers_root.glob("*/nm-05/*/*.npz"))[0]
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "examples" / f"deploy_{runtime}.py",
            folders[runtime] / "model.onnx",
            walkers_root,
            probe,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert first.startswith(probe.parents[2].name)
    assert "distance 0.0" in first
    assert len((ROOT / "examples" / f"deploy_{runtime}.py").read_text().splitlines()) <= 40


def test_the_torch_file_loads_without_the_package(folders, walkers):
    """In a process that cannot import it, and at other sizes than it was exported with."""
    silhouettes = walkers[0][0]
    code = (
        "import sys; sys.modules['qgait_ptq'] = None\n"
        "import numpy as np, torch\n"
        "import torch.ao.quantization.fx._decomposed\n"
        f"program = torch.export.load({str(folders['onnxruntime'] / 'model.pt2')!r})\n"
        "operators = {str(node.target) for node in program.graph.nodes}\n"
        "assert any('quantized_decomposed.quantize_per_tensor' in name for name in operators)\n"
        "assert any(v.dtype == torch.int8 for v in program.state_dict.values())\n"
        "x = torch.from_numpy(np.load(sys.argv[1])).float()[None] / 255\n"
        "np.save(sys.argv[1], program.module()(x).detach().numpy())\n"
    )
    exchange = folders["onnxruntime"] / "exchange.npy"
    np.save(exchange, silhouettes)
    done = subprocess.run(
        [sys.executable, "-c", code, exchange], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    given = np.load(exchange)[0].T
    expected = qg.Embedder(folders["onnxruntime"] / "model.onnx")(silhouettes)
    cosine = (given * expected).sum() / np.linalg.norm(given) / np.linalg.norm(expected)
    assert cosine > 0.999

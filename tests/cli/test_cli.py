"""The command line as a user types it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.cli.forks import COMMAND, run_forked
from tests.conftest import SHALLOW, make_gaitbase

SMALL = [
    "--model",
    "qgait_ptq.gait.zoo:GaitBase",
    "--model-argument",
    "channels=[8,16]",
    "--model-argument",
    "strides=[1,2]",
    "--model-argument",
    "stem_kernel=5",
    "--model-argument",
    "stem_stride=2",
    "--model-argument",
    "embedding=16",
]


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return run_forked(list(map(str, arguments)), cwd, {**os.environ, "COLUMNS": "100"})


def run_command(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as it is installed."""
    environment = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


def assert_refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    """One clear line, exit code 2, no traceback."""
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "weights.pt"
    torch.save(make_gaitbase(**SHALLOW).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def quantized(checkpoint, walkers_root, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "out"
    few = ("--calibration-sequences", 12)
    done = run_command(
        "quantize", checkpoint, *SMALL, "--bits", 4, *few, "--data", walkers_root, "--out", out
    )
    assert done.returncode == 0, done.stderr
    return out, done


def test_inspect_lists_the_layers_of_a_result_worst_first(quantized):
    out, _ = quantized
    done = run("inspect", "--against", out)
    assert done.returncode == 0, done.stderr
    assert "24 test sequences" in " ".join(done.stdout.split())
    assert "distances, %" in " ".join(done.stdout.split())


@pytest.mark.slow  # the same comparison again
def test_inspect_writes_the_layers_of_a_result_as_json(quantized):
    out, _ = quantized
    listed = json.loads(run("inspect", "--against", out, "--json").stdout)
    assert listed[0]["sqnr_db"] == min(layer["sqnr_db"] for layer in listed)
    assert {layer["name"] for layer in listed} == {
        layer["name"] for layer in json.loads((out / "report.json").read_text())["layers"]
    }


def test_options_of_data_without_data_are_refused(checkpoint, tmp_path):
    quantize = ("quantize", checkpoint, *SMALL, "--out", tmp_path / "out")
    assert_refused(run(*quantize, "--raw"), "name its root folder with --data")
    assert_refused(
        run(*quantize, "--modality", 1), "--modality 1 needs a data set; name its root folder with --data"
    )
    assert not (tmp_path / "out").exists()


def test_inspect_refuses_a_folder_that_is_no_result(quantized, tmp_path):
    out, _ = quantized
    assert_refused(run("inspect", "--against", tmp_path), "recipe")
    shutil.copy(out / "recipe.yaml", tmp_path)
    assert_refused(run("inspect", "--against", tmp_path), "not a result folder of quantize")
    (tmp_path / "report.json").write_text("[")
    assert_refused(run("inspect", "--against", tmp_path), "damaged")


def test_quantize_writes_four_files_and_prints_the_table(quantized):
    out, done = quantized
    assert sorted(file.name for file in out.iterdir()) == [
        "model.onnx",
        "recipe.yaml",
        "report.html",
        "report.json",
    ]
    for text in ("rank-1 nm", "rank-1 mean", "mAP", "W4A4", "ONNX file", "size, MB"):
        assert text in done.stdout
    assert done.stderr == ""
    report = json.loads((out / "report.json").read_text())
    assert report["config"]["weight_bits"] == report["config"]["activation_bits"] == 4
    assert report["parity"]["cosine_min"] > 0.999


def test_the_recipe_repeats_the_run_from_another_folder(quantized, tmp_path):
    out, _ = quantized
    done = run("quantize", "--recipe", out / "recipe.yaml", "--out", "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()


@pytest.mark.slow
def test_options_override_the_recipe(quantized, tmp_path):
    out, _ = quantized
    done = run("quantize", "--recipe", out / "recipe.yaml", "--bits", 8, "--out", tmp_path / "eight")
    assert done.returncode == 0, done.stderr
    recipe = yaml.safe_load((tmp_path / "eight" / "recipe.yaml").read_text())
    assert recipe["quantization"]["weight_bits"] == 8


def test_a_recipe_of_another_file_is_refused(quantized, checkpoint, tmp_path):
    out, _ = quantized
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    recipe["model"]["sha256"] = "0" * 64
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert_refused(
        run("quantize", "--recipe", tmp_path / "r.yaml", "--out", tmp_path / "o"),
        "but the recipe was written for",
    )


def test_evaluate_agrees_with_the_report(quantized, walkers_root):
    out, _ = quantized
    done = run("evaluate", out / "model.onnx", "--data", walkers_root, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert json.loads(done.stdout)["rank1"] == report["accuracy"]["onnx"]["rank1"]


def test_evaluate_takes_float_networks(quantized, checkpoint, walkers_root):
    out, _ = quantized
    done = run("evaluate", checkpoint, *SMALL, "--data", walkers_root, "--json")
    report = json.loads((out / "report.json").read_text())
    assert json.loads(done.stdout)["mAP"] == pytest.approx(report["accuracy"]["float"]["mAP"], abs=0.5)


def test_inspect_lists_every_layer_with_its_widths(checkpoint):
    done = run("inspect", checkpoint, *SMALL, "--bits", 4, "--json")
    layers = {layer["name"]: layer for layer in json.loads(done.stdout)}
    assert len(layers) == 7
    assert (layers["stem.0"]["weight_bits"], layers["blocks.0.conv1"]["weight_bits"]) == (8, 4)
    table = run("inspect", checkpoint, *SMALL, "--bits", 4).stdout
    for text in ("part_linear", "blocks.1.conv2", "mean in float", "GMAC", "frames free"):
        assert text in table


def test_walkers_writes_the_layout_and_a_picture(tmp_path):
    done = run(
        "walkers", tmp_path / "w", "--identities", 2, "--split", "test", "--views-per-trial", 1,
        "--sheet", tmp_path / "sheet.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "20 sequences of 2 walkers" in done.stdout
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["", "quantize", "evaluate", "inspect", "walkers"])
def test_help_has_an_example(command):
    done = run(*filter(None, [command]), "--help")
    assert done.returncode == 0
    assert "qgait-ptq " in done.stdout.split("Example", 1)[1]


def test_version():
    assert "qgait-ptq, version" in run_command("--version").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("quantize nothing.pt", "nothing.pt: the model cannot be read"),
        ("quantize text.pt", "text.pt: not a model"),
        ("quantize weights.pt", "--factory module:factory"),
        ("quantize pickled.pt", "--trust-code"),
        ("quantize weights.pt --model qgait_ptq.gait.zoo:gaitset_small", "do not fit the network"),
        ("inspect weights.pt --channels -1", "--channels"),
        ("inspect weights.pt --height 0", "--height"),
        ("quantize weights.pt --bits 1", "1 is not in the range 2<=x<=8"),
        ("quantize weights.pt --bits 9", "9 is not in the range 2<=x<=8"),
        ("quantize weights.pt --bits four", "not a valid integer"),
        ("quantize", "path"),
        ("quantize weights.pt --out text.pt/out", "cannot be written"),
        ("quantize weights.pt --protocol lfw SMALL", "'lfw' is not one of 'casia-b'"),
        ("quantize weights.pt --target abacus SMALL", "'abacus' is not one of 'generic-qdq'"),
        ("quantize weights.pt --data nowhere SMALL", "nowhere: the folder does not exist"),
        ("quantize weights.pt --partition p.json SMALL", "--data"),
        ("quantize nan.pt SMALL", "NaN"),
        ("quantize weights.pt --model-argument channels SMALL", "NAME=VALUE"),
        ("quantize weights.pt --adapter nonsense SMALL", "module:name"),
        ("quantize weights.pt --adapter json:loads SMALL", "the adapter json:loads cannot make"),
        ("quantize --recipe nothing.yaml", "the recipe cannot be read"),
        ("evaluate text.onnx", "not an ONNX file"),
        ("evaluate TEXT.ONNX", "not an ONNX file"),
        ("walkers text.pt/w --identities 1", "cannot be written"),
        ("walkers w --identities 0", "0 is not in the range"),
        ("conjure", "No such command"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(arguments, message, checkpoint, tmp_path):
    shutil.copy(checkpoint, tmp_path / "weights.pt")
    torch.save(make_gaitbase(**SHALLOW), tmp_path / "pickled.pt")
    weights = make_gaitbase(**SHALLOW).state_dict()
    weights["part_linear.weight"][0, 0, 0] = float("nan")
    torch.save(weights, tmp_path / "nan.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name in ("text.onnx", "TEXT.ONNX"):
        (tmp_path / name).write_text("hello")
    before = sorted(tmp_path.iterdir())
    words = [w for word in arguments.split() for w in (SMALL if word == "SMALL" else [word])]
    assert_refused(run(*words, cwd=tmp_path), message)
    assert sorted(tmp_path.iterdir()) == before


class Bomb:
    def __reduce__(self):
        return (open, ("victim", "w"))


WALK = np.full((5, 64, 64), 255, np.uint8)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (Bomb(), "arrays do not need"),
        (WALK[:0], "an empty sequence"),
        (WALK[:, :32], "32×64"),
        (WALK.astype(np.float32), "float32; store them as uint8"),
    ],
)
def test_bad_sequences_are_named_and_leave_nothing_behind(array, message, checkpoint, walkers_root, tmp_path):
    shutil.copytree(walkers_root, tmp_path / "data")
    view = next((tmp_path / "data" / "00000" / "nm-01").iterdir())
    shutil.rmtree(view)
    view.mkdir()
    (view / "bad.pkl").write_bytes(pickle.dumps(array))
    done = run("quantize", checkpoint, *SMALL, "--data", "data", "--out", "out", cwd=tmp_path)
    assert_refused(done, message)
    assert "00000/nm-01" in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        ({"TRAIN_SET": ["00000"], "TEST_SET": ["20000"]}, "one identity only"),
        ({"TRAIN_SET": [], "TEST_SET": ["20000"]}, "TRAIN_SET is empty"),
        ({"TRAIN_SET": ["00000"], "TEST_SET": []}, "TEST_SET is empty"),
        ({"TRAIN_SET": ["00000"], "TEST_SET": ["20000", "99999"]}, "99999"),
        ({"TRAIN": []}, "not a partition"),
    ],
)
def test_bad_partitions_are_refused(partition, message, checkpoint, walkers_root, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(partition))
    done = run(
        "quantize", checkpoint, *SMALL, "--data", walkers_root, "--partition", "p.json", "--out", "out",
        cwd=tmp_path,
    )  # fmt: skip
    assert_refused(done, message)
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.json"]


def test_probes_without_a_match_in_the_gallery_are_refused(checkpoint, walkers_root, tmp_path):
    shutil.copytree(walkers_root, tmp_path / "data")
    for subject, kept in (("20000", "nm-01"), ("20001", "nm-05"), ("20002", "nm-02")):
        for condition in (tmp_path / "data" / subject).iterdir():
            if condition.name != kept:
                shutil.rmtree(condition)
    done = run("quantize", checkpoint, *SMALL, "--data", "data", "--out", "out", cwd=tmp_path)
    assert_refused(done, "has a gallery sequence")


def test_our_own_faults_exit_with_one_and_point_to_debug(checkpoint, tmp_path):
    """A factory whose network breaks inside the toolkit's own code."""
    (tmp_path / "broken.py").write_text(
        "import torch\n"
        "class Broken(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.register_buffer('a', torch.zeros(1))\n"
        "    def named_parameters(self, *a, **k):\n"
        "        raise RuntimeError('boom')\n"
        "def make():\n"
        "    return Broken()\n"
    )
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    done = run("inspect", "w.pt", "--model", "broken:make", cwd=tmp_path)
    assert done.returncode == 1
    assert "RuntimeError: boom" in done.stderr
    assert "--debug" in done.stderr
    assert "Traceback" not in done.stderr

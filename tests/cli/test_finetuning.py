"""Fine-tuning from the command line, killed and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from qgait_ptq.cli.recipe import build_recipe
from qgait_ptq.gait.walkers.population import Split, split_identities
from qgait_ptq.gait.walkers.rendering import write_walkers
from tests.cli.test_cli import COMMAND, SMALL, assert_refused, run
from tests.conftest import SHALLOW, make_gaitbase

RECIPE = {
    "quantization": {
        "weight_bits": 3,
        "calibration_sequences": 24,
        "minimum_agreement": -1,
        "idc": {"steps": 4, "frames": 6, "identities": 4},
        "finetune": {"block_steps": 20, "steps": 12},
    }
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Ten walkers to calibrate with, two to test."""
    folder = tmp_path_factory.mktemp("people")
    write_walkers(
        folder, Split.TRAIN, split_identities(Split.TRAIN, 10), views_per_trial=1, array_format="npz"
    )
    write_walkers(folder, Split.TEST, split_identities(Split.TEST, 2), views_per_trial=2, array_format="npz")
    torch.save(make_gaitbase(**SHALLOW).state_dict(), folder / "weights.pt")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


def arguments(root: Path, out: Path) -> list[str]:
    words = ["quantize", root / "weights.pt", *SMALL, "--recipe", root / "recipe.yaml"]
    return [str(word) for word in (*words, "--data", root, "--finetune", "--out", out)]


@pytest.mark.slow
def test_a_killed_fine_tuning_is_resumed_to_the_same_file(root, tmp_path):
    whole = run(*arguments(root, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    assert not (tmp_path / "whole.finetuning").exists()
    assert "held-out identities" in whole.stdout
    killed = subprocess.Popen(
        [COMMAND, *arguments(root, tmp_path / "out")],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    states = tmp_path / "out.finetuning"
    deadline = time.monotonic() + 300
    while not list(states.glob("*.pt")) and time.monotonic() < deadline and killed.poll() is None:
        time.sleep(0.05)
    time.sleep(1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(states.glob("*.pt")), "it was over before it could be killed"
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    resumed = run(*arguments(root, tmp_path / "out"), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    files = [tmp_path / name / "model.onnx" for name in ("whole", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not states.exists()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["config"]["finetune"]["enabled"] is True


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_gives_the_same_file(root, tmp_path):
    """Whatever was computing then: the calibration, a training step, the writing of a state."""
    long = {**RECIPE["quantization"], "finetune": {"block_steps": 0, "steps": 1500, "clips": 2, "frames": 4}}
    recipe = tmp_path / "long.yaml"
    recipe.write_text(yaml.safe_dump({"quantization": long}))

    def words(out):
        return [*arguments(root, tmp_path / out), "--recipe", str(recipe)]

    assert run(*words("whole")).returncode == 0
    states, draw, moments = tmp_path / "out.finetuning", np.random.default_rng(0), []
    while len(moments) < 10:
        resume = ["--resume"] if states.exists() else []
        running = subprocess.Popen(
            [COMMAND, *words("out"), *resume],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        late = len(moments) % 2 == 1
        if late:  # while it trains, however long the calibration takes
            before = newest(states)
            while newest(states) <= before and running.poll() is None:
                time.sleep(0.05)
        time.sleep(draw.uniform(0, 3) if late else draw.uniform(3, 15))
        if running.poll() is not None:  # a fast machine ended it before the moment came: begin anew
            assert running.returncode == 0
            shutil.rmtree(tmp_path / "out")
            continue
        running.send_signal(signal.SIGKILL)
        running.wait()
        moments += [len(list(states.glob("*.pt")))]
    assert any(moments), "no moment was late enough for a saved state"
    assert run(*words("out"), "--resume").returncode == 0
    files = [tmp_path / name / "model.onnx" for name in ("whole", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()


def newest(folder: Path) -> float:
    """The time of the last state that was saved."""
    return max((path.stat().st_mtime for path in folder.glob("*.pt")), default=0.0)


def test_states_of_other_settings_are_refused(root, tmp_path):
    folder = tmp_path / "out.finetuning"
    folder.mkdir()
    torch.save({"fingerprint": "of another run", "state": {}}, folder / "blocks.pt")
    fast = {
        "rounding": "nearest",
        "bias_correction": False,
        "equalization": "none",
        "idc": {"enabled": False},
    }
    recipe = tmp_path / "fast.yaml"  # the stages before fine-tuning take longest
    recipe.write_text(yaml.safe_dump({"quantization": RECIPE["quantization"] | fast}))
    words = (*arguments(root, tmp_path / "out"), "--recipe", recipe, "--resume")
    assert_refused(run(*words), "run without --resume")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"idc": {"steps": 0}}, "idc.steps"),
        ({"idc": {"held_out": 1.5}}, "idc.held_out"),
        ({"idc": {"lambda": 1}}, "idc.lambda"),
        ({"finetune": {"granularity": "network"}}, "finetune.granularity"),
        ({"finetune": {"temperature_start": -1}}, "finetune.temperature_start"),
        ({"rounding": "stochastic"}, "rounding"),
        ({"equalization": True}, "equalization"),
        ({"refined_ranges": True, "rounding": "gptq"}, "refined_ranges"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_their_name(root, tmp_path, section, message):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump({"quantization": section}))
    done = run("quantize", root / "weights.pt", *SMALL, "--recipe", recipe, "--out", tmp_path / "o")
    assert_refused(done, message)


def test_idc_that_is_asked_for_and_cannot_be_is_refused(root, tmp_path):
    (tmp_path / "few.json").write_text(
        json.dumps(
            {
                "TRAIN_SET": sorted(p.name for p in root.iterdir() if p.is_dir())[:3],
                "TEST_SET": sorted(p.name for p in root.iterdir() if p.is_dir())[-2:],
            }
        )
    )
    words = ["quantize", root / "weights.pt", *SMALL, "--data", root, "--partition", tmp_path / "few.json"]
    assert_refused(run(*words, "--idc", "--out", tmp_path / "o"), "3 identities with two sequences or more")


@pytest.mark.parametrize(
    ("words", "idc", "finetune"),
    [
        ({}, None, False),
        ({"effort": "quick"}, False, False),
        ({"effort": "standard"}, None, False),
        ({"effort": "thorough"}, None, True),
        ({"effort": "thorough", "idc": False}, False, True),
        ({"effort": "quick", "finetune": True}, False, True),
    ],
)
def test_an_effort_turns_stages_on_and_a_switch_overrides_it(words, idc, finetune):
    quantization = build_recipe(Path("model.pt"), None, dict(words)).quantization
    assert (quantization.idc.enabled, quantization.finetune.enabled) == (idc, finetune)


def test_an_effort_keeps_the_other_settings_of_a_recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"quantization": {"finetune": {"steps": 7, "enabled": False}}}))
    finetune = build_recipe(Path("model.pt"), path, {"effort": "thorough"}).quantization.finetune
    assert (finetune.enabled, finetune.steps) == (True, 7)


def test_sequences_without_labels_need_fine_tuning_and_a_data_set(root, tmp_path):
    words = ["quantize", root / "weights.pt", *SMALL, "--out", tmp_path / "o", "--unlabelled", root]
    assert_refused(run(*words, "--data", root), "--unlabelled is used by fine-tuning only; add --finetune")
    assert_refused(run(*words, "--finetune"), "--unlabelled needs a data set")
    words[-1] = tmp_path / "nothing"
    assert_refused(run(*words, "--data", root, "--finetune"), "nothing: no such folder of sequences")
    (tmp_path / "nothing").mkdir()
    assert_refused(run(*words, "--data", root, "--finetune"), "no sequence found")

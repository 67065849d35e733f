"""Whether two revisions behave alike: the same files, report values and exit codes, side by side.

    git worktree add ../before REVISION
    python tests/compare_revisions.py ../before .

Builds two small networks at three widths for two targets, and tries wrong inputs, with the code of each
folder. Prints what differs; exit code 1 if anything does. Times are not compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CODE = "from qgait_ptq.cli.main import run; run()"
NETWORKS = {
    "gaitbase": [
        "--model",
        "qgait_ptq.gait.zoo:GaitBase",
        *(
            f"--model-argument={a}"
            for a in (
                "channels=[8,8,16,16]",
                "strides=[1,2,1,1]",
                "stem_kernel=5",
                "stem_stride=2",
                "embedding=16",
            )
        ),
    ],
    "gaitset": [
        "--model",
        "qgait_ptq.gait.zoo:GaitSet",
        "--model-argument=channels=[4,8,8]",
        "--model-argument=embedding=16",
    ],
}
WIDTHS = {
    "W8A8": ["--bits", "8"],
    "W4A8": ["--weight-bits", "4", "--activation-bits", "8"],
    "W4A4": ["--bits", "4"],
}
TARGETS = ("onnxruntime", "openvino")
WRONG = {
    "no model": ["quantize", "nothing.pt"],
    "no data": ["quantize", "gaitbase.pt", *NETWORKS["gaitbase"], "--data", "nowhere"],
    "wrong network": ["quantize", "gaitset.pt", *NETWORKS["gaitbase"], "--data", "people"],
    "wrong width": ["quantize", "gaitbase.pt", "--bits", "9"],
    "wrong target": ["quantize", "gaitbase.pt", *NETWORKS["gaitbase"], "--target", "abacus"],
    "wrong range": ["quantize", "gaitbase.pt", "--weight-range", "wide"],
    "budget": [
        "quantize",
        "gaitbase.pt",
        *NETWORKS["gaitbase"],
        "--data",
        "people",
        "--budget",
        "size=0.001MB",
    ],
    "recipe": ["quantize", "--recipe", "nothing.yaml"],
    "submodule": [
        "quantize",
        "gaitbase.pt",
        *NETWORKS["gaitbase"],
        "--data",
        "people",
        "--capture-submodule",
        "nothing",
    ],
    "verify": ["verify", "gaitbase.pt"],
    "targets": ["targets", "gaitbase.pt"],
}
LEFT_OUT = ("seconds", "speed")  # of reports: they are times
MAKE = """
import sys, torch
from tests.conftest import make_gaitbase, make_gaitset
torch.save(make_gaitbase().state_dict(), "gaitbase.pt")
torch.save(make_gaitset().state_dict(), "gaitset.pt")
"""


def main(before: Path, after: Path) -> int:
    """Compare, and print what differs."""
    differing = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(after, ["walkers", "people", "--identities", "10", "--split", "calibration"], folder, check=True)
        run(after, ["walkers", "people", "--identities", "3", "--split", "test"], folder, check=True)
        execute(after, MAKE, [], folder).check_returncode()
        cases = {
            f"{network} {width} {target}": (
                [
                    "quantize",
                    f"{network}.pt",
                    *options,
                    *bits,
                    "--target",
                    target,
                    "--data",
                    "people",
                    "--calibration-sequences",
                    "24",
                    "--device",
                    "cpu",
                ]
            )
            for network, options in NETWORKS.items()
            for width, bits in WIDTHS.items()
            for target in TARGETS
        }
        for case, arguments in {**cases, **WRONG}.items():
            problems = compare(before, after, arguments, folder)
            differing += bool(problems)
            print(f"{case}: {'; '.join(problems) or 'the same'}", flush=True)
    return int(differing > 0)


def compare(before: Path, after: Path, arguments: list[str], folder: Path) -> list[str]:
    """Run a command with both revisions, and say what differs."""
    if arguments[0] == "quantize":
        arguments = [*arguments, "--out"]
    outs = [folder / "out-before", folder / "out-after"]
    done = [
        run(tree, [*arguments, str(out)] if arguments[0] == "quantize" else arguments, folder)
        for tree, out in zip((before, after), outs, strict=True)
    ]
    problems = []
    if done[0].returncode != done[1].returncode:
        problems.append(f"exit codes {done[0].returncode} and {done[1].returncode}")
    errors = [one.stderr.replace(str(out), "OUT") for one, out in zip(done, outs, strict=True)]
    if errors[0] != errors[1]:
        problems.append(f"{errors[0].strip()!r} and {errors[1].strip()!r}")
    if all((out / "report.json").exists() for out in outs):
        problems += compare_results(*outs)
    for out in outs:
        subprocess.run(["rm", "-rf", out], check=True)
    return problems


def compare_results(before: Path, after: Path) -> list[str]:
    """What differs between two results."""
    problems = []
    if (before / "model.onnx").read_bytes() != (after / "model.onnx").read_bytes():
        problems.append("model.onnx")
    one, other = (json.loads((folder / "report.json").read_text()) for folder in (before, after))
    keys = sorted((one.keys() | other.keys()) - set(LEFT_OUT))
    problems += [f"report: {key}" for key in keys if one.get(key) != other.get(key)]
    return problems


def run(
    tree: Path, arguments: list[str], folder: Path, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a command with the code of a folder."""
    done = execute(tree, CODE, arguments, folder)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def execute(tree: Path, code: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the code of a folder."""
    environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:3])))

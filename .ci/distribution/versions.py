"""Try versions of Python, torch and onnxruntime: a fresh environment and tests for each.

    python .ci/distribution/versions.py                     # all, some GB of downloads for each
    python .ci/distribution/versions.py --only 3.14 -- tests/pipeline tests/exporters

It prints the table of docs/installation.md. Interpreters are looked for on PATH and among those of pyenv; one
that is missing is named. Arguments after ``--`` are those of pytest; without them, the whole suite runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

CHECKOUT = Path(__file__).resolve().parents[2]
SHOWN = ("torch", "onnxruntime", "onnx", "numpy", "openvino")
ASK_VERSIONS = (
    "import json, sys; from importlib.metadata import version; import platform; "
    "print(json.dumps([platform.python_version(), *map(version, sys.argv[1:])]))"
)


@dataclass(frozen=True)
class Combination:
    """What one environment holds.

    Attributes:
        python: version of Python, such as ``3.12``.
        requirements: requirements beside the package; what they leave open is the newest.
    """

    python: str
    requirements: tuple[str, ...] = ()


# The oldest of all, the pinned ones on each Python, and the newest of all.
COMBINATIONS = (
    Combination("3.11", ("torch==2.11.0", "onnxruntime==1.24.1")),
    Combination("3.12", ("torch==2.13.0",)),
    Combination("3.13", ("torch==2.13.0",)),
    Combination("3.14", ("torch==2.13.0",)),
    Combination("3.13"),
)


def find_interpreter(version: str) -> str | None:
    """Return the path of an interpreter of a version, if there is one."""
    name = f"python{version}"
    for folder in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin")):
        if (folder / name).exists():
            return str(folder / name)
    return shutil.which(name)


def install(combination: Combination, interpreter: str, folder: Path) -> Path:
    """Return the interpreter of a new environment with the package and its tests' requirements."""
    subprocess.run([interpreter, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    environment = {**os.environ, "PIP_CONSTRAINT": "", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    wanted = ["-e", f"{CHECKOUT}[dev]", *combination.requirements]
    subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True, env=environment)
    return python


def try_one(combination: Combination, interpreter: str, tests: tuple[str, ...]) -> list[str]:
    """Install a combination, run its tests, and return a row of the table."""
    with tempfile.TemporaryDirectory(prefix="qgait-versions-") as folder:
        try:
            python = install(combination, interpreter, Path(folder))
        except subprocess.CalledProcessError as error:
            return [combination.python, *("–" for _ in SHOWN), f"not installed: exit code {error.returncode}"]
        asked = [str(python), "-c", ASK_VERSIONS, *SHOWN]
        versions: list[str] = json.loads(subprocess.run(asked, check=True, capture_output=True).stdout)
        run = subprocess.run(
            [str(python), "-m", "pytest", "-q", "-n", "auto", "--dist", "loadfile", *tests],
            cwd=CHECKOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
            stdout=subprocess.PIPE,
        )
        click.echo(run.stdout, err=True)
        result = (run.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
        return [*versions, result.partition(" in ")[0] if run.returncode == 0 else f"FAILED: {result}"]


@click.command()
@click.option("--only", multiple=True, help="Version of Python. Repeat for several.")
@click.argument("tests", nargs=-1)
def main(only: tuple[str, ...], tests: tuple[str, ...]) -> None:
    """Try all combinations; exit code 1 if one fails or an interpreter is missing."""
    rows, failed = [], False
    for combination in COMBINATIONS:
        if only and combination.python not in only:
            continue
        interpreter = find_interpreter(combination.python)
        row = (
            try_one(combination, interpreter, tests)
            if interpreter
            else [combination.python, *("–" for _ in SHOWN), "no interpreter found"]
        )
        failed |= "passed" not in row[-1] or "FAILED" in row[-1]
        rows.append(row)
        click.echo(" · ".join(row), err=True)
    click.echo(f"| Python | {' | '.join(SHOWN)} | tests |\n|{'---|' * (len(SHOWN) + 2)}")
    for row in rows:
        click.echo(f"| {' | '.join(row)} |")
    sys.exit(failed)


if __name__ == "__main__":
    main()

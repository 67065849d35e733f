"""Try versions of Python, torch and onnxruntime: a fresh environment and tests for each.

    python .ci/distribution/versions.py                     # all, some GB of downloads for each
    python .ci/distribution/versions.py --only 3.14 -- tests/pipeline tests/exporters

It prints a table in Markdown. Interpreters are looked for on PATH and among those of pyenv; the table names
those that are missing. Arguments after ``--`` are those of pytest; without them, the whole suite runs.
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
PYTHONS = sorted({combination.python for combination in COMBINATIONS})


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


def try_one(
    combination: Combination, interpreter: str | None, tests: tuple[str, ...]
) -> tuple[list[str], bool]:
    """Install a combination and run its tests.

    Returns:
        A row of the table, and whether all tests passed.
    """
    wanted = ", ".join(combination.requirements) or "newest"
    unknown = [combination.python, wanted, *"–" * (len(SHOWN) - 1)]
    if interpreter is None:
        return [*unknown, "no interpreter found"], False
    with tempfile.TemporaryDirectory(prefix="qgait-versions-") as folder:
        try:
            python = install(combination, interpreter, Path(folder))
        except subprocess.CalledProcessError as error:
            return [*unknown, f"not installed: exit code {error.returncode}"], False
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
    result = (run.stdout.strip().splitlines() or ["no output"])[-1].partition(" in ")[0]
    return [*versions, result], run.returncode == 0


@click.command()
@click.option("--only", multiple=True, type=click.Choice(PYTHONS), help="Version of Python; repeatable.")
@click.argument("tests", nargs=-1)
def main(only: tuple[str, ...], tests: tuple[str, ...]) -> None:
    """Try all combinations; exit code 1 if one fails or an interpreter is missing."""
    chosen = [combination for combination in COMBINATIONS if not only or combination.python in only]
    tried = [try_one(one, find_interpreter(one.python), tests) for one in chosen]
    click.echo(f"| Python | {' | '.join(SHOWN)} | tests |\n|{'---|' * (len(SHOWN) + 2)}")
    for row, _ in tried:
        click.echo(f"| {' | '.join(row)} |")
    sys.exit(not all(passed for _, passed in tried))


if __name__ == "__main__":
    main()

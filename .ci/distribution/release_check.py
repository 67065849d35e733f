"""Build what is released, install each file in an empty environment outside the checkout, and use it there.

    python .ci/distribution/release_check.py [FOLDER]

FOLDER receives the wheels and sdists (default: dist). Needs the package `build`, and a package index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from runtime_sources import COPY, ROOT
from runtime_sources import main as write_runtime_sources

LARGE = ("torch", "click", "rich", "onnx", "pydantic", "matplotlib", "jinja2", "yaml")
EMBEDDING = """
import sys
from pathlib import Path
import numpy as np
from {package} import Embedder
walk = (np.random.default_rng(0).random((40, 64, 44)) < 0.3).astype(np.uint8)
embedder = Embedder("{model}")
assert not [name for name in {large} if name in sys.modules]
np.save("{out}", embedder(walk))
import {package}
assert not Path({package}.__file__).is_relative_to("{root}")
print(embedder, "gives", np.load("{out}").shape)
"""


class Environment:
    """An empty virtual environment in a folder of its own, which is the working folder of what runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run a program of the environment. Its output is shown."""
        shown = (str(argument).strip().partition("\n")[0] for argument in arguments)
        print(f"[{self.folder.name}] {program}", *shown, flush=True)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [self.folder / "venv" / "bin" / program, *arguments]
        subprocess.run(command, cwd=self.folder, env=environment, check=True)

    def install(self, *requirements: str | Path) -> None:
        """Install packages with pip, and check that their requirements are met."""
        self.run("pip", "install", "--quiet", "-c", ROOT / "constraints.txt", *requirements)
        self.run("pip", "check")

    def embed(self, package: str, model: Path) -> bytes:
        """Embed a sequence with a package that was installed, and return the embedding's bytes."""
        out = self.folder / f"{package}.npy"
        code = EMBEDDING.format(package=package, model=model, out=out, large=LARGE, root=ROOT)
        self.run("python", "-c", code)
        return out.read_bytes()


def build(folder: Path, scratch: Path) -> None:
    """Build a wheel and an sdist of both distributions. The wheels are made from the sdists."""
    write_runtime_sources(str(scratch / "runtime"))
    for source in (ROOT, scratch / "runtime"):
        subprocess.run([sys.executable, "-m", "build", "--outdir", folder, source], check=True)


def check_toolkit(environment: Environment, package: Path) -> Path:
    """Install the toolkit, quantize the shipped network, and return the path of the file."""
    environment.install(package)
    environment.run("qgait-ptq", "--help")
    network = environment.folder / "venv" / "share" / "qgait-ptq" / "gaitbase-small.pt"
    options = ("--bits", "8", "--effort", "quick", "--test-walkers", "2", "--out", "out")
    environment.run("qgait-ptq", "quantize", network, *options)
    return environment.folder / "out" / "model.onnx"


def check_runtime(environment: Environment, package: Path, model: Path, expected: bytes) -> None:
    """Install the runtime, and check that it needs nothing else and gives the same embedding."""
    environment.install(package)
    missing = "import importlib.util as u; assert not [n for n in {} if u.find_spec(n)]".format(
        (*LARGE, "qgait_ptq")
    )
    environment.run("python", "-c", missing)
    assert environment.embed(COPY, model) == expected, "the embedding differs from that of the toolkit"


def check_both(environment: Environment, package: Path, model: Path, expected: bytes) -> None:
    """Install the runtime beside the toolkit, and remove it: the toolkit still works."""
    environment.install(package)
    assert environment.embed(COPY, model) == expected, "the embedding differs from that of the toolkit"
    environment.run("pip", "uninstall", "--quiet", "--yes", "qgait-ptq-runtime")
    assert environment.embed("qgait_ptq", model) == expected, "the toolkit has changed"


def main(folder: Path) -> None:
    """Build and check everything; a failure ends the program with an error."""
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        build(folder, scratch)
        for kind in ("*.whl", "*.tar.gz"):
            toolkit, runtime = sorted(folder.glob(kind))
            label = kind.rpartition(".")[2]
            environment = Environment(scratch / f"toolkit-{label}")
            model = check_toolkit(environment, toolkit)
            expected = environment.embed("qgait_ptq", model)
            check_runtime(Environment(scratch / f"runtime-{label}"), runtime, model, expected)
            check_both(environment, runtime, model, expected)
            shutil.rmtree(environment.folder)
    print(f"all files in {folder} install and run")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "dist").resolve())

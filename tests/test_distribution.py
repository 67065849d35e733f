"""qgait-ptq-runtime: the same embeddings in a package of another name, with numpy and onnxruntime only."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest

import qgait_ptq as qg

ROOT = Path(__file__).parent.parent
# Everything that the toolkit needs beside numpy and onnxruntime, and the toolkit itself.
BLOCKED = (
    *(
        "torch",
        "click",
        "rich",
        "onnx",
        "onnxscript",
        "sympy",
        "pydantic",
        "yaml",
        "jinja2",
        "matplotlib",
        "PIL",
    ),
    *("safetensors", "openvino", "faiss", "qgait_ptq"),
)
BLOCKING = f"import sys\nsys.modules.update(dict.fromkeys({BLOCKED}))\nimport numpy as np\n"
WALK = "walk = (np.random.default_rng(0).random((40, 64, 44)) < 0.3).astype(np.uint8)\n"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runtime")
    subprocess.run([sys.executable, ROOT / ".ci" / "distribution" / "runtime_sources.py", folder], check=True)
    return folder


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a folder where the toolkit and everything that only it needs cannot be imported."""
    command = [sys.executable, "-c", BLOCKING + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_embeddings_are_those_of_the_toolkit_to_the_bit(sources, eight_bit_file, tmp_path):
    code = (
        f"{WALK}from qgait_ptq_runtime import Embedder\nembedder = Embedder({str(eight_bit_file)!r})\n"
        f"np.save({str(tmp_path / 'embedding.npy')!r}, embedder(walk))\nassert not embedder.streams"
    )
    done = run(sources, code)
    assert done.returncode == 0, done.stderr
    names: dict[str, np.ndarray] = {"np": np}
    exec(WALK, names)
    embedder = qg.Embedder(eight_bit_file)
    assert embedder.streams  # here, where onnx is installed, the sequence is computed in chunks
    assert np.load(tmp_path / "embedding.npy").tobytes() == embedder(names["walk"]).tobytes()


def test_a_file_that_proves_nothing_is_refused_without_onnx(sources, eight_bit_file, tmp_path):
    model = onnx.load(eight_bit_file)
    (entry,) = (entry for entry in model.metadata_props if entry.key == "qgait_ptq")
    entry.value = entry.value.replace('"safe": true', '"safe": false')
    onnx.save(model, tmp_path / "unproven.onnx")
    done = run(sources, f"from qgait_ptq_runtime import Embedder\nEmbedder('{tmp_path}/unproven.onnx')")
    assert "ModelError" in done.stderr
    assert "needs onnx: pip install onnx" in done.stderr


def test_every_module_imports_from_its_own_package(sources):
    for file in sources.rglob("*.py"):
        assert not [
            line for line in file.read_text().splitlines() if "import " in line and "qgait_ptq." in line
        ]


def test_the_name_of_the_extra_in_an_error_exists(sources, eight_bit_file):
    code = f"from qgait_ptq_runtime import Embedder\nEmbedder({str(eight_bit_file)!r}, runtime='openvino')"
    assert "pip install 'qgait-ptq-runtime[openvino]'" in run(sources, code).stderr
    assert "openvino" in project(sources / "pyproject.toml")["optional-dependencies"]


def test_version_and_requirements_are_those_of_the_toolkit(sources):
    toolkit, runtime = project(ROOT / "pyproject.toml"), project(sources / "pyproject.toml")
    assert runtime["version"] == toolkit["version"]
    assert set(runtime["dependencies"]) < set(toolkit["dependencies"])
    assert len(runtime["dependencies"]) == 2


def project(path: Path) -> dict:
    return tomllib.loads(path.read_text())["project"]

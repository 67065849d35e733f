"""The package as it is installed."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import qgait_ptq

MODULES = sorted(m.name for m in pkgutil.walk_packages(qgait_ptq.__path__, "qgait_ptq."))
ROOT = Path(__file__).parent.parent
# What extras bring; the package must be importable where none of it is installed.
OPTIONAL = ("openvino", "faiss", "scipy", "playwright", "pytest", "hypothesis", "mypy")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_every_module_imports_with_the_base_dependencies_only_and_prints_nothing():
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in OPTIONAL)
    imports = "".join(f"importlib.import_module({name!r})\n" for name in MODULES)
    done = run_python(f"import importlib, sys\n{blocked}{imports}")
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "")
    assert len(MODULES) > 40


def test_embedding_needs_no_torch():
    done = run_python(
        "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None\n"
        "import qgait_ptq; qgait_ptq.Embedder"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_dependencies_are_the_agreed_ones():
    base = {Requirement(r).name.lower() for r in requires("qgait-ptq") if "extra ==" not in r}
    assert base == {
        "sympy",
        "torch",
        "numpy",
        "click",
        "rich",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "pydantic",
        "pyyaml",
        "jinja2",
        "matplotlib",
        "pillow",
        "safetensors",
    }


def test_the_changelog_knows_the_version():
    assert f"[{version('qgait-ptq')}]" in (ROOT / "CHANGELOG.md").read_text()

"""The layout of the package: imports point one way, and the root holds little."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qgait_ptq

ROOT = Path(qgait_ptq.__file__).parent
# A package imports from itself and from those before it.
ORDER = (
    "errors",
    "system",
    "config",
    "quantizer",
    "onnx_graph",
    "graph",
    "gait",
    "targets",
    "capture",
    "placement",
    "reference",
    "exporters",
    "runtime",
    "verification",
    "evaluation",
    "stages",
    "calibration",
    "mixed_precision",
    "report",
    "pipeline",
    "cli",
)
WITHOUT_TORCH = (
    "onnx_graph.view",
    "reference.pair_sums",
    "reference.proof",
    "reference.additions",
    "runtime.embedder",
)


def modules():
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in sorted(ROOT.rglob("*.py"))
    }


def imports(file):
    """Modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert node.level == 0, f"{file}: a relative import"
        else:
            continue
        yield from (name.removeprefix("qgait_ptq.") for name in names if name.startswith("qgait_ptq."))


@pytest.mark.parametrize("name", [name for name in modules() if name not in ("__init__", "__main__")])
def test_a_module_imports_from_its_own_package_and_those_before(name):
    package = name.partition(".")[0]
    allowed = ORDER[: ORDER.index(package) + 1]
    upward = [found for found in imports(modules()[name]) if found.partition(".")[0] not in allowed]
    assert not upward


def test_every_package_has_a_place_in_the_order_and_says_what_it_is_for():
    assert {name.partition(".")[0] for name in modules()} - {"__init__", "__main__"} == set(ORDER)
    for name, file in modules().items():
        if file.name == "__init__.py":
            assert ast.get_docstring(ast.parse(file.read_text())), name


def test_the_root_holds_six_files_at_most():
    assert len(list(ROOT.glob("*.py"))) <= 6


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_what_deployment_and_proofs_need_imports_no_torch(name):
    code = f"import sys; sys.modules['torch'] = None; import qgait_ptq.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_module_imports_itself_in_a_circle():
    edges = {name: set(imports(file)) for name, file in modules().items()}
    known = set(edges)
    direct = {
        name: {found if found in known else found.rpartition(".")[0] for found in targets} & known
        for name, targets in edges.items()
    }
    done: set[str] = set()

    def visit(name, path):
        assert name not in path, " → ".join([*path, name])
        if name not in done:
            for found in direct[name] - {"__init__"}:
                visit(found, [*path, name])
            done.add(name)

    for name in direct:
        visit(name, [])

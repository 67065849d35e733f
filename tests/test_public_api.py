"""The public interface: the names in `__all__`. Examples and documentation use no others."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import qgait_ptq

ROOT = Path(__file__).parent.parent
PACKAGE = qgait_ptq.__name__
PYTHON_PAGE = ROOT / "docs" / "python.md"


def public_modules(module: ModuleType) -> dict[str, ModuleType]:
    """A module, and the modules among its public names."""
    found = {module.__name__: module}
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            found |= public_modules(value)
    return found


PUBLIC = public_modules(qgait_ptq)
NAMES = [(module, name) for module in PUBLIC for name in PUBLIC[module].__all__]


def code_in(tree: ast.AST) -> Iterator[ast.AST]:
    """A tree, and the programs that it holds as text, such as one for another process."""
    yield tree
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    for text in texts:
        if isinstance(text, str) and re.search(rf"^(from|import) {PACKAGE}\b", text, re.MULTILINE):
            yield ast.parse(text)


def chain(node: ast.expr) -> list[str]:
    """The names of ``a.b.c``; empty for other expressions."""
    if isinstance(node, ast.Name):
        return [node.id]
    before = chain(node.value) if isinstance(node, ast.Attribute) else []
    return [*before, node.attr] if before else []


def internal_names(code: str) -> list[str]:
    """Names of the package that code imports or reads, and that are not public."""
    found: list[str] = []
    for tree in code_in(ast.parse(code)):
        modules: dict[str, str] = {}  # local name -> public module
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.partition(".")[0] != PACKAGE:
                        continue
                    found += [] if alias.name in PUBLIC else [alias.name]
                    modules[alias.asname or PACKAGE] = alias.name if alias.asname else PACKAGE
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE:
                public = PUBLIC[node.module].__all__ if node.module in PUBLIC else ()
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    found += [] if alias.name in public else [name]
                    if name in PUBLIC:
                        modules[alias.asname or alias.name] = name
        for node in ast.walk(tree):
            first, *rest = (chain(node) if isinstance(node, ast.Attribute) else []) or [""]
            place = modules.get(first)
            for attribute in rest:
                if place not in PUBLIC:
                    break  # an attribute of a public class or function
                name = f"{place}.{attribute}"
                found += [] if attribute in PUBLIC[place].__all__ else [name]
                place = name
    return list(dict.fromkeys(found))


def private_names(code: str) -> list[str]:
    """Private names of others that code imports or reads, and attributes that it sets on other objects."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if is_private(alias.name)]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if is_private(name)]
        elif isinstance(node, ast.Attribute):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not is_own and (is_private(node.attr) or isinstance(node.ctx, ast.Store)):
                found.append(ast.unparse(node))
    return found


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.endswith("__") for part in name.split("."))


def blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if blocks(path)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_use_public_names_only(path):
    code = path.read_text()
    assert not internal_names(code)
    assert not private_names(code)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_documentation_uses_public_names_only(path):
    for code in blocks(path):
        assert not internal_names(code)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import qgait_ptq.exporters.onnx_file", "qgait_ptq.exporters.onnx_file"),
        ("from qgait_ptq.gait.metrics import rank_gallery", "qgait_ptq.gait.metrics.rank_gallery"),
        ("from qgait_ptq import exporters", "qgait_ptq.exporters"),
        ("from qgait_ptq.errors import first_line", "qgait_ptq.errors.first_line"),
        ("from qgait_ptq.gait import *", "qgait_ptq.gait.*"),
        ("import qgait_ptq as qg\nqg.gait.metrics", "qgait_ptq.gait.metrics"),
        ("import qgait_ptq.gait\nqgait_ptq.stages", "qgait_ptq.stages"),
        ("from qgait_ptq.gait import zoo as z\nz.gaitbase", "qgait_ptq.gait.zoo.gaitbase"),
        ('PROGRAM = """\nimport qgait_ptq.system.lazy\n"""', "qgait_ptq.system.lazy"),
        ("def f():\n    from qgait_ptq.cli.main import run", "qgait_ptq.cli.main.run"),
    ],
)
def test_internal_names_are_found(code, name):
    assert internal_names(code) == [name]


@pytest.mark.parametrize(
    "code",
    [
        "import qgait_ptq as qg\nqg.quantize.__doc__\nqg.gait.zoo.NETWORKS.items",
        "from qgait_ptq.gait import GaitDataset, zoo\nzoo.NETWORKS\nGaitDataset.from_pairs",
        "import torch\ntorch.gait",
    ],
)
def test_public_names_are_no_internal_names(code):
    assert internal_names(code) == []


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("import torch._inductor.config", "torch._inductor.config"),
        ("from torch.nn.modules.batchnorm import _BatchNorm", "torch.nn.modules.batchnorm._BatchNorm"),
        ("session._session", "session._session"),
        ("module.momentum = None", "module.momentum"),
        ("packed.width += 1", "packed.width"),
        ("a, b.bits = 1, 2", "b.bits"),
    ],
)
def test_private_names_and_attributes_that_are_set_are_found(code, name):
    assert private_names(code) == [name]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_a_public_name_exists_and_is_documented(module, name):
    value = getattr(PUBLIC[module], name)
    if isinstance(value, ModuleType) or inspect.isclass(value) or inspect.isroutine(value):
        assert inspect.getdoc(value)
        # A class without a docstring of its own must not pass with that of its base.
        assert value.__doc__


@pytest.mark.parametrize("module", PUBLIC)
def test_type_checkers_see_all_public_names(module):
    """A package that imports on first use imports the same names for type checkers."""
    tree = ast.parse(Path(str(PUBLIC[module].__file__)).read_text())
    branches = [node for node in tree.body if isinstance(node, ast.If)]
    if not branches:
        return  # all is defined or imported at once
    (branch,) = branches
    assert ast.unparse(branch.test) == "TYPE_CHECKING"
    seen = [alias.name for node in branch.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(seen) == sorted(PUBLIC[module].__all__)
    assert set(PUBLIC[module].__all__) <= set(dir(PUBLIC[module]))


@pytest.mark.parametrize("module", PUBLIC)
def test_a_public_module_refuses_other_names(module):
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = importlib.import_module(module).nothing


def test_importing_the_public_packages_imports_nothing_large():
    """Names are imported when they are first used. The zoo is made of networks, which need torch."""
    modules = [name for name in PUBLIC if name != "qgait_ptq.gait.zoo"]
    large = ("torch", "numpy", "onnx", "onnxruntime", "pydantic", "click", "rich")
    code = f"import sys, {', '.join(modules)}\nprint([name for name in {large} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_data_and_runtime_need_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from qgait_ptq import Embedder, GaitDataset\n"
        "from qgait_ptq.gait import PackedSilhouettes, read_partition, read_sequence\n"
        "from qgait_ptq.runtime import describe_processor, open_session, run_session"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_page_lists_every_public_name_of_every_public_package():
    rows = re.findall(r"^\| `(qgait_ptq[.\w]*)` \|.*\|(.*)\|$", PYTHON_PAGE.read_text(), re.MULTILINE)
    listed = {module: set(re.findall(r"`(\w+)`", names)) for module, names in rows}
    assert listed == {module: set(PUBLIC[module].__all__) for module in PUBLIC}

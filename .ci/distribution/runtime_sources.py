"""Write the sources of qgait-ptq-runtime: `Embedder` and the modules that it imports, without torch.

    python .ci/distribution/runtime_sources.py FOLDER
    python -m build FOLDER

The modules are copies of those of qgait_ptq in a package of another name, `qgait_ptq_runtime`. Both
distributions can therefore be installed together, and neither overwrites files of the other.
"""

from __future__ import annotations

import ast
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEMPLATES = Path(__file__).parent / "runtime"
PACKAGE, COPY = "qgait_ptq", "qgait_ptq_runtime"
FIRST = f"{PACKAGE}.runtime.embedder"
# Distributions with versions from pyproject.toml, by the extra that installs them; "" is the base.
NEEDED = {
    "": ("numpy", "onnxruntime"),
    "onnx": ("onnx",),
    "openvino": ("openvino", "onnx"),
    "faiss": ("faiss-cpu",),
    "png": ("pillow",),
}


def main(folder: str) -> None:
    """Write a source tree that `python -m build` makes a wheel and an sdist of."""
    target = Path(folder)
    shutil.rmtree(target / COPY, ignore_errors=True)
    for name, source in runtime_modules().items():
        path = target / COPY / source.relative_to(ROOT / PACKAGE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(copied_text(name, source))
    shutil.copy(TEMPLATES / "init.py", target / COPY / "__init__.py")
    (target / COPY / "py.typed").touch()
    shutil.copy(TEMPLATES / "README.md", target)
    shutil.copy(ROOT / "LICENSE", target)
    (target / "pyproject.toml").write_text(project_text())


def runtime_modules() -> dict[str, Path]:
    """Return the modules that `Embedder` imports, at once or later, with their packages."""
    known = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / PACKAGE).rglob("*.py")
    }
    found: dict[str, Path] = {}
    waiting = [FIRST]
    while waiting:
        name = waiting.pop()
        if name in found or name not in known:
            continue
        found[name] = known[name]
        if name != PACKAGE:
            waiting.append(name.rpartition(".")[0])
        if known[name].name != "__init__.py":  # the imports of packages are public names, for users only
            waiting += imported(ast.parse(known[name].read_text()))
    return found


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module imports anywhere. Some are modules, others are names in modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def copied_text(name: str, source: Path) -> str:
    """Return the text of a copy. Packages keep only their docstring: their public names are not all there."""
    text = source.read_text()
    if source.name == "__init__.py":
        return f'"""{ast.get_docstring(ast.parse(text))}"""\n'
    text = re.sub(rf"^(\s*(?:from|import) ){PACKAGE}\b", rf"\g<1>{COPY}", text, flags=re.MULTILINE)
    return text.replace("'qgait-ptq[", "'qgait-ptq-runtime[")  # the extra that an error names


def project_text() -> str:
    """Return pyproject.toml, with the version and the requirements of qgait-ptq."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [line for lines in project["optional-dependencies"].values() for line in lines]
    by_name = {re.split("[<>=]", line)[0]: line for line in (*project["dependencies"], *optional)}
    requirements = {extra: [by_name[name] for name in names] for extra, names in NEEDED.items()}
    return (
        (TEMPLATES / "pyproject.toml.in")
        .read_text()
        .format(
            version=project["version"],
            python=project["requires-python"],
            dependencies=requirements.pop(""),
            extras="\n".join(f"{extra} = {lines}" for extra, lines in requirements.items()),
        )
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])

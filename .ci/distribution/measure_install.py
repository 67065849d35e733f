"""Print what an installation downloads, and what imports cost, as the tables of docs/installation.md.

    python .ci/distribution/measure_install.py [DIST]

DIST holds the wheels from `make release-check` (default: dist). Run it in the environment of the toolkit.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from runtime_sources import ROOT

IMPORTS = ("pass", "import qgait_ptq", "from qgait_ptq import Embedder", "from qgait_ptq import quantize")
ROUNDS = 5
MEGABYTE = 1e6


def downloaded(wheel: Path) -> tuple[int, float]:
    """Return the number of packages that pip downloads for a wheel, with itself, and their size in MB."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "-d", folder]
        subprocess.run([*pip, "-c", ROOT / "constraints.txt", wheel], check=True)
        files = list(Path(folder).iterdir())
        return len(files), sum(file.stat().st_size for file in files) / MEGABYTE


def cost(code: str) -> tuple[float, float]:
    """Return the CPU time in seconds and the peak memory in MB of a new interpreter that runs code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = f"{code}\nimport resource\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", command], check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, int(done.stdout) * 1024 / MEGABYTE


def main(folder: Path) -> None:
    """Print both tables."""
    print(f"Python {sys.version.split()[0]}, {os.uname().machine}, best of {ROUNDS} runs\n")
    print("| distribution | packages | download, MB |\n|---|---:|---:|")
    for name in ("qgait_ptq", "qgait_ptq_runtime"):
        (wheel,) = folder.glob(f"{name}-*.whl")
        packages, size = downloaded(wheel)
        print(f"| `{name.replace('_', '-')}` | {packages} | {size:.0f} |")
    print("\n| program | CPU time, s | memory, MB |\n|---|---:|---:|")
    for code in IMPORTS:
        seconds, memory = min(cost(code) for _ in range(ROUNDS))
        print(f"| `{code}` | {seconds:.2f} | {memory:.0f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist")

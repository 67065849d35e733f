"""Starting real processes with torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start(*words: object, folder: Path, count: int = 2) -> subprocess.Popen[str]:
    """Start ``torchrun WORDS`` in a folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(temporary),
        "COLUMNS": "100",
    }
    return subprocess.Popen(
        [*command, *map(str, words)],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for the end of a run."""
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def torchrun(*words: object, folder: Path, count: int = 2) -> subprocess.CompletedProcess[str]:
    """Run ``torchrun WORDS`` in a folder."""
    return finish(start(*words, folder=folder, count=count))

"""A file in onnxruntime on another kind of processor, by QEMU's emulation of user programs.

Emulation answers which integers a processor computes, never how fast.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx

import qgait_ptq
from qgait_ptq.errors import ConfigError, ModelError
from qgait_ptq.system.workers import run_child
from qgait_ptq.verification.recording import Recording, Values, read_recording, write_task

AVX2, ARM64 = "avx2", "arm64"
PROCESSORS = (AVX2, ARM64)
ARM64_ROOT = "QGAIT_ARM64_ROOT"  # names the folder that tests/processors/make-arm64-root fills
OWN_LIBRARIES = {"LD_PRELOAD": ""}  # of this machine: an emulated program would load them, too


def record_elsewhere(
    processor: str, tasks: Sequence[tuple[onnx.ModelProto, Sequence[Values]]]
) -> list[Recording]:
    """Record files on an emulated processor, all in one process.

    Args:
        processor: ``avx2``, an x86-64 processor without VNNI, or ``arm64``.
        tasks: files, and batches of their inputs by name.

    Raises:
        ConfigError: this processor cannot be emulated here; says what is missing.
        ModelError: a file does not run there.
    """
    command, environment = emulator(processor)
    package = Path(qgait_ptq.__file__).parents[1]
    paths = [path for path in (environment.get("PYTHONPATH"), str(package)) if path]
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder) / str(index) for index in range(len(tasks))]
        for place, (model, feeds) in zip(folders, tasks, strict=True):
            write_task(place, model, feeds)
        done = run_child(
            [*command, "-m", "qgait_ptq.verification.recording", *map(str, folders)],
            capture_output=True,
            check=False,
            env=environment,
        )
        if done.returncode:
            detail = done.stderr.strip()[-300:]
            raise ModelError(f"emulated {processor}: onnxruntime does not run there ({detail})")
        return [read_recording(place) for place in folders]


def emulator(processor: str) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs Python on an emulated processor, and its environment.

    Raises:
        ConfigError: unknown processor, or what is missing here.
    """
    if processor == AVX2:
        if platform.machine() != "x86_64":
            raise ConfigError(f"emulating avx2 needs an x86-64 Python; this one is for {platform.machine()}")
        # QEMU's emulation has AVX2, but neither AVX-512 nor VNNI.
        return [_find("qemu-x86_64"), "-cpu", "max", sys.executable], dict(OWN_LIBRARIES)
    if processor == ARM64:
        root = Path(os.environ.get(ARM64_ROOT, Path.home() / ".cache" / "qgait_ptq" / "arm64-root"))
        python = next(iter(sorted(root.glob("usr/bin/python3.*"))), None)
        if python is None:
            raise ConfigError(
                f"emulating arm64 needs a folder of arm64 programs in {root}; "
                "'tests/processors/make-arm64-root' makes it (docs: Processors)"
            )
        command = [_find("qemu-aarch64"), "-L", str(root), "-cpu", "max,sve=off", str(python)]
        return command, {**OWN_LIBRARIES, "PYTHONPATH": str(root / "site")}
    raise ConfigError(f"no processor {processor!r} to emulate; there are {', '.join(PROCESSORS)}")


def _find(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise ConfigError(
            f"emulation needs {program}; it is in the package qemu-user (apt-get install qemu-user)"
        )
    return found

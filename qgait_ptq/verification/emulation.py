"""Running a file in onnxruntime on another kind of processor, in QEMU's user-mode emulation.

Emulation shows which integers a processor computes, but not its speed.
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
ARM64_ROOT = "QGAIT_ARM64_ROOT"  # variable with the folder that tests/processors/make-arm64-root fills
OWN_LIBRARIES = {"LD_PRELOAD": ""}  # an emulated program must not load libraries of this machine


def record_elsewhere(
    processor: str, tasks: Sequence[tuple[onnx.ModelProto, Sequence[Values]]]
) -> list[Recording]:
    """Record files on an emulated processor, in one process.

    Args:
        processor: ``avx2``, an x86-64 processor without VNNI, or ``arm64``.
        tasks: files, and batches of their inputs by name.

    Raises:
        ConfigError: the processor cannot be emulated on this machine; the text says what is missing.
        ModelError: onnxruntime fails on the emulated processor.
    """
    command, environment = emulator(processor)
    package = Path(qgait_ptq.__file__).parents[1]
    paths = [path for path in (environment.get("PYTHONPATH"), str(package)) if path]
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder) / str(index) for index in range(len(tasks))]
        for task_folder, (model, feeds) in zip(folders, tasks, strict=True):
            write_task(task_folder, model, feeds)
        done = run_child(
            [*command, "-m", "qgait_ptq.verification.recording", *map(str, folders)],
            capture_output=True,
            check=False,
            env=environment,
        )
        if done.returncode:
            detail = done.stderr.strip()[-300:]
            raise ModelError(f"onnxruntime failed on the emulated {processor} processor ({detail})")
        return [read_recording(task_folder) for task_folder in folders]


def emulator(processor: str) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs Python on an emulated processor, and its environment.

    Raises:
        ConfigError: the processor is unknown, or a program is missing; the text names it.
    """
    if processor == AVX2:
        if platform.machine() != "x86_64":
            raise ConfigError(
                f"emulating avx2 needs an x86-64 Python, but this one is for {platform.machine()}"
            )
        # QEMU's emulation has AVX2, but neither AVX-512 nor VNNI.
        return [_find("qemu-x86_64"), "-cpu", "max", sys.executable], dict(OWN_LIBRARIES)
    if processor == ARM64:
        root = Path(os.environ.get(ARM64_ROOT, Path.home() / ".cache" / "qgait_ptq" / "arm64-root"))
        python = next(iter(sorted(root.glob("usr/bin/python3.*"))), None)
        if python is None:
            raise ConfigError(
                f"{root}: emulating arm64 needs arm64 programs in this folder; create it with "
                "'tests/processors/make-arm64-root' (docs: Processors)"
            )
        command = [_find("qemu-aarch64"), "-L", str(root), "-cpu", "max,sve=off", str(python)]
        return command, {**OWN_LIBRARIES, "PYTHONPATH": str(root / "site")}
    raise ConfigError(f"unknown processor {processor!r}; choose {' or '.join(PROCESSORS)}")


def _find(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise ConfigError(
            f"emulation needs {program}; install the package qemu-user (apt-get install qemu-user)"
        )
    return path

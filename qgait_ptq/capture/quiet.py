"""Silence while torch's exporters work."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

import torch


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Hide warnings, log and output of torch's exporters, which a user cannot act on."""
    names = ("torch.export", "torch.onnx", "torch._export", "torch.fx", "onnxscript", "torch._dynamo")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        # On failure, torch.export prints the graph so far.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def without_stack_traces() -> Iterator[None]:
    """Let torch record no traceback for each node that it traces, which takes a quarter of an ONNX export.

    Graphs traced in this context do not know the lines of their operators.
    """
    config = torch.fx.config
    before = getattr(config, "do_not_emit_stack_traces", False)  # a version without it ignores it
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before

"""The networks that the evaluation runs, and how their calls share the cores."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from qgait_ptq.errors import ProcessorWarning
from qgait_ptq.gait.embedding import Embed
from qgait_ptq.pipeline.float_network import choose_float_network, embed_fitted
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import ONNXRUNTIME, Session
from qgait_ptq.stages.state import State
from qgait_ptq.system.processes import processes
from qgait_ptq.system.threads import share_cores


@dataclass(frozen=True)
class EvaluatedNetworks:
    """Networks to embed the test sequences with.

    Attributes:
        networks: ``float``, ``onnx`` and, if it is wanted, ``quantized``: each embeds a batch with the whole
            network.
        float_runtime: ``onnxruntime`` or ``torch``, see `FloatNetwork`.
        at_once: number of threads that may call them at once.
    """

    networks: Mapping[str, Embed]
    float_runtime: str
    at_once: int


def networks_to_evaluate(state: State) -> EvaluatedNetworks:
    """Return the networks that the evaluation runs.

    If onnxruntime runs all of them, several calls at once share the cores.
    """
    at_once, threads = _shares(state)
    reference = choose_float_network(state, threads)
    if reference.runtime != ONNXRUNTIME:  # torch has threads of its own
        at_once, threads = 1, None
    networks = _networks(state, reference.embed, _open_file(state, threads))
    on_device = {name: partial(_embed_on, state.device, run) for name, run in networks.items()}
    return EvaluatedNetworks(on_device, reference.runtime, at_once)


def _shares(state: State) -> tuple[int, int | None]:
    """Return the number of calls at once, and the threads of each; None for the runtime's default."""
    in_torch = state.submodule is not None or state.config.evaluate_simulation
    if in_torch or state.device.type != "cpu" or state.runtime != ONNXRUNTIME:
        return 1, None
    return share_cores(processes().here)


def _open_file(state: State, threads: int | None) -> Session:
    """Return a session of the file with some threads."""
    if threads is None:
        return state.file.session
    with warnings.catch_warnings():  # the user was told when the file was made
        warnings.simplefilter("ignore", ProcessorWarning)
        return open_session(state.file.model.SerializeToString(), state.runtime, threads, spinning=False)


def _networks(state: State, float_network: Embed, session: Session) -> dict[str, Embed]:
    """Return the networks to embed with, each as the whole network; the simulation only if it is wanted."""
    runs: dict[str, Embed] = {"quantized": state.quantized} if state.config.evaluate_simulation else {}
    file = replace(state.file, session=session)
    runs["onnx"] = lambda batch: file.run(batch).to(state.device)
    taken, counts = state.submodule, state.captured.frame_counts
    whole = {
        name: partial(embed_fitted, counts, run) if taken is None else taken.around(run, counts)
        for name, run in runs.items()
    }
    return {"float": float_network, **whole}


def _embed_on(device: torch.device, run: Embed, batch: Tensor) -> Tensor:
    return run(batch.to(device))

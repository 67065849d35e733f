"""Sessions: one written file, loaded in a runtime, behind one small face."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qgait_ptq.errors import ConfigError, MissingExtraError, ModelError

ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
RUNTIMES = (ONNXRUNTIME, OPENVINO)
BYTE = np.float32(255)


class Session(Protocol):
    """A loaded network of one input and one output.

    Attributes:
        input_shape: ``(batch, frames, ...)``; None where any size is taken.
        takes_bytes: the input is uint8, 0..255; else float32.
        properties: what the file carries beside the network.
    """

    input_shape: tuple[int | None, ...]
    takes_bytes: bool
    properties: Mapping[str, str]

    def infer(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Run a batch of the input's own type; may be called from several threads."""
        ...


def run_session(session: Session, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a batch of float32 as the network was trained with it: silhouettes in [0, 1], or raw values."""
    return session.infer(as_session_input(batch, session.takes_bytes))


def as_session_input(batch: NDArray[np.float32], takes_bytes: bool) -> NDArray[Any]:
    """Silhouettes in [0, 1] as the bytes that a file may take."""
    return np.rint(batch * BYTE).astype(np.uint8) if takes_bytes else batch


def takes_bytes(session: onnxruntime.InferenceSession) -> bool:
    """Whether a session of onnxruntime takes uint8."""
    return bool(session.get_inputs()[0].type == "tensor(uint8)")


def open_session(
    model: Path | bytes, runtime: str = ONNXRUNTIME, threads: int | None = None, spinning: bool = True
) -> Session:
    """Load an ONNX model on the CPU.

    Args:
        model: file or serialized model.
        runtime: ``onnxruntime`` or ``openvino``.
        threads: for one call; None lets the runtime choose.
        spinning: whether onnxruntime's threads wait actively between calls, which takes the cores from others
            in this process, such as torch.

    Raises:
        ModelError: it is no model that this runtime can run.
        MissingExtraError: the runtime is not installed.
        ConfigError: there is no such runtime.
    """
    if runtime == ONNXRUNTIME:
        return OnnxRuntimeSession(open_onnxruntime(model, threads, spinning))
    if runtime == OPENVINO:
        return OpenVinoSession(model, threads)
    raise ConfigError(f"no runtime {runtime!r}; there are {', '.join(RUNTIMES)}")


def is_installed(runtime: str) -> bool:
    """Whether a runtime can be imported."""
    return find_spec(runtime) is not None


class OnnxRuntimeSession:
    """A network in ONNX Runtime."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        given = session.get_inputs()[0]
        self._input = given.name
        self.input_shape = tuple(size if isinstance(size, int) else None for size in given.shape)
        self.takes_bytes = takes_bytes(session)
        self.properties: Mapping[str, str] = session.get_modelmeta().custom_metadata_map

    def infer(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Run a batch."""
        (output,) = self._session.run(None, {self._input: batch})
        return np.asarray(output)


class OpenVinoSession:
    """A network in OpenVINO; float parts compute in float32, so that a file gives the same everywhere."""

    def __init__(self, model: Path | bytes, threads: int | None = None) -> None:
        try:
            import openvino
        except ImportError:
            raise MissingExtraError("running a file in OpenVINO", OPENVINO) from None
        import onnx  # here, so that onnxruntime and numpy are enough for an `Embedder`

        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            content = model.read_bytes() if isinstance(model, Path) else model
            properties = onnx.load_from_string(content).metadata_props
            core = openvino.Core()
            self._compiled = core.compile_model(core.read_model(content), "CPU", settings)
        except Exception as error:  # OpenVINO's and protobuf's exceptions have no common public base
            raise _cannot_load(model, f"OpenVINO {openvino.__version__}", error) from None
        given = self._compiled.input(0)
        shape = given.get_partial_shape()
        self.input_shape = tuple(size.get_length() if size.is_static else None for size in shape)
        self.takes_bytes = given.get_element_type() == openvino.Type.u8
        self.properties: Mapping[str, str] = {entry.key: entry.value for entry in properties}

    def infer(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Run a batch; each call has a request of its own, so that threads do not meet."""
        output = self._compiled.create_infer_request().infer({0: batch})[0]
        return np.array(output)


def open_onnxruntime(
    model: Path | bytes, threads: int | None = None, spinning: bool = True, optimised: bool = True
) -> onnxruntime.InferenceSession:
    """Open an ONNX model in onnxruntime itself, for what `Session` does not show.

    Args:
        model: file or serialized model.
        threads: for one call; None lets onnxruntime choose.
        spinning: as of `open_session`.
        optimised: whether nodes are fused, into integer kernels where they are quantized.

    Raises:
        ModelError: it is no model that this onnxruntime can run.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = str(model) if isinstance(model, Path) else model
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common public base
        raise _cannot_load(model, f"onnxruntime {onnxruntime.__version__}", error) from None


def _cannot_load(model: Path | bytes, runtime: str, error: Exception) -> ModelError:
    name = model if isinstance(model, Path) else "the model"
    detail = " ".join(str(error).split())
    # What the runtimes say of files whose opset or format they do not know yet.
    too_old = any(word in detail for word in ("IR version", "IR_VERSION", "opset", "Opset"))
    detail = detail[:200]
    remedy = f"; a newer {runtime.split()[0]} is needed" if too_old else ""
    return ModelError(f"{name}: {runtime} cannot load it ({detail}){remedy}")

"""Sessions: an exported file in a runtime, with one interface for all runtimes."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qgait_ptq.errors import ConfigError, MissingExtraError, ModelError
from qgait_ptq.graph.frame_layout import BYTE
from qgait_ptq.onnx_graph.external_data import read_model_bytes
from qgait_ptq.runtime.without_telemetry import import_openvino, onnxruntime
from qgait_ptq.system.reading import unchanged

ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
RUNTIMES = (ONNXRUNTIME, OPENVINO)
# Types of inputs as onnxruntime names them.
TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}
KNOWN = f"supported types are {', '.join(TYPES)}"


@dataclass(frozen=True)
class SessionInput:
    """An input of a loaded network.

    Attributes:
        name: name in the file.
        shape: shape ``(batch, frames, ...)``; None for a dimension of any size.
        dtype: float32, uint8 (silhouettes in 0..255) or int64.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    @property
    def takes_bytes(self) -> bool:
        """Return whether the input takes silhouettes as uint8."""
        return self.dtype == np.uint8

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Return the shape of one frame."""
        return tuple(size or 1 for size in self.shape[2:])

    def example(self, batch: int, frames: int, rng: np.random.Generator, share: float = 0.3) -> NDArray[Any]:
        """Return random binary values in the type and the fixed sizes of the input; `share` are not zero."""
        shape = (self.shape[0] or batch, self.shape[1] or frames, *self.frame_shape)
        if math.prod(shape) > sys.maxsize // 8:  # numpy raises a ValueError there
            raise MemoryError(f"an input of the shape {list(shape)} exceeds all memory")
        values = rng.random(shape) < share
        return values.astype(self.dtype) * (255 if self.takes_bytes else 1)


class Session(Protocol):
    """A loaded network with one output.

    Attributes:
        inputs: inputs of the network, in order.
        properties: metadata of the file.
    """

    inputs: tuple[SessionInput, ...]
    properties: Mapping[str, str]

    def infer(self, *batches: NDArray[Any]) -> NDArray[np.float32]:
        """Run one batch for each input, in the type of the input. Calls from several threads are safe."""
        ...


def run_session(session: Session, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a float32 batch of silhouettes in [0, 1], of values, or of all inputs joined along one axis."""
    return session.infer(*as_session_inputs(batch, session.inputs))


def as_session_inputs(batch: NDArray[np.float32], inputs: Sequence[SessionInput]) -> list[NDArray[Any]]:
    """Return the inputs of a file, in their types, from a batch as in `run_session`."""
    if len(inputs) == 1:
        return [_as_type(batch, inputs[0])]
    sizes = [math.prod(entry.frame_shape) for entry in inputs]
    parts = np.split(batch, np.cumsum(sizes)[:-1], axis=2)
    return [
        _as_type(part.reshape(*part.shape[:2], *entry.frame_shape), entry)
        for part, entry in zip(parts, inputs, strict=True)
    ]


def _as_type(values: NDArray[np.float32], entry: SessionInput) -> NDArray[Any]:
    if entry.dtype == values.dtype:
        return np.ascontiguousarray(values)
    return np.rint(values * BYTE if entry.takes_bytes else values).astype(entry.dtype)


def session_inputs(
    session: onnxruntime.InferenceSession, name: str | Path = "the model"
) -> tuple[SessionInput, ...]:
    """Return the inputs of a session of onnxruntime.

    Raises:
        ModelError: an input has a type that no network of the toolkit has; the text names the model.
    """
    for entry in session.get_inputs():
        if entry.type not in TYPES:
            raise ModelError(f"{name}: its input {entry.name} has the type {entry.type}; {KNOWN}")
    return tuple(
        SessionInput(
            entry.name,
            tuple(size if isinstance(size, int) else None for size in entry.shape),
            np.dtype(TYPES[entry.type]),
        )
        for entry in session.get_inputs()
    )


def open_unguarded(
    model: Path | bytes, runtime: str = ONNXRUNTIME, threads: int | None = None, spinning: bool = True
) -> Session:
    """Load an ONNX model unchanged, even if its sums can saturate; see `open_session`."""
    if runtime == ONNXRUNTIME:
        return OnnxRuntimeSession(open_onnxruntime(model, threads, spinning), model_name(model))
    if runtime == OPENVINO:
        return OpenVinoSession(model, threads)
    raise ConfigError(f"unknown runtime {runtime!r}; choose {' or '.join(RUNTIMES)}")


def is_installed(module: str) -> bool:
    """Return whether a runtime, or another optional module, can be imported."""
    return find_spec(module) is not None


class OnnxRuntimeSession:
    """A network in ONNX Runtime."""

    def __init__(self, session: onnxruntime.InferenceSession, name: str | Path) -> None:
        self._session, self._name = session, name
        try:
            self.inputs = session_inputs(session, name)
            self.properties: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
            _check_outputs(len(session.get_outputs()), name)
        except UnicodeDecodeError:
            raise ModelError(f"{name}: damaged: a name in the file is not UTF-8 text") from None

    def infer(self, *batches: NDArray[Any]) -> NDArray[np.float32]:
        """Run one batch for each input."""
        feed = {entry.name: batch for entry, batch in zip(self.inputs, batches, strict=True)}
        try:
            (output,) = self._session.run(None, feed)
            if not isinstance(output, np.ndarray) or output.dtype == object:
                raise TypeError("its output is not a tensor of numbers")
            return output
        except Exception as error:  # onnxruntime's exceptions have no common public base
            runtime = f"onnxruntime {onnxruntime.__version__}"
            raise cannot_run(self._name, runtime, batches, error) from None


class OpenVinoSession:
    """A network in OpenVINO. Float operators compute in float32, so that results are the same everywhere."""

    def __init__(self, model: Path | bytes, threads: int | None = None) -> None:
        try:
            # Late import of onnx: in onnxruntime, an `Embedder` does not need it.
            from qgait_ptq.runtime.openvino_reading import read_in_openvino

            openvino = import_openvino()
        except ImportError:
            raise MissingExtraError("running a file in OpenVINO", OPENVINO) from None

        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._name, self._runtime = model_name(model), f"OpenVINO {openvino.__version__}"
        content = read_model_bytes(model)
        try:
            core = openvino.Core()
            network, properties = read_in_openvino(core, content)
            self._compiled = core.compile_model(network, "CPU", settings)
            self.inputs = tuple(map(_openvino_input, self._compiled.inputs))
            self.properties: Mapping[str, str] = properties
        except Exception as error:  # OpenVINO's and protobuf's exceptions have no common public base
            raise _cannot_load(model, self._runtime, error) from None
        for entry in (entry for entry in self.inputs if entry.dtype not in TYPES.values()):
            raise ModelError(f"{self._name}: its input {entry.name} has the type {entry.dtype}; {KNOWN}")
        _check_outputs(len(self._compiled.outputs), self._name)

    def infer(self, *batches: NDArray[Any]) -> NDArray[np.float32]:
        """Run one batch for each input. Each call has its own request, so that threads are independent."""
        try:
            return np.array(self._compiled.create_infer_request().infer(dict(enumerate(batches)))[0])
        except Exception as error:  # OpenVINO's exceptions have no common public base
            raise cannot_run(self._name, self._runtime, batches, error) from None


def _openvino_input(entry: Any) -> SessionInput:
    shape = (size.get_length() if size.is_static else None for size in entry.get_partial_shape())
    return SessionInput(entry.get_any_name(), tuple(shape), np.dtype(entry.get_element_type().to_dtype()))


def open_onnxruntime(
    model: Path | bytes, threads: int | None = None, spinning: bool = True, optimised: bool = True
) -> onnxruntime.InferenceSession:
    """Open an ONNX model in onnxruntime, for features that `Session` does not have.

    Args:
        model: path of the file, or serialized model.
        threads: threads for one call; None for the default of onnxruntime.
        spinning: whether threads wait actively between calls; see `open_session`.
        optimised: whether nodes are fused, quantized ones into integer kernels.

    Raises:
        ModelError: the file cannot be read, has weights in other files, or this version of onnxruntime cannot
            run the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: errors are raised, and log lines print names unescaped
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Otherwise, onnxruntime chooses the format by the name and the first bytes.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    if not isinstance(model, Path):
        return _start(read_model_bytes(model), options, model)
    with unchanged(model, "the model", ModelError):
        read_model_bytes(model)
        # The path instead of the content: onnxruntime takes less than half of the memory then.
        return _start(str(model), options, model)


def _start(
    source: str | bytes, options: onnxruntime.SessionOptions, model: Path | bytes
) -> onnxruntime.InferenceSession:
    try:
        providers = ["CPUExecutionProvider"]
        return onnxruntime.InferenceSession(source, options, providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common public base
        raise _cannot_load(model, f"onnxruntime {onnxruntime.__version__}", error) from None


def model_name(model: Path | bytes) -> str | Path:
    """Return the name of a model in errors."""
    return model if isinstance(model, Path) else "the model"


def _check_outputs(count: int, name: str | Path) -> None:
    if count != 1:
        raise ModelError(f"{name}: the model has {count} outputs; a network must have one")


def _cannot_load(model: Path | bytes, runtime: str, error: Exception) -> ModelError:
    detail = " ".join(str(error).split())
    # Words of the runtimes' errors for an opset, a format or kernels that are too new for them.
    unknown = ("IR version", "IR_VERSION", "opset", "Opset", "NOT_IMPLEMENTED")
    too_old = any(word in detail for word in unknown)
    remedy = f"; install a newer {runtime.split()[0]}" if too_old else ""
    return ModelError(f"{model_name(model)}: {runtime} cannot load the model ({detail[:200]}){remedy}")


def cannot_run(
    name: str | Path, runtime: str, batches: Sequence[NDArray[Any]], error: Exception
) -> ModelError:
    """Return the error of a runtime that fails on some inputs."""
    shapes = ", ".join(str(list(batch.shape)) for batch in batches)
    return ModelError(
        f"{name}: {runtime} cannot run the model on {shapes} ({' '.join(str(error).split())[:200]})"
    )

"""Sessions: one written file, loaded in a runtime, behind one small face."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from qgait_ptq.errors import ConfigError, MissingExtraError, ModelError
from qgait_ptq.graph.frame_layout import BYTE

ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
RUNTIMES = (ONNXRUNTIME, OPENVINO)
# Types of inputs as onnxruntime names them.
TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int64)": np.int64}
KNOWN = f"networks take {', '.join(TYPES)}"


@dataclass(frozen=True)
class SessionInput:
    """An input of a loaded network.

    Attributes:
        name: in the file.
        shape: ``(batch, frames, ...)``; None where any size is taken.
        dtype: float32; uint8 of silhouettes as bytes, 0..255; int64.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]

    @property
    def takes_bytes(self) -> bool:
        """Whether it takes silhouettes as uint8."""
        return self.dtype == np.uint8

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Of one frame."""
        return tuple(size or 1 for size in self.shape[2:])

    def example(self, batch: int, frames: int, rng: np.random.Generator, share: float = 0.3) -> NDArray[Any]:
        """Random binary values of its type; a share of them is not zero. Fixed sizes have their way."""
        shape = (self.shape[0] or batch, self.shape[1] or frames, *self.frame_shape)
        values = rng.random(shape) < share
        return values.astype(self.dtype) * (255 if self.takes_bytes else 1)


class Session(Protocol):
    """A loaded network of one output.

    Attributes:
        inputs: one, or those of a network of several, in order.
        properties: what the file carries beside the network.
    """

    inputs: tuple[SessionInput, ...]
    properties: Mapping[str, str]

    def infer(self, *batches: NDArray[Any]) -> NDArray[np.float32]:
        """Run a batch of each input, of its own type; may be called from several threads."""
        ...


def run_session(session: Session, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a batch of float32 as the stages have it: silhouettes in [0, 1], values, or all inputs in one."""
    return session.infer(*as_session_inputs(batch, session.inputs))


def as_session_inputs(batch: NDArray[np.float32], inputs: Sequence[SessionInput]) -> list[NDArray[Any]]:
    """What a file takes, of the types that it takes, from values as of `run_session`."""
    if len(inputs) == 1:
        return [_as_type(batch, inputs[0])]
    sizes = [math.prod(given.frame_shape) for given in inputs]
    parts = np.split(batch, np.cumsum(sizes)[:-1], axis=2)
    return [
        _as_type(part.reshape(*part.shape[:2], *given.frame_shape), given)
        for part, given in zip(parts, inputs, strict=True)
    ]


def _as_type(values: NDArray[np.float32], given: SessionInput) -> NDArray[Any]:
    if given.dtype == values.dtype:
        return np.ascontiguousarray(values)
    return np.rint(values * BYTE if given.takes_bytes else values).astype(given.dtype)


def session_inputs(
    session: onnxruntime.InferenceSession, name: str | Path = "the model"
) -> tuple[SessionInput, ...]:
    """The inputs of a session of onnxruntime.

    Raises:
        ModelError: one is of a type that no network of the toolkit takes; `name` is named.
    """
    for given in session.get_inputs():
        if given.type not in TYPES:
            raise ModelError(f"{name}: its input {given.name} is {given.type}; {KNOWN}")
    return tuple(
        SessionInput(
            given.name,
            tuple(size if isinstance(size, int) else None for size in given.shape),
            np.dtype(TYPES[given.type]),
        )
        for given in session.get_inputs()
    )


def open_unguarded(
    model: Path | bytes, runtime: str = ONNXRUNTIME, threads: int | None = None, spinning: bool = True
) -> Session:
    """Load an ONNX model as it is, also where its sums can saturate; the rest as of `open_session`."""
    if runtime == ONNXRUNTIME:
        return OnnxRuntimeSession(open_onnxruntime(model, threads, spinning), model_name(model))
    if runtime == OPENVINO:
        return OpenVinoSession(model, threads)
    raise ConfigError(f"no runtime {runtime!r}; there are {', '.join(RUNTIMES)}")


def is_installed(runtime: str) -> bool:
    """Whether a runtime can be imported."""
    return find_spec(runtime) is not None


class OnnxRuntimeSession:
    """A network in ONNX Runtime."""

    def __init__(self, session: onnxruntime.InferenceSession, name: str | Path) -> None:
        self._session, self._name = session, name
        try:
            self.inputs = session_inputs(session, name)
            self.properties: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
            _check_outputs(len(session.get_outputs()), name)
        except UnicodeDecodeError:
            raise ModelError(f"{name}: damaged: a name in it is not UTF-8 text") from None

    def infer(self, *batches: NDArray[Any]) -> NDArray[np.float32]:
        """Run a batch."""
        feed = {given.name: batch for given, batch in zip(self.inputs, batches, strict=True)}
        try:
            (output,) = self._session.run(None, feed)
            if not isinstance(output, np.ndarray) or output.dtype == object:
                raise TypeError("its output is not a tensor of numbers")
            return output
        except Exception as error:  # onnxruntime's exceptions have no common public base
            runtime = f"onnxruntime {onnxruntime.__version__}"
            raise _cannot_run(self._name, runtime, batches, error) from None


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
        self._name, self._runtime = model_name(model), f"OpenVINO {openvino.__version__}"
        try:
            content = model.read_bytes() if isinstance(model, Path) else model
            properties = onnx.load_from_string(content).metadata_props
            core = openvino.Core()
            self._compiled = core.compile_model(core.read_model(content), "CPU", settings)
            self.inputs = tuple(map(_openvino_input, self._compiled.inputs))
            self.properties: Mapping[str, str] = {entry.key: entry.value for entry in properties}
        except Exception as error:  # OpenVINO's and protobuf's exceptions have no common public base
            raise _cannot_load(model, self._runtime, error) from None
        for given in (given for given in self.inputs if given.dtype not in TYPES.values()):
            raise ModelError(f"{self._name}: its input {given.name} is {given.dtype}; {KNOWN}")
        _check_outputs(len(self._compiled.outputs), self._name)

    def infer(self, *batches: NDArray[Any]) -> NDArray[np.float32]:
        """Run a batch; each call has a request of its own, so that threads do not meet."""
        try:
            return np.array(self._compiled.create_infer_request().infer(dict(enumerate(batches)))[0])
        except Exception as error:  # OpenVINO's exceptions have no common public base
            raise _cannot_run(self._name, self._runtime, batches, error) from None


def _openvino_input(given: Any) -> SessionInput:
    shape = (size.get_length() if size.is_static else None for size in given.get_partial_shape())
    return SessionInput(given.get_any_name(), tuple(shape), np.dtype(given.get_element_type().to_dtype()))


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
    options.log_severity_level = 4  # fatal: errors are raised, and its log would print names raw
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source, providers = str(model) if isinstance(model, Path) else model, ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(source, options, providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no common public base
        raise _cannot_load(model, f"onnxruntime {onnxruntime.__version__}", error) from None


def model_name(model: Path | bytes) -> str | Path:
    """Return how errors name a model."""
    return model if isinstance(model, Path) else "the model"


def _check_outputs(count: int, name: str | Path) -> None:
    if count != 1:
        raise ModelError(f"{name}: it has {count} outputs, a network has one")


def _cannot_load(model: Path | bytes, runtime: str, error: Exception) -> ModelError:
    detail = " ".join(str(error).split())
    # What the runtimes say of files whose opset, format or kernels they do not know yet.
    unknown = ("IR version", "IR_VERSION", "opset", "Opset", "NOT_IMPLEMENTED")
    too_old = any(word in detail for word in unknown)
    remedy = f"; a newer {runtime.split()[0]} is needed" if too_old else ""
    return ModelError(f"{model_name(model)}: {runtime} cannot load it ({detail[:200]}){remedy}")


def _cannot_run(
    name: str | Path, runtime: str, batches: Sequence[NDArray[Any]], error: Exception
) -> ModelError:
    shapes = ", ".join(str(list(batch.shape)) for batch in batches)
    return ModelError(f"{name}: {runtime} cannot run it on {shapes} ({' '.join(str(error).split())[:200]})")

"""Rewrites of ONNX models, by name. A target lists its passes in `Target.onnx_passes`.

To add a pass, add a module with an `OnnxPass` to this package; it is found automatically.
"""

from __future__ import annotations

from qgait_ptq.errors import ConfigError
from qgait_ptq.exporters.lowering import CALL_MARK
from qgait_ptq.exporters.passes.onnx_pass import OnnxPass
from qgait_ptq.system.discovery import find_instances

PASSES: dict[str, OnnxPass] = {
    onnx_pass.name: onnx_pass for onnx_pass in find_instances(__name__, __path__, OnnxPass)
}


def get_pass(name: str) -> OnnxPass:
    """Return the pass of a name.

    Raises:
        ConfigError: no pass has this name.
    """
    if name not in PASSES:
        raise ConfigError(f"no ONNX pass {name!r}; the passes are {', '.join(PASSES)}")
    return PASSES[name]


def layer_suffix(node_name: str) -> str:
    """Return the suffix that a pass appended to a layer's name; empty for other nodes."""
    suffixes = (onnx_pass.layer_suffix for onnx_pass in PASSES.values() if onnx_pass.layer_suffix)
    return next((suffix for suffix in suffixes if node_name.endswith(suffix)), "")


def layer_path(node_name: str) -> str:
    """Return the module path of the layer that a node of a file computes, without the number of its call."""
    return node_name.removesuffix(layer_suffix(node_name)).split(CALL_MARK)[0]

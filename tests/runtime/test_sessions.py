"""How runtimes are loaded."""

import os
import re
import subprocess
import sys

import onnx
import pytest
from onnx import TensorProto, helper

from qgait_ptq.runtime.sessions import is_installed
from qgait_ptq.runtime.without_telemetry import ONNXRUNTIME_SWITCH, OPENVINO_TELEMETRY
from tests.runtime.small_model import METADATA, save, small_model

OPEN = """
import sys
from pathlib import Path
from qgait_ptq.runtime.sessions import OpenVinoSession
OpenVinoSession(Path(sys.argv[1]), threads=1)
import {telemetry}
"""

OPEN_IN_ONNXRUNTIME = """
import os
import sys
from pathlib import Path
from qgait_ptq.runtime.sessions import open_onnxruntime
open_onnxruntime(Path(sys.argv[1]))
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.parametrize("chosen", [None, "true"])
def test_onnxruntime_is_loaded_without_its_telemetry(tmp_path, chosen):
    """It would write an identifier into the cache folder and contact a server. A value of the user stays."""
    path = save(small_model(METADATA), tmp_path)
    env = {name: value for name, value in os.environ.items() if name != ONNXRUNTIME_SWITCH}
    env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path / "home")}
    env |= {ONNXRUNTIME_SWITCH: chosen} if chosen else {}
    command = [sys.executable, "-c", OPEN_IN_ONNXRUNTIME, path]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == (chosen or "1")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not is_installed("openvino"), reason="needs OpenVINO")
def test_openvino_is_loaded_without_its_telemetry(tmp_path):
    """It would write into the home folder, and report to a server. Later imports of it work."""
    home, path = tmp_path / "home", save(small_model(METADATA), tmp_path)
    home.mkdir()
    # On a CI machine, OpenVINO sends nothing anyway.
    env = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    code = OPEN.format(telemetry=OPENVINO_TELEMETRY)
    subprocess.run([sys.executable, "-c", code, path], env=env | {"HOME": str(home)}, check=True)
    assert list(home.iterdir()) == []


@pytest.mark.skipif(not is_installed("openvino"), reason="needs OpenVINO")
@pytest.mark.parametrize(
    ("node", "bounds", "message"),
    [
        (
            helper.make_node("Unheard", ["x"], ["values"], domain="elsewhere"),
            ["", "high"],
            r"\(No conversion rule found for operations: elsewhere.Unheard\)",
        ),
        (
            helper.make_node("Pad", ["x", "pads"], ["values"], mode="wrap"),
            ["high"],
            r"\(Pad-18 .* Unsupported padding mode: \[wrap\]\)",
        ),
    ],
)
def test_an_operator_that_openvino_lacks_is_an_error_before_a_clip_with_one_bound(
    tmp_path, node, bounds, message
):
    """Without the check, OpenVINO ends the process."""
    nodes = [node, helper.make_node("Clip", ["values", *bounds], ["y"])]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            helper.make_tensor("high", TensorProto.FLOAT, [], [1.0]),
            helper.make_tensor("pads", TensorProto.INT64, [6], [0, 0, 1, 0, 0, 1]),
        ],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    code = "import sys\nfrom pathlib import Path\nfrom qgait_ptq.runtime.sessions import OpenVinoSession\n"
    code += "OpenVinoSession(Path(sys.argv[1]), threads=1)\n"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert re.search(message, done.stderr.splitlines()[-1])

"""A target, a pass of either kind and a stage are one new file each: no other file of the package changes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import qgait_ptq

PACKAGE = Path(qgait_ptq.__file__).parent
NEW_FILES = {
    "graph/passes/house_negation.py": '''
from qgait_ptq.graph.operators import aten
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.views import source


def negate_twice(graph_module):
    """Negate the output twice."""
    graph = graph_module.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        once = graph.call_function(aten.neg.default, (source(output),))
        twice = graph.call_function(aten.neg.default, (once,))
    output.replace_input_with(source(output), twice)
    graph_module.recompile()


HOUSE_NEGATION = GraphPass("house-negation", negate_twice)
''',
    "exporters/passes/house_documentation.py": '''
from qgait_ptq.exporters.passes.onnx_pass import OnnxPass


def document(model):
    """Write a documentation string into the file."""
    model.doc_string = "made for the house"


HOUSE_DOCUMENTATION = OnnxPass("house-documentation", document)
''',
    "targets/profiles/house_runtime.py": """
from qgait_ptq.graph.annotation import PlacementRules
from qgait_ptq.graph.operators import RECTIFIERS, VALUE_PRESERVING, WEIGHTED
from qgait_ptq.graph.passes.house_negation import HOUSE_NEGATION
from qgait_ptq.targets.target import Storage, Target

TARGET = Target(
    "house-runtime",
    "A runtime of this test",
    PlacementRules(
        weighted=WEIGHTED,
        absorbed=RECTIFIERS,
        elementwise=frozenset(),
        value_preserving=VALUE_PRESERVING,
        reducing=frozenset(),
        saturating_pairs=True,
    ),
    Storage(int4_weights=False),
    graph_passes=(HOUSE_NEGATION,),
    onnx_passes=("house-documentation",),
    opset=18,
    runtimes=("onnxruntime",),
)
""",
    "calibration/house_stage.py": '''
import copy
from dataclasses import replace

from qgait_ptq.stages.stage import Stage, nothing


class DoubleFirstBias(Stage):
    """Double the bias of the first layer."""

    name = "doubling"

    def apply(self, state, advance=nothing):
        quantized = copy.deepcopy(state.quantized)
        bias = next(value for name, value in quantized.named_parameters() if name.endswith("bias"))
        bias.data.mul_(2)
        return replace(state, maybe_quantized=quantized).recording(doubled=1)
''',
}
COMMANDS = """
from click.testing import CliRunner
from qgait_ptq.cli.main import cli

for name, words in {"targets.json": ("targets", "--json"), "help.txt": ("quantize", "--help")}.items():
    with open(name, "w") as file:
        file.write(CliRunner().invoke(cli, words, catch_exceptions=False).stdout)
"""
RUN = """
import sys
import qgait_ptq as qg
from qgait_ptq.calibration.house_stage import DoubleFirstBias
from qgait_ptq.config import IdcConfig
from tests.conftest import make_gaitset

walkers = qg.GaitDataset.from_directory(sys.argv[1])
config = qg.QuantConfig(
    target="house-runtime", idc=IdcConfig(enabled=False), rounding="nearest", bias_correction=False
)
data = qg.GaitData(walkers.choose(4), walkers.choose(2, 1))
calibrated = qg.calibrate(qg.prepare(make_gaitset(strips=(1,)), data, config, device="cpu"))
assert "neg" in str(calibrated.network.graph)
doubled = qg.run_stages([DoubleFirstBias()], calibrated)
assert doubled.record["doubled"] == 1 and "doubling" in doubled.seconds
with open("model.onnx", "wb") as file:
    file.write(qg.export(doubled).file.model.SerializeToString())
"""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the package with the new files."""
    folder = tmp_path_factory.mktemp("house")
    copied = folder / "qgait_ptq"
    shutil.copytree(PACKAGE, copied)  # with its bytecode
    for name, text in NEW_FILES.items():
        assert not (copied / name).exists()
        (copied / name).write_text(text)
    return folder


def execute(house, program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=house,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(house), str(PACKAGE.parent)]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_new_target_is_offered_on_the_command_line(house):
    execute(house, COMMANDS)
    listed = json.loads((house / "targets.json").read_text())
    assert listed["house-runtime"]["description"] == "A runtime of this test"
    assert "house-runtime" in (house / "help.txt").read_text()


@pytest.mark.slow
def test_a_run_uses_the_new_passes_and_the_new_stage(house, walkers_root):
    execute(house, RUN, walkers_root)
    model = onnx.load(house / "model.onnx")
    assert model.doc_string == "made for the house"
    assert [node.op_type for node in model.graph.node].count("Neg") == 2

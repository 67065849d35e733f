"""The check of a runtime's integers before calibration, on this processor and on one that saturates."""

import json
import os
import subprocess

import pytest

from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import ConfigError
from qgait_ptq.placement.layers import LayerShape, integer_layers
from qgait_ptq.placement.planning import plan
from qgait_ptq.verification.emulation import emulator
from qgait_ptq.verification.kernel_check import check_kernels
from tests.conftest import make_gaitbase

SHAPES = {
    "one channel": ((16, 1, 5, 5), 1),
    "odd channels": ((7, 3, 3, 3), 1),
    "large": ((128, 128, 3, 3), 1),
    "grouped": ((64, 8, 1), 8),
    "three axes": ((8, 8, 3, 1, 1), 1),
}


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_in_the_safe_range_are_computed_right_here(runtime, shape):
    check_kernels([LayerShape(shape, *SHAPES[shape], can_saturate=False)], runtime)


@pytest.mark.parametrize(("weight_range", "can_saturate"), [("safe", False), ("full", True)])
def test_layers_of_a_network_say_whether_they_can_saturate(weight_range, can_saturate):
    _, graph, _ = plan(make_gaitbase(), (64, 44), QuantConfig(weight_range=weight_range))
    layers = integer_layers(graph)
    assert [layer.name for layer in layers][:2] == ["stem.0", "blocks.0.conv1"]
    assert layers[0].weight == (8, 1, 5, 5)
    assert {layer.can_saturate for layer in layers} == {can_saturate}


def test_narrow_layers_cannot_saturate_in_any_range():
    config = QuantConfig(weight_bits=4, activation_bits=4, edge_bits=7, weight_range="full")
    _, graph, _ = plan(make_gaitbase(), (64, 44), config)
    assert not any(layer.can_saturate for layer in integer_layers(graph))


CHECKED = """
import json, sys
from qgait_ptq.errors import ExportError
from qgait_ptq.placement.layers import LayerShape
from qgait_ptq.verification.kernel_check import check_kernels
said = {}
for runtime in ("onnxruntime", "openvino"):
    for can_saturate in (False, True):
        try:
            check_kernels([LayerShape("stem.0", (16, 1, 5, 5), 1, can_saturate),
                           LayerShape("deep", (64, 64, 3, 3), 1, can_saturate)], runtime)
            said[f"{runtime} {can_saturate}"] = ""
        except ExportError as error:
            said[f"{runtime} {can_saturate}"] = str(error)
print(json.dumps(said))
"""


@pytest.mark.slow  # torch takes half a minute to import in the emulator
def test_a_runtime_without_exact_kernels_is_named_where_pairs_saturate():
    try:
        command, environment = emulator("avx2")
    except ConfigError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [*command, "-c", CHECKED],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    said = json.loads(done.stdout)
    assert said["onnxruntime False"] == said["openvino False"] == ""
    assert said["onnxruntime True"] == ""  # unsigned weights take their place
    for word in ("openvino", "x86_64", "deep (64×64×3×3)", "--weight-range safe"):
        assert word in said["openvino True"]

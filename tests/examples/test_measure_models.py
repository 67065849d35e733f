"""The page of the reference networks: multiply-accumulates with the frame count that they are counted at."""

import sys
from pathlib import Path

import numpy as np
import pytest

import qgait_ptq as qg
from qgait_ptq.config.schema import IdcConfig
from tests.small_network import Small

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from measure_models import describe, work


def test_a_frame_count_is_named_if_it_is_not_that_of_the_heading():
    assert work({"macs": 3_261_743_104}) == "3.26"
    assert work({"macs": 3_261_743_104, "macs_frames": 30}) == "3.26"
    assert work({"macs": 3_261_743_104, "macs_frames": 60}) == "3.26 (60 frames)"


@pytest.mark.slow
def test_work_of_another_frame_count_is_not_scaled():
    """The linear layer runs once in each sequence."""
    rng = np.random.default_rng(0)
    walks = [((rng.random((9, 32, 22)) < 0.3) * np.uint8(255), str(index % 3)) for index in range(6)]
    config = qg.QuantConfig(idc=IdcConfig(enabled=False), rounding="nearest")
    prepared = qg.prepare(Small().eval(), walks, config, device="cpu", frames=10)
    state = qg.export(qg.calibrate(prepared))
    qg.check_parity(state, [state.captured.example(1)])
    found = describe(state)
    assert found["frames"] == found["macs_frames"] == 10
    assert found["macs"] == 10 * 8 * 6 * 8 * 25 + 8 * 16

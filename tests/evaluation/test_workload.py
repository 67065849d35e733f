"""Sizes at which files are measured: those that they take."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qgait_ptq as qg
from qgait_ptq.cli.verify import examine
from qgait_ptq.config.schema import IdcConfig
from qgait_ptq.errors import ConfigError
from qgait_ptq.evaluation.benchmark import benchmark_files, fit_setting
from qgait_ptq.evaluation.workload import BenchmarkSetting
from tests.small_network import Small


@pytest.fixture
def write(tmp_path):
    """Writes a file whose batch size and frame count are free or fixed."""

    def written(batch=None, frames=None):
        shape = [batch or "batch", frames or "frames", 2, 2]
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", [x], [y])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
        model.ir_version = 10
        path = tmp_path / f"{batch}-{frames}.onnx"
        onnx.save(model, path)
        return path

    return written


def sizes(paths, **wanted):
    setting = fit_setting(paths, BenchmarkSetting(**wanted))
    return setting.frames, setting.batch


def test_files_that_fix_a_size_are_measured_at_it(write):
    assert sizes([write()]) == (30, 1)
    assert sizes([write(), write(frames=16), write(batch=2)]) == (16, 2)
    assert sizes([write(), write(batch=2)], frames=7) == (7, 2)
    (measured,) = benchmark_files([write(frames=16)], BenchmarkSetting(rounds=1, seconds=0.01))
    assert measured.timing.cpu_ms[0] > 0


def test_files_are_not_compared_at_different_sizes(write):
    with pytest.raises(ConfigError, match=r"None-9.onnx takes 9 frames only.*with 16 frames"):
        sizes([write(frames=16), write(frames=9)])


def test_a_size_that_a_file_does_not_take_is_refused(write):
    with pytest.raises(ConfigError, match=r"takes a batch of 1 only, and cannot be measured with a batch of"):
        sizes([write(), write(batch=1)], batch=64)
    with pytest.raises(ConfigError, match=r"takes 16 frames only"):
        benchmark_files([write(frames=16)], BenchmarkSetting(rounds=1, frames=30, batch=1))


def test_more_threads_than_a_machine_can_hold_are_refused(write):
    with pytest.raises(ConfigError, match=r"threads is 100000; at most 1024"):
        benchmark_files([write()], BenchmarkSetting(threads=100_000, rounds=1))


@pytest.fixture(scope="module")
def pinned():
    """A result whose network is captured for seven frames."""
    rng = np.random.default_rng(0)
    walks = [((rng.random((9, 32, 22)) < 0.2).astype(np.uint8) * 255, f"p{i // 2}") for i in range(8)]
    config = qg.QuantConfig(idc=IdcConfig(enabled=False), rounding="nearest")
    return qg.quantize(Small().eval(), walks, config, device="cpu", frames=7)


def test_the_bytes_of_a_file_are_compared_at_its_own_frames(pinned, tmp_path):
    path = pinned.save(tmp_path) / "model.onnx"
    assert examine(path, 1).frames == 7
    with pytest.raises(ConfigError, match=r"takes 7 frames only"):
        examine(path, 1, 30)


def test_the_report_has_the_frames_that_were_timed(pinned):
    assert pinned.report.to_json()["speed"]["frames"] == 7

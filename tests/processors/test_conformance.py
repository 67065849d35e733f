"""The same integers on every processor: files run here, on emulated AVX2 (no VNNI) and on emulated ARM64.

Every integer tensor of the graph that onnxruntime makes of a file there is compared with the integer
reference. Emulation needs QEMU, and ARM64 the folder that ``make-arm64-root`` fills; without them these tests
are skipped.
"""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from qgait_ptq.calibration.ranges import calibrate_ranges
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import ConfigError
from qgait_ptq.exporters.onnx_file import export_quantized, write_metadata
from qgait_ptq.gait.zoo import DeepGaitV2P3D, GaitPart
from qgait_ptq.placement.annotate import annotate
from qgait_ptq.placement.insert import insert_quantizers
from qgait_ptq.placement.planning import bit_widths, plan
from qgait_ptq.reference.pair_sums import bound_pair_sums
from qgait_ptq.reference.proof import prove_exactness
from qgait_ptq.runtime.exactness import saturates
from qgait_ptq.runtime.sessions import ONNXRUNTIME, open_unguarded
from qgait_ptq.targets.registry import get_target
from qgait_ptq.verification.emulation import emulator, record_elsewhere
from qgait_ptq.verification.file_bytes import compare_with_reference
from qgait_ptq.verification.recording import read_recording, record, write_task
from tests.conftest import SHALLOW, make_gaitbase, make_gaitgl, make_gaitset, randomise_batch_norms

FRAMES, CROPPED = (5, 4), (64, 44)  # 4 is a count of channels, too: layouts that look alike


class Kinds(nn.Module):
    """Odd channels, grouped, depthwise and 1×1 convolutions, one over frames, and fully connected layers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 5, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(5, 7, 3, 2, 1),  # odd channels: pairs straddle the taps of the kernel
            nn.ReLU(),
            nn.Conv2d(7, 24, 1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, 1, 1, groups=4),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, 1, 1, groups=24),
            nn.ReLU(),
            nn.Conv2d(24, 17, 3, 2, 1, groups=1),
            nn.ReLU(),
        )
        self.over_frames = nn.Conv3d(17, 9, 3, padding=1)
        self.hidden = nn.Linear(9, 33)
        self.embedding = nn.Linear(33, 16)

    def forward(self, silhouettes):
        n, s = silhouettes.shape[:2]
        maps = self.layers(silhouettes.flatten(0, 1).unsqueeze(1))
        steps = self.over_frames(maps.unflatten(0, (n, s)).transpose(1, 2)).relu()
        vectors = steps.amax((2, 3, 4))
        return self.embedding(self.hidden(vectors).relu())


def make_gaitpart():
    torch.manual_seed(0)
    return randomise_batch_norms(GaitPart(channels=(4, 8, 8), halvings=(0, 1, 1), parts=2, embedding=16))


def make_p3d():
    torch.manual_seed(0)
    return randomise_batch_norms(DeepGaitV2P3D(channels=(4, 8, 8, 16), blocks=(1, 1, 1, 1), embedding=16))


def make_kinds():
    torch.manual_seed(1)
    return Kinds().eval()


NETWORKS = {
    "GaitBase": partial(make_gaitbase, **SHALLOW),
    "GaitSet": make_gaitset,
    "GaitPart": make_gaitpart,
    "GaitGL": make_gaitgl,
    "P3D": make_p3d,
    "kinds": make_kinds,
}
WIDTHS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4)}
FILES = [(network, width) for network in NETWORKS for width in WIDTHS] + [("table", "W8A8")]
# Fewer bits run in the same kernels. These have every kind of kernel; slow tests run all networks and widths.
USUAL = ["GaitBase-W8A8", "kinds-W8A8", "kinds-W4A8", "table-W8A8"]
CASES = [
    pytest.param(case, marks=() if case in USUAL else pytest.mark.slow)
    for case in (f"{network}-{width}" for network, width in FILES)
]


@dataclass
class Files:
    """Files by case, what they are given, and what processors make of them, each made and recorded once."""

    make: Callable
    feeds: list

    def __post_init__(self):
        self.model, self._recorded_on = cache(self.make), cache(self._record)

    def recorded_on(self, processor, case):
        """Return what a processor computes; the cases of every run are recorded in one process."""
        cases = (*USUAL, "unsafe") if case in (*USUAL, "unsafe") else (case,)
        return self._recorded_on(processor, cases)[case]

    def _record(self, processor, cases):
        tasks = [(self.model(case), self.feeds[1:]) for case in cases]  # one, since emulation is slow
        return dict(zip(cases, record_elsewhere(processor, tasks), strict=True))


def export(graph, captured, batches, weight_range="safe", **widths):
    config = QuantConfig(weight_range=weight_range, **widths)
    target = get_target(config.target)
    annotated = annotate(copy.deepcopy(graph), target.rules, bit_widths(config))
    quantized = calibrate_ranges(insert_quantizers(annotated), batches)
    return export_quantized(quantized, captured, target, byte_input=True)


@pytest.fixture(scope="module")
def files(batches):
    short = [batch[:, :frames] for batch, frames in zip(batches, FRAMES, strict=False)]
    planned = cache(lambda network: plan(NETWORKS[network](), CROPPED, QuantConfig())[:2])

    def make(case):
        if case == "unsafe":
            captured, graph = planned("GaitBase")
            return export(graph, captured, short, weight_range="full")
        network, width = case.rsplit("-", 1)
        bits = dict(zip(("weight_bits", "activation_bits"), WIDTHS[width], strict=True))
        captured, graph = planned("kinds" if network == "table" else network)
        options = {"input_bits": 1} if network == "table" else {}
        return export(graph, captured, short, **bits, **options)

    feeds = [{"silhouettes": np.rint(batch.numpy() * 255).astype(np.uint8)} for batch in short]
    return Files(make, feeds)


@pytest.fixture(params=["avx2", "arm64"])
def processor(request):
    try:
        emulator(request.param)
    except ConfigError as error:
        pytest.skip(str(error))
    return request.param


@pytest.mark.parametrize("case", CASES)
def test_a_file_is_proven_to_give_the_same_integers_everywhere(files, case):
    assert prove_exactness(files.model(case)).exact


@pytest.mark.parametrize("case", CASES)
def test_no_byte_differs_here(files, case):
    model = files.model(case)
    verification = compare_with_reference(model, files.feeds, record(model, files.feeds, guarded=False))
    assert verification.differing == 0
    assert sum(tensor.values for tensor in verification.tensors) > 10_000


@pytest.mark.parametrize("case", CASES)
def test_no_byte_differs_on_an_emulated_processor(files, case, processor):
    recording = files.recorded_on(processor, case)
    verification = compare_with_reference(files.model(case), files.feeds[1:], recording)
    assert recording.saturates == (processor == "avx2")  # the emulated processor is of the kind that is meant
    assert sum(tensor.values for tensor in verification.tensors) > 10_000
    assert verification.differing == 0


def test_an_unsafe_file_gets_exact_kernels_on_an_emulated_processor(files, processor):
    recording = files.recorded_on(processor, "unsafe")
    assert not bound_pair_sums(files.model("unsafe")).safe
    assert compare_with_reference(files.model("unsafe"), files.feeds[1:], recording).differing == 0


# Without exact kernels at the end, as a program without this toolkit runs the file.
DEPLOYED = """
import json, sys, warnings
from pathlib import Path
import numpy as np
import qgait_ptq as qg
from qgait_ptq.verification import recording
folder = Path(sys.argv[1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    embedder = qg.Embedder(folder / "model.onnx", threads=1)
    embedding = embedder(np.load(folder / "silhouettes.npy"))
print(json.dumps([[str(w.message) for w in caught], embedding.tolist()]))
recording.exact_network = lambda network: network
recording._record_task(folder / "task")
"""


def save_unsafe_file(files, folder):
    """Write the unsafe file as version 0.1 wrote it: its metadata hold no proof."""
    model = onnx.ModelProto()
    model.CopyFrom(files.model("unsafe"))
    target = {"name": ONNXRUNTIME, "runtimes": [ONNXRUNTIME]}
    write_metadata(model, {"model": {}, "target": target})
    onnx.save(model, folder / "model.onnx")


@pytest.fixture(scope="module")
def deployed(files, tmp_path_factory):
    """The folder of an unsafe file that ran on emulated AVX2, and what the toolkit printed there."""
    try:
        command, environment = emulator("avx2")
    except ConfigError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("deployed")
    save_unsafe_file(files, folder)
    np.save(folder / "silhouettes.npy", files.feeds[0]["silhouettes"][0])
    write_task(folder / "task", files.model("unsafe"), files.feeds)
    done = subprocess.run(
        [*command, "-c", DEPLOYED, folder],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return folder, json.loads(done.stdout)


def test_the_saturating_reference_predicts_every_byte_of_an_unsafe_file(files, deployed):
    """Without exact kernels, on a processor that saturates: the reference knows what comes out."""
    folder, _ = deployed
    compare = partial(
        compare_with_reference, files.model("unsafe"), files.feeds, read_recording(folder / "task")
    )
    assert compare().differing > 0
    assert compare(saturating=True).differing == 0


def test_an_embedder_is_exact_with_an_unsafe_file_and_says_that_it_is_slower(files, deployed):
    folder, (messages, embedding) = deployed
    (message,) = messages
    assert "slower" in message
    assert "--weight-range safe" in message
    if not saturates(ONNXRUNTIME):
        silhouettes = files.feeds[0]["silhouettes"][0]
        expected = open_unguarded(folder / "model.onnx", threads=1).infer(silhouettes[None])[0]
        np.testing.assert_array_equal(np.array(embedding, np.float32), expected.T)


@pytest.mark.slow  # the command imports torch, in the emulator
def test_commands_warn_of_an_unsafe_file_in_one_line(files, tmp_path):
    try:
        command, environment = emulator("avx2")
    except ConfigError as error:
        pytest.skip(str(error))
    save_unsafe_file(files, tmp_path)
    arguments = ["embed", tmp_path / "model.onnx", tmp_path, "--out", tmp_path / "out.npz"]
    done = subprocess.run(
        [*command, "-c", "from qgait_ptq.cli.main import run; run()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 2  # the folder has no sequences
    lines = done.stderr.strip().splitlines()
    assert sum(line.startswith("qgait-ptq: warning: ") and "slower" in line for line in lines) == 1


def test_python_runs_the_recorder_without_torch():
    code = "import sys, qgait_ptq.verification.recording; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Each family is captured, quantized and exported, and the file computes what the simulation does.

Weights are random and batch norm statistics made up: what is tested is structure, not recognition.
"""

import pytest
import torch

from qgait_ptq.exporters.onnx_file import export_quantized
from qgait_ptq.gait.zoo import (
    DeepGaitV2P3D,
    GaitBase,
    GaitGL,
    GaitGraph,
    GaitPart,
    GaitSet,
    SkeletonGaitPlus,
    SmplGait,
    SwinGait,
)
from qgait_ptq.graph.conversion import in_double
from qgait_ptq.graph.frame_inputs import join_inputs
from qgait_ptq.graph.frame_layout import FrameInput, FrameLayout, InputKind
from qgait_ptq.placement.layers import count_parameters, list_layers
from qgait_ptq.runtime.exact_sessions import open_session
from qgait_ptq.runtime.sessions import run_session
from qgait_ptq.targets.registry import get_target
from qgait_ptq.verification.parity import layers_without_integer_kernel
from tests.conftest import make_gaitgl, randomise_batch_norms
from tests.networks import quantize_network

SILHOUETTES_AND_BODIES = FrameLayout(
    (
        FrameInput("silhouettes", (64, 44), InputKind.SILHOUETTES),
        FrameInput("bodies", (85,), InputKind.VALUES),
    )
)
SMALL = {
    "GaitSet": lambda: GaitSet(channels=(4, 8, 8), strips=(1, 2), embedding=16),
    "GaitPart": lambda: GaitPart(channels=(4, 8, 16), halvings=(0, 0, 1), parts=2, embedding=16),
    "GaitGL": make_gaitgl,
    "GaitBase": lambda: GaitBase(channels=(4, 8), strides=(1, 2), embedding=16),
    "DeepGaitV2-P3D": lambda: DeepGaitV2P3D(channels=(4, 8, 8, 16), blocks=(1, 1, 1, 1), embedding=16),
    "SkeletonGait++": lambda: SkeletonGaitPlus(channels=(4, 8, 8, 16), embedding=16),
    "SwinGait": lambda: SwinGait(channels=(4, 8), heads=2, blocks=2, embedding=16),
    "GaitGraph": lambda: GaitGraph(channels=(4,), embedding=16),
    "SMPLGait": lambda: join_inputs(SmplGait(channels=(4, 8, 8), embedding=16), SILHOUETTES_AND_BODIES),
}
FRAME_SHAPE = {
    "SkeletonGait++": (3, 64, 44),
    "GaitGraph": (17, 3),
    "SMPLGait": (SILHOUETTES_AND_BODIES.size,),
}
FULL_SIZE = {
    "GaitSet": 2.59,
    "GaitPart": 1.20,
    "GaitGL": 2.49,
    "GaitBase": 6.99,
    "DeepGaitV2-P3D": 13.2,
    "SMPLGait": 3.29,
}
FULL = {
    "GaitSet": GaitSet,
    "GaitPart": GaitPart,
    "GaitGL": GaitGL,
    "GaitBase": GaitBase,
    "DeepGaitV2-P3D": DeepGaitV2P3D,
    "SMPLGait": SmplGait,
}


def sequence(name, frames, batch=1):
    generator = torch.Generator().manual_seed(frames)
    shape = (batch, frames, *FRAME_SHAPE.get(name, (64, 44)))
    return (torch.rand(shape, generator=generator) < 0.3).float()


# tests/exporters/test_onnx_file.py exports the first two, and asserts the same. Layers of the others are
# exported in tests/processors (GaitGL, P3D) and tests/pipeline (maps of several channels, several inputs).
REPEATED = ("GaitBase", "GaitSet", "GaitPart", "GaitGL", "DeepGaitV2-P3D", "SkeletonGait++", "SMPLGait")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in REPEATED else []) for name in SMALL]
)
def test_a_family_is_captured_quantized_and_exported_with_all_its_layers_on_integers(name):
    torch.manual_seed(0)
    network = randomise_batch_norms(SMALL[name]())
    quantized = quantize_network(network, [sequence(name, frames) for frames in (9, 20)])
    assert (quantized.captured.batch, quantized.captured.frames) == (None, None)
    layers = list_layers(quantized.float_graph)
    stored = sum(p.numel() for p in network.parameters() if p.ndim > 1)
    assert 0.9 * stored <= count_parameters(layers) <= 1.2 * stored + 500  # biases, folded batch norms
    assert all(layer.integer for layer in layers)
    file = export_quantized(quantized.graph, quantized.captured, get_target("onnxruntime"))
    names = [layer.name for layer in layers]
    assert layers_without_integer_kernel(file.SerializeToString(), names) == []
    session, exact = open_session(file.SerializeToString(), spinning=False), in_double(quantized.graph)
    for frames, batch in ((6, 1), (17, 2), (40, 1)):
        given = torch.from_numpy(run_session(session, sequence(name, frames, batch).numpy())).flatten(1)
        expected = exact(sequence(name, frames, batch).double()).float().flatten(1)
        assert torch.cosine_similarity(given, expected).min() >= 0.999


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_networks_have_the_size_of_their_papers(name):
    with torch.device("meta"):
        network = FULL[name]()
    count = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert count == pytest.approx(FULL_SIZE[name], rel=0.01)

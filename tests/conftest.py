"""Small real networks and real walkers that the tests share."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import nn

import qgait_ptq as qg
from qgait_ptq.config.schema import IdcConfig
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.walkers.loading import render_walkers
from qgait_ptq.gait.walkers.population import TRIALS, Split, WalkerSettings, split_identities
from qgait_ptq.gait.walkers.rendering import write_walkers
from qgait_ptq.gait.zoo import GaitBase, GaitGL, GaitSet
from tests.remembered import remember_captures, remember_exports, remember_operators, shorten_speed

SHORT = 16  # frames
# Two residual blocks, with and without a convolution as shortcut. Each layer makes exports longer.
SHALLOW = {"channels": (8, 16), "strides": (1, 2)}
# Four residual blocks, for tests of which layers are found and what they get.
DEEP = {"channels": (8, 8, 16, 16), "strides": (1, 2, 1, 1)}

settings.register_profile("shared machines", deadline=None)
settings.load_profile("shared machines")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Collect garbage seldom: exports make many objects, and looking through all imported code takes long."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Spare each run what takes long and is the same each time."""
    remember_operators()
    remember_captures()
    remember_exports()
    shorten_speed()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the tests, and the programs that they run, a cache of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def randomise_batch_norms(network: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights as a trained network has them."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(0.2 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            with torch.no_grad():
                module.weight.copy_(0.5 + torch.rand(module.num_features, generator=generator))
                module.bias.copy_(0.2 * torch.randn(module.num_features, generator=generator))
    return network.eval()


def make_gaitbase(**changes: object) -> GaitBase:
    torch.manual_seed(0)
    arguments = {
        **SHALLOW,
        "stem_kernel": 5,
        "stem_stride": 2,
        "embedding": 16,
    }
    network = GaitBase(**{**arguments, **changes})
    randomise_batch_norms(network)
    return network


def make_gaitset(strips: tuple[int, ...] = (1, 2, 4)) -> GaitSet:
    torch.manual_seed(0)
    return GaitSet(channels=(4, 8, 8), strips=strips, embedding=16).eval()


def make_gaitgl() -> GaitGL:
    torch.manual_seed(0)
    network = GaitGL(channels=(4, 8, 8))
    for block in (network.block1, network.block2, network.block3):
        block.strips = 2  # instead of 8; each strip is a convolution of its own in the graph
    randomise_batch_norms(network)
    return network


@pytest.fixture
def gaitbase() -> GaitBase:
    return make_gaitbase()


@pytest.fixture
def gaitset() -> GaitSet:
    return make_gaitset()


@pytest.fixture(scope="session")
def walkers_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three walkers to calibrate with and three to test, from two views, in the OpenGait layout.

    Their sequences are shorter than those of other walkers.
    """
    root = tmp_path_factory.mktemp("walkers")
    settings = WalkerSettings(shortest=SHORT, longest=2 * SHORT)
    for split in (Split.TRAIN, Split.TEST):
        write_walkers(
            root, split, split_identities(split, 3), settings, views_per_trial=2, array_format="npz"
        )
    return root


@pytest.fixture(scope="session")
def walkers(walkers_root: Path) -> GaitDataset:
    return GaitDataset.from_directory(walkers_root)


@pytest.fixture(scope="session")
def few_walkers(walkers: GaitDataset) -> GaitDataset:
    """Twelve short sequences of the walkers, for tests that need a quantized file and not its accuracy."""
    chosen = walkers.choose(12)
    return GaitDataset.from_pairs((sequence[:SHORT], record.subject) for sequence, record in chosen)


@pytest.fixture(scope="session")
def eight_bits(few_walkers: GaitDataset) -> qg.QuantizationResult:
    """GaitBase in eight bits, for tests that read a result and its file, and change neither."""
    config = qg.QuantConfig(idc=IdcConfig(enabled=False))
    return qg.quantize(make_gaitbase(**SHALLOW), few_walkers, config, device="cpu")


@pytest.fixture(scope="session")
def eight_bit_file(eight_bits: qg.QuantizationResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eight_bits.save(tmp_path_factory.mktemp("eight_bits")) / "model.onnx"


@pytest.fixture(scope="session")
def batches(walkers: GaitDataset) -> list[torch.Tensor]:
    """Twelve real sequences of different lengths, ``[1, s, 64, 44]``."""
    return [torch.from_numpy(walkers[10 * i][0][: SHORT + i])[None].float() / 255 for i in range(12)]


@pytest.fixture(scope="session")
def people() -> GaitDataset:
    """Ten walkers with two walks each: the least that learning distances asks for, and two more."""
    return render_walkers(Split.CALIBRATION, 10, trials=TRIALS[:2], views_per_trial=1)

"""Errors about operators that cannot be written as ONNX."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import qgait_ptq as qg
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import ExportError
from qgait_ptq.exporters.exportability import wrongly_translated_nodes
from qgait_ptq.exporters.onnx_file import export_float
from qgait_ptq.gait import Split, render_walkers
from qgait_ptq.placement.planning import plan


class SingularValues(nn.Module):
    """The exporter turns `svdvals` into another operator, and takes the in-place LeakyReLU."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(1, 4, (3, 5, 5), (1, 4, 4), (1, 2, 2))

    def forward(self, silhouettes):
        maps = functional.leaky_relu(self.conv(silhouettes.unsqueeze(1)), inplace=True)
        return torch.linalg.svdvals(maps.mean(2))


def test_the_error_names_the_operator_that_fails_and_no_other():
    captured, network, _ = plan(SingularValues().eval(), (16, 12), QuantConfig())
    assert "leaky_relu_" in {node.name for node in network.graph.nodes}
    with pytest.raises(ExportError, match=r"does not support linalg_svdvals at \S+:\d+\. Replace"):
        export_float(network, captured, 21)


class Recurrent(nn.Module):
    """An LSTM over frames, with or without projections."""

    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3, 4)
        self.lstm = nn.LSTM(4, 6, batch_first=True, **settings)

    def forward(self, silhouettes):
        n, s, h, w = silhouettes.shape
        rows = self.conv(silhouettes.reshape(n * s, 1, h, w)).relu().mean((2, 3)).reshape(n, s, 4)
        return self.lstm(rows)[0][:, -1]


@pytest.mark.parametrize("settings", [{}, {"bias": False, "bidirectional": True, "num_layers": 2}])
def test_projections_of_an_lstm_are_noticed(settings):
    for projected in (0, 3):
        _, network, _ = plan(Recurrent(**settings, proj_size=projected).eval(), (16, 12), QuantConfig())
        wrong = [node.name for node in wrongly_translated_nodes(network)]
        assert wrong == (["lstm"] if projected else [])


def test_projections_of_an_lstm_are_refused_before_calibration():
    walkers = render_walkers(Split.CALIBRATION, 2, views_per_trial=1)
    with pytest.raises(ExportError, match=r"no projections \(proj_size\) for lstm at \S+:\d+\. Replace"):
        qg.prepare(Recurrent(proj_size=3).eval(), qg.GaitData(walkers, walkers), QuantConfig(), device="cpu")

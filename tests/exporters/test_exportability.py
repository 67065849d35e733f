"""Errors about operators that cannot be written as ONNX."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import ExportError
from qgait_ptq.exporters.onnx_file import export_float
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

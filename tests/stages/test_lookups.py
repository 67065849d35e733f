"""Index errors of operators, and of code."""

import pytest
import torch
from torch import fx, nn

from qgait_ptq.errors import DataError
from qgait_ptq.stages.lookups import checked_lookups


def test_an_index_that_a_table_does_not_have_is_an_error_of_the_data():
    network = nn.Embedding(4, 2)
    graph = torch.export.export(network, (torch.tensor([1]),)).module()
    assert isinstance(graph, fx.GraphModule)
    message = r"ranges: the network looks up an index .* \(index out of range in self\)"
    with pytest.raises(DataError, match=message), checked_lookups("ranges"):
        graph(torch.tensor([4]))


class OneHot(nn.Module):
    def forward(self, labels):
        return nn.functional.one_hot(labels, 4)


def test_a_label_without_a_class_is_an_error_of_the_data():
    graph = torch.export.export(OneHot(), (torch.tensor([1]),)).module()
    with pytest.raises(DataError, match="Class values must be"), checked_lookups("ranges"):
        graph(torch.tensor([4]))


def test_an_index_error_of_code_stays_a_bug():
    with pytest.raises(IndexError), checked_lookups("ranges"):
        [].pop()
    with pytest.raises(IndexError), checked_lookups("ranges"):
        torch.zeros(3)[5]

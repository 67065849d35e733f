"""The inputs of a graph with several: which integers the network takes."""

import pytest
import torch
from torch import nn

from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.graph.frame_inputs import largest_integers
from qgait_ptq.graph.frame_layout import FrameInput, FrameLayout, InputKind
from qgait_ptq.placement.planning import plan

LAYOUT = FrameLayout(
    (
        FrameInput("silhouettes", (16, 11), InputKind.SILHOUETTES),
        FrameInput("labels", (2,), InputKind.INTEGERS),
    )
)


class LooksUp(nn.Module):
    """Two labels of each frame, in tables of 5 and 9 entries."""

    def __init__(self, indices):
        super().__init__()
        torch.manual_seed(0)
        self.indices, self.linear = indices, nn.Linear(8, 12)
        self.tables = nn.ModuleList([nn.Embedding(5, 8), nn.Embedding(9, 8)])

    def forward(self, silhouettes, labels):
        looked_up = sum(
            table(one).flatten(2) for table, one in zip(self.tables, self.indices(labels), strict=True)
        )
        return self.linear(looked_up[..., :8].amax(1) + silhouettes.mean((2, 3)).amax(1, keepdim=True))


@pytest.mark.parametrize(
    ("indices", "largest"),
    [
        (lambda labels: (labels, labels.long().flatten(1).view(labels.shape)), {"labels": 4}),
        (lambda labels: (labels[..., 0], labels[..., 1]), {}),  # each has a limit of its own
        (lambda labels: (labels + 1, labels.clamp(0, 8)), {}),
    ],
    ids=["as given", "one of several", "computed"],
)
def test_integers_are_limited_by_the_smallest_table_that_reads_them_as_they_are(indices, largest):
    _, network, _ = plan(LooksUp(indices).eval(), (LAYOUT.size,), QuantConfig(), layout=LAYOUT)
    assert largest_integers(network) == largest


class OneHot(nn.Module):
    """Two labels of each frame, of seven classes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 12)

    def forward(self, silhouettes, labels):
        classes = nn.functional.one_hot(labels, 7).float().mean(2)
        return self.linear(classes.amax(1) + silhouettes.mean((2, 3)).amax(1, keepdim=True))


def test_the_classes_of_one_hot_are_a_limit():
    _, network, _ = plan(OneHot().eval(), (LAYOUT.size,), QuantConfig(), layout=LAYOUT)
    assert largest_integers(network) == {"labels": 6}

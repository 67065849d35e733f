"""Integers in a file of weights: refused where the network has floating weights, taken where they belong."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qgait_ptq.capture.loading import load_model
from qgait_ptq.errors import ModelError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.register_buffer("mask", torch.tensor([0.0, 1.0, 1.0]))
        self.register_buffer("steps", torch.tensor(0.0))
        self.register_buffer("order", torch.tensor([2, 0, 1]))


def write(path, weights):
    save = save_file if path.suffix == ".safetensors" else torch.save
    save(weights, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_integers_in_the_place_of_weights_are_refused_by_name(kind, suffix, tmp_path):
    """Their scale is missing: the network would have weights of up to 127."""
    weights = Net().state_dict()
    weights["conv.weight"] = (100 * weights["conv.weight"].abs()).to(kind)
    name = str(kind).removeprefix("torch.")
    with pytest.raises(
        ModelError, match=rf"conv\.weight has the type {name}, but the network has float32 there"
    ):
        load_model(write(tmp_path / f"model{suffix}", weights), Net)


def test_statistics_as_integers_are_refused_by_name(tmp_path):
    weights = Net().state_dict()
    weights["norm.running_mean"] = torch.tensor([3, -80, 5, 0], dtype=torch.int8)
    with pytest.raises(ModelError, match=r"norm\.running_mean has the type int8"):
        load_model(write(tmp_path / "model.pt", weights), Net)


@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.int64])
def test_masks_counts_and_indices_are_taken_as_integers(kind, tmp_path):
    weights = Net().state_dict()
    weights["mask"], weights["steps"] = weights["mask"].to(kind), torch.tensor(700)
    network = load_model(write(tmp_path / "model.pt", weights), Net).network
    assert network.mask.tolist() == [0.0, 1.0, 1.0]
    assert network.steps.tolist() == 700.0
    assert network.order.tolist() == [2, 0, 1]
    assert network.norm.num_batches_tracked == 0


def test_a_table_of_indices_in_a_floating_buffer_is_taken(tmp_path):
    weights = Net().state_dict()
    weights["mask"] = torch.tensor([2, 5, 7])
    assert load_model(write(tmp_path / "model.pt", weights), Net).network.mask.tolist() == [2.0, 5.0, 7.0]

"""The copy of a network that is captured: plain weights, no wrappers, and the user's network unchanged."""

import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from qgait_ptq.capture.own_copy import copy_network
from qgait_ptq.capture.submodule import isolate
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import CaptureError
from qgait_ptq.placement.planning import plan


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.embed = nn.Conv2d(1, 8, 5, 4, 2), nn.BatchNorm2d(8), nn.Linear(8, 16)

    def forward(self, silhouettes):
        n, s, h, w = silhouettes.shape
        maps = self.norm(self.conv(silhouettes.reshape(n * s, 1, h, w))).relu()
        return self.embed(maps.mean((2, 3)).reshape(n, s, 8).amax(1))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight + 1


class InDouble(nn.Module):
    def forward(self, weight):
        return weight.double()


def changed(change):
    network = Tiny()
    change(network)
    return network


def with_custom(network):
    parametrize.register_parametrization(network.embed, "weight", Doubled())
    parametrize.register_parametrization(network.embed, "weight", Doubled())
    parametrize.register_parametrization(network.embed, "bias", Doubled())


def pruned_twice(network):
    prune.l1_unstructured(network.conv, "weight", 0.5)
    prune.random_unstructured(network.conv, "weight", 0.3)
    prune.l1_unstructured(network.embed, "bias", 2)


def pruned_and_normalized(network):
    weight_norm(network.conv)
    prune.l1_unstructured(network.conv, "weight_v", 0.5)


COMPUTED = {
    "weight_norm": lambda n: weight_norm(n.conv),
    "weight_norm of all": lambda n: [weight_norm(n.conv, dim=None), weight_norm(n.embed)],
    "spectral_norm": lambda n: spectral_norm(n.conv),
    "parametrizations.weight_norm": lambda n: parametrizations.weight_norm(n.conv),
    "parametrizations.spectral_norm": lambda n: parametrizations.spectral_norm(n.embed),
    "parametrizations.orthogonal": lambda n: parametrizations.orthogonal(n.embed),
    "custom": with_custom,
    "prune": lambda n: prune.l1_unstructured(n.conv, "weight", 0.5),
    "prune channels": lambda n: prune.ln_structured(n.conv, "weight", 0.5, n=2, dim=0),
    "prune twice": pruned_twice,
    "prune of weight_norm": pruned_and_normalized,
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_are_plain_in_the_copy_and_stay_computed_in_the_network(name, training):
    network, silhouettes = changed(COMPUTED[name]), torch.rand(2, 5, 32, 22)
    network.train()(silhouettes)
    expected = network.eval()(silhouettes).detach()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train(training)
    copied = copy_network(network)
    assert set(dict(copied.named_parameters())) == set(dict(Tiny().named_parameters()))
    torch.testing.assert_close(copied(silhouettes), expected)
    assert network.training == training
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    torch.testing.assert_close(network.eval()(silhouettes), expected)
    network.train()(silhouettes).sum().backward()


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights_are_quantized_under_the_name_of_their_layer(name):
    _, _, layers = plan(changed(COMPUTED[name]).eval(), (32, 22), QuantConfig())
    assert [(layer.name, layer.weight_bits) for layer in layers] == [("conv", 8), ("embed", 8)]


def test_computed_weights_in_a_submodule(monkeypatch):
    part = isolate(changed(COMPUTED["weight_norm"]).eval(), "conv", (32, 22))
    assert list(dict(part.as_network.named_parameters())) == ["conv.bias", "conv.weight"]


def test_a_recurrent_layer_computes_with_its_normalized_weight():
    lstm = nn.Sequential(weight_norm(nn.LSTM(4, 5), "weight_hh_l0")).eval()
    given = torch.rand(3, 2, 4)
    torch.testing.assert_close(copy_network(lstm)(given)[0], lstm(given)[0])


def test_a_type_that_a_parametrization_changes_becomes_float32():
    network = changed(
        lambda n: parametrize.register_parametrization(n.embed, "weight", InDouble(), unsafe=True)
    )
    assert copy_network(network).embed.weight.dtype == torch.float32


def test_tensors_that_were_computed_with_gradients_are_copied():
    network = Tiny()
    network.kept = {"scaled": [network.embed.weight * 2]}
    network.again = network.kept["scaled"][0]
    copied = copy_network(network)
    assert torch.equal(copied.again, network.again)
    assert copied.again is copied.kept["scaled"][0]
    assert not copied.again.requires_grad


WRAPPED = {
    "DataParallel": nn.DataParallel,
    "compile": torch.compile,
    "both": lambda module: torch.compile(nn.DataParallel(module)),
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_are_left_out_around_a_network_and_inside(name):
    silhouettes = torch.rand(2, 5, 32, 22)
    inside = Tiny()
    inside.conv = WRAPPED[name](inside.conv)
    for network in (WRAPPED[name](Tiny()), inside):
        _, _, layers = plan(network.eval(), (32, 22), QuantConfig())
        assert [layer.name for layer in layers] == ["conv", "embed"]
        torch.testing.assert_close(copy_network(network)(silhouettes), Tiny().eval()(silhouettes))
    assert type(inside.conv) is type(WRAPPED[name](nn.ReLU()))


def test_wrappers_of_a_process_group_are_left_out(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        inside = Tiny()
        inside.conv = nn.parallel.DistributedDataParallel(inside.conv)
        for network in (nn.parallel.DistributedDataParallel(Tiny()), inside):
            assert list(copy_network(network).state_dict()) == list(Tiny().state_dict())
    finally:
        torch.distributed.destroy_process_group()


def on_meta(network):
    return network.to("meta")


def with_lazy(network):
    network.embed = nn.LazyLinear(16)
    return network


def with_scripted(network):
    network.embed = torch.jit.script(network.embed)
    return network


def with_quantized(network):
    return torch.ao.quantization.quantize_dynamic(network.eval(), {nn.Linear})


def with_fake_quantize(network):
    network.embed = nn.Sequential(network.embed, torch.ao.quantization.FakeQuantize())
    return network


def with_subclass(network):
    class Wrapped(torch.Tensor):
        def __tensor_flatten__(self):
            return [], None

    network.embed.weight = nn.Parameter(network.embed.weight.detach().as_subclass(Wrapped))
    return network


REFUSED = {
    "scripted": (lambda n: torch.jit.script(n.eval()), "TorchScript.*load_state_dict"),
    "traced": (lambda n: torch.jit.trace(n.eval(), torch.rand(2, 5, 32, 22)), "TorchScript.*load_state_dict"),
    "scripted inside": (with_scripted, "module embed .*TorchScript"),
    "lazy": (with_lazy, "module embed .*has no weights yet"),
    "meta": (on_meta, "module conv .*meta device"),
    "quantized": (with_quantized, "module embed .*quantized already"),
    "fake-quantized": (with_fake_quantize, "module embed.1 .*a quantizer of torch.ao"),
    "tensor subclass": (with_subclass, "module embed .*tensor subclass"),
    "exported": (
        lambda n: torch.export.export(n.eval(), (torch.rand(2, 5, 32, 22),)),
        r"of type ExportedProgram, not.*program.module\(\)",
    ),
    "path": (lambda n: "model.pt", "of type str, not a torch.nn.Module"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_with_its_place_and_what_to_do(name):
    make, message = REFUSED[name]
    network = make(Tiny())
    with pytest.raises(CaptureError, match=message):
        plan(network, (32, 22), QuantConfig())


@pytest.mark.filterwarnings("ignore")
def test_the_advice_for_torchscript_and_lazy_modules_works():
    scripted = torch.jit.script(Tiny().eval())
    network = Tiny()
    network.load_state_dict(scripted.state_dict())
    plan(network, (32, 22), QuantConfig())
    lazy = with_lazy(Tiny())
    lazy.load_state_dict(Tiny().state_dict())
    plan(lazy, (32, 22), QuantConfig())


def test_an_attribute_that_cannot_be_copied_is_named():
    network = Tiny()
    network.conv.log = {"lock": threading.Lock()}
    with pytest.raises(
        CaptureError, match=r"because of network.conv.log, a dict.*Set network.conv.log to None"
    ):
        plan(network, (32, 22), QuantConfig())
    network.conv.log = None
    plan(network, (32, 22), QuantConfig())

"""Which weights of a checkpoint are taken, what is said of the others, and names with parts of wrappers."""

import re
import shlex

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qgait_ptq.capture.loading import load_model
from qgait_ptq.errors import ModelError


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width)
        self.body = nn.Sequential(nn.Linear(width, width), nn.Linear(width, 2))


def make_net(width=4):
    return Net(width)


def weights(seed):
    torch.manual_seed(seed)
    return Net().state_dict()


RAW, AVERAGE = weights(0), weights(1)
PARAMETERS = {name: value for name, value in AVERAGE.items() if name.rpartition(".")[2] in ("weight", "bias")}


def under(prefix, given):
    return {f"{prefix}{name}": value for name, value in given.items()}


@pytest.fixture
def load(tmp_path):
    def save_and_load(content, key=None, factory=make_net, **options):
        torch.save(content, tmp_path / "last.ckpt")
        return load_model(tmp_path / "last.ckpt", factory, checkpoint_key=key, **options)

    return save_and_load


def holds(loaded, given):
    own = loaded.network.state_dict()
    return own.keys() == given.keys() and all(torch.equal(own[name], value) for name, value in given.items())


def key_in(text):
    """The key that a message tells the user to pass."""
    return shlex.split(re.search(r"--checkpoint-key (.*?)(?:\s\(|$)", text)[1])[0]


WITH_AVERAGE = {
    "ema": ({"model": RAW, "ema": AVERAGE}, "ema"),
    "ema_state_dict": ({"state_dict": RAW, "ema_state_dict": AVERAGE}, "ema_state_dict"),
    "ema_model": ({"model_state_dict": RAW, "ema_model": AVERAGE}, "ema_model"),
    "torchvision": (
        {"model": RAW, "model_ema": {"n_averaged": torch.tensor(9), **under("module.", AVERAGE)}},
        "model_ema",
    ),
    "timm": (
        {"state_dict": RAW, "state_dict_ema": under("module.", AVERAGE), "version": 2},
        "state_dict_ema",
    ),
    "Lightning callback": (
        {
            "state_dict": under("model.", RAW),
            "callbacks": {"EMACallback": {"ema_state_dict": under("model.", AVERAGE)}},
        },
        "callbacks.EMACallback.ema_state_dict",
    ),
    "Lightning attribute": (
        {"state_dict": {**under("model.", RAW), **under("ema_model.", AVERAGE)}},
        "state_dict.ema_model",
    ),
    "ema_pytorch": (
        {
            "model": RAW,
            "ema": {"step": torch.tensor(9), **under("ema_model.", AVERAGE), **under("online.", RAW)},
        },
        "ema.ema_model",
    ),
    "beside the weights": ({**RAW, "ema": AVERAGE}, "ema"),
    "unusual key": ({"net": RAW, "net_ema": AVERAGE}, "net_ema"),
    "nested": ({"checkpoint": {"model": RAW, "model_swa": AVERAGE}}, "checkpoint.model_swa"),
}


@pytest.mark.parametrize("name", WITH_AVERAGE)
def test_an_average_is_named_and_taken_if_its_key_is_passed(name, load):
    content, key = WITH_AVERAGE[name]
    loaded = load(content)
    assert holds(loaded, RAW)
    (note,) = (note for note in loaded.notes if note.startswith("also in the file"))
    assert "an averaged copy (EMA)" in note
    assert key_in(note) == key
    averaged = load(content, key)
    assert holds(averaged, AVERAGE)
    assert "an averaged copy (EMA)" in averaged.notes[0]
    assert holds(load(content, key_in(next(n for n in averaged.notes if n.startswith("also")))), RAW)


def test_the_weights_that_were_taken_are_named_with_what_was_removed(load):
    loaded = load({"state_dict": under("module.", RAW), "epoch": 3})
    assert loaded.notes == (
        "weights taken from 'state_dict' of last.ckpt; removed from their names: 'module.'",
    )
    assert loaded.checkpoint_key == "state_dict"


def test_averages_in_place_of_the_weights_are_named(load):
    """Lightning's WeightAveraging."""
    content = {"state_dict": AVERAGE, "current_model_state": RAW, "averaging_state": {}}
    loaded = load(content)
    assert holds(loaded, AVERAGE)
    assert any("'state_dict' is the average" in note for note in loaded.notes)
    assert holds(load(content, "current_model_state"), RAW)


@pytest.mark.parametrize(
    ("average", "name"),
    [
        ({"shadow": PARAMETERS, "decay": 0.9}, "ema.shadow"),
        ({"shadow_params": list(PARAMETERS.values()), "decay": 0.9}, "ema.shadow_params"),
    ],
)
def test_an_average_that_cannot_be_taken_is_named_too(average, name, load):
    loaded = load({"model": RAW, "ema": average})
    assert holds(loaded, RAW)
    (note,) = (note for note in loaded.notes if name in note)
    assert "averaged" in note
    assert "save" in note
    with pytest.raises(ModelError, match=r"averaged|no dictionary of tensors"):
        load({"model": RAW, "ema": average}, name)


def test_averages_with_names_of_their_own_are_named(load):
    flat = {f"model_ema.{name.replace('.', '')}": value for name, value in PARAMETERS.items()}
    loaded = load({"state_dict": {**RAW, **flat}})
    assert any("'model_ema', an averaged copy" in note for note in loaded.notes)
    assert loaded.left_out == ("model_ema",)


PREFIXES = {
    "module.": "module.{}".format,
    "_orig_mod.": "_orig_mod.{}".format,
    "module._orig_mod.": "module._orig_mod.{}".format,
    "_orig_mod.module.": "_orig_mod.module.{}".format,
    "compiled block": lambda name: name.replace("body.1.", "body.1._orig_mod."),
    "compiled block in DataParallel": lambda name: "module." + name.replace("body.", "body._orig_mod."),
    "model.": "model.{}".format,
    "net.": "net.{}".format,
    "network.": "network.{}".format,
    "encoder.": "encoder.{}".format,
    "an attribute of any name": "my_backbone.inner.{}".format,
    "model._orig_mod.": "model._orig_mod.{}".format,
    "module.model.": "module.model.{}".format,
}


@pytest.mark.parametrize("name", PREFIXES)
def test_prefixes_are_removed_where_names_match_without(name, load):
    loaded = load({"state_dict": {PREFIXES[name](key): value for key, value in RAW.items()}})
    assert holds(loaded, RAW)
    assert "removed from their names" in loaded.notes[0]


@pytest.mark.parametrize("name", PREFIXES)
def test_prefixes_are_removed_in_safetensors_too(name, tmp_path):
    save_file({PREFIXES[name](key): value.clone() for key, value in RAW.items()}, tmp_path / "w.safetensors")
    assert holds(load_model(tmp_path / "w.safetensors", make_net), RAW)


def test_names_of_the_network_itself_are_kept(load):
    """A network may have a module of the name that a wrapper has."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.model = nn.Linear(2, 2), nn.Linear(2, 2)

    given = Outer().state_dict()
    for prefix in ("", "module.", "_orig_mod.", "model."):
        assert holds(load({"model": under(prefix, given)}, factory=Outer), given)


def test_a_network_in_a_wrapper_gets_its_weights(load):
    def parallel():
        return nn.DataParallel(Net())

    for given in (RAW, under("module.", RAW), under("model.", RAW)):
        assert holds(load({"model": given}, factory=parallel), RAW)


@pytest.mark.parametrize("key", ["net", "encoder", "network", "generator", "model_state", "weights", "a.b"])
def test_the_only_entry_that_fits_is_taken(key, load):
    content = {"epoch": 3, "discriminator": nn.Sequential(nn.Linear(3, 3)).state_dict()}
    inner = content
    for part in key.split(".")[:-1]:
        inner = inner.setdefault(part, {})
    inner[key.rpartition(".")[2]] = RAW
    loaded = load(content)
    assert holds(loaded, RAW)
    assert loaded.checkpoint_key == key
    assert "do not fit the network: discriminator" in loaded.notes[-1]


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"best": RAW, "last": AVERAGE}, ["best", "last"]),
        ({"nets": [RAW, AVERAGE]}, ["nets.0", "nets.1"]),
        (
            {"state_dict": {**under("encoder_q.", RAW), **under("encoder_k.", AVERAGE)}},
            ["state_dict.encoder_q", "state_dict.encoder_k"],
        ),
        ({"ema": {"first": RAW, "second": AVERAGE}}, ["ema.first", "ema.second"]),
    ],
)
def test_several_entries_that_fit_are_listed_and_can_be_chosen(content, keys, load):
    with pytest.raises(ModelError) as caught:
        load(content)
    assert all(key in str(caught.value) for key in keys)
    assert key_in(str(caught.value)) == keys[0]
    assert holds(load(content, keys[0]), RAW)
    assert holds(load(content, keys[1]), AVERAGE)


def test_entries_that_share_their_tensors_are_no_choice(load):
    assert holds(load({"net": RAW, "weights": dict(RAW)}), RAW)


def test_names_with_dots_can_be_part_of_a_key(load):
    content = {"step.9": {"net": RAW}, "step": {"9": {"net": AVERAGE}}}
    assert holds(load(content, "step.9.net"), RAW)
    assert holds(load({**RAW, "model": AVERAGE}, "."), RAW)


def test_a_key_that_is_not_there_is_refused_with_those_that_are(load):
    with pytest.raises(ModelError, match=r"no entry 'modell'.*Keys at the top: model, epoch.*tensors: model"):
        load({"model": RAW, "epoch": 3}, "modell")
    with pytest.raises(ModelError, match=r"no dictionary of tensors at 'epoch'.*model"):
        load({"model": RAW, "epoch": 3}, "epoch")


def test_a_key_is_refused_for_files_with_one_network(tmp_path):
    torch.save(Net(), tmp_path / "net.pt")
    with pytest.raises(ModelError, match="leave out --checkpoint-key"):
        load_model(tmp_path / "net.pt", trust_code=True, checkpoint_key="model")


def test_what_does_not_fit_is_shown_with_both_kinds_of_names(load):
    renamed = {name.replace("body", "layers"): value for name, value in under("module.", RAW).items()}
    with pytest.raises(ModelError) as caught:
        load({"model": renamed})
    text = str(caught.value)
    assert "4 of 10 missing (body.0.weight" in text
    assert "Names in the file: module.layers.0.weight" in text
    assert "in the network: body.0.weight" in text
    assert "removed from the names in the file: 'module.'" in text
    assert "--factory, --model-argument" in text
    assert "save the weights again with the names in the network" in text
    # which works:
    assert holds(load({name.replace("module.layers", "body"): v for name, v in renamed.items()}), RAW)


def test_partial_matches_are_refused(load):
    for lost in ("conv.weight", "norm.running_mean", "body.1.bias"):
        for prefix in ("", "module.", "model."):
            given = under(prefix, {name: value for name, value in RAW.items() if name != lost})
            with pytest.raises(ModelError, match=rf"1 of 10 missing \({lost}\)"):
                load({"model": given})


def test_other_sizes_lead_to_the_arguments_of_the_network(load):
    content = {"model": Net(8).state_dict()}
    with pytest.raises(ModelError, match=r"conv.weight \[8, 1, 3, 3\] instead of \[4, .*--model-argument"):
        load(content)
    assert load(content, arguments={"width": 8}).network.conv.out_channels == 8


def test_another_entry_that_fits_is_named_where_the_one_of_the_key_does_not(load):
    content = {"model": RAW, "head": under("x.", Net(8).state_dict())}
    with pytest.raises(ModelError) as caught:
        load(content, "head")
    assert key_in(str(caught.value)) == "model"


def test_parametrized_weights_lead_to_a_network_that_has_them(load):
    def normalized():
        net = Net()
        net.conv = nn.utils.weight_norm(net.conv)
        return net

    def parametrized():
        net = Net()
        nn.utils.parametrizations.weight_norm(net.conv)
        return net

    torch.manual_seed(0)
    given = normalized().state_dict()
    with pytest.raises(ModelError, match="Create the network with it, too"):
        load({"model": given})
    with pytest.raises(ModelError, match="create it without"):
        load({"model": RAW}, factory=normalized)
    assert holds(load({"model": given}, factory=normalized), given)
    # The newer form takes the names of the older one by itself.
    for prefix in ("", "module."):
        newer = load({"model": under(prefix, given)}, factory=parametrized).network
        torch.testing.assert_close(newer.conv.parametrizations.weight.original1, given["conv.weight_v"])


def test_lazy_networks_and_those_without_memory_get_their_weights(load):
    class Lazy(Net):
        def __init__(self):
            super().__init__()
            self.body[1] = nn.LazyLinear(2)

    def on_meta():
        with torch.device("meta"):
            return Net()

    assert holds(load({"model": RAW}, factory=Lazy), RAW)
    assert holds(load({"model": RAW}, factory=on_meta), RAW)


def test_state_of_another_kind_is_named(load):
    class Counting(Net):
        def get_extra_state(self):
            return {"seen": 3}

        def set_extra_state(self, state):
            raise AssertionError

    loaded = load({"model": Counting().state_dict()}, factory=Counting)
    assert any("_extra_state" in note for note in loaded.notes)


def test_optimizers_are_not_taken_for_weights(load):
    net = Net()
    optimizer = torch.optim.Adam(net.parameters())
    net.body(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    loaded = load({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3})
    assert len(loaded.notes) == 1

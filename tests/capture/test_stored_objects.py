"""What a checkpoint holds beside tensors is read without running code, or refused with its name."""

import argparse
import collections
import datetime
import enum
import io
import pathlib
import pickle
import sys
import types
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from qgait_ptq.capture.loading import load_model
from qgait_ptq.capture.pickles import survey_pickles
from qgait_ptq.capture.stand_ins import stand_ins
from qgait_ptq.errors import ModelError
from qgait_ptq.gait.zoo import NETWORKS, gaitbase_small


def make_net():
    return nn.Linear(4, 2)


class Config:
    """Settings of a training script."""

    def __init__(self):
        self.lr = 0.1

    def __setstate__(self, state):
        raise AssertionError("code of the file's class was run")


@dataclass
class Settings:
    lr: float = 0.1
    channels: tuple[int, ...] = (1, 2)


class Attributes(dict):
    """A dictionary with attributes, such as EasyDict and CfgNode."""

    def __init__(self, **values):
        super().__init__(**values)
        self.__dict__.update(values)


class Mode(enum.Enum):
    FAST = 1


def config_tree():
    """Objects that know each other, as those of OmegaConf do."""
    outer, inner = Config(), Config()
    outer.content, inner.parent = (
        {"inner": inner, "kind": Config, "flags": collections.defaultdict(dict)},
        outer,
    )
    return outer


BESIDE = {
    "version": "1.0",
    "torch version": torch.__version__,
    "numpy scalar": np.float64(0.9),
    "numpy integer": np.int64(3),
    "numpy text": np.str_("a"),
    "numpy type": np.dtype("float32"),
    "numpy array": np.arange(3),
    "numpy generator": np.random.default_rng(0),
    "numpy state": np.random.RandomState(0).get_state(),
    "Namespace": argparse.Namespace(lr=0.1, out=pathlib.Path("/tmp/out")),
    "path": pathlib.PurePosixPath("/a/b"),
    "Windows path": pathlib.PureWindowsPath("c:/a/b"),
    "OrderedDict": collections.OrderedDict(a=1),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "Counter": collections.Counter("abc"),
    "deque": collections.deque([1, 2]),
    "SimpleNamespace": types.SimpleNamespace(a=1),
    "object": Config(),
    "objects in a ring": config_tree(),
    "dataclass": Settings(),
    "dictionary of a class": Attributes(a=1, b=Attributes(c=2)),
    "time": datetime.datetime(2026, 1, 1),
    "duration": datetime.timedelta(3),
    "class": Config,
    "function": make_net,
    "set": {1, 2},
    "frozenset": frozenset({1}),
    "slice": slice(1, 2),
    "range": range(3),
    "complex": 1j,
    "bytes": b"abc",
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", BESIDE)
def test_objects_beside_the_weights_need_no_trust(name, legacy, tmp_path):
    given = make_net().state_dict()
    for content in ({"model": given, "extra": BESIDE[name]}, {**given, "extra": [BESIDE[name]]}):
        torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy)
        loaded = load_model(tmp_path / "c.pt", make_net)
        assert torch.equal(loaded.network.weight, given["weight"])


def test_values_among_the_weights_are_named(tmp_path):
    torch.save({**make_net().state_dict(), "version": "1.0"}, tmp_path / "c.pt")
    assert "ignored: version" in load_model(tmp_path / "c.pt", make_net).notes[-1]


def test_packages_that_are_not_installed_are_not_needed(tmp_path, monkeypatch):
    package = types.ModuleType("training_settings")
    package.Config = Config
    monkeypatch.setitem(sys.modules, "training_settings", package)
    monkeypatch.setattr(Config, "__module__", "training_settings")
    torch.save({"model": make_net().state_dict(), "config": Config()}, tmp_path / "c.pt")
    monkeypatch.delitem(sys.modules, "training_settings")
    load_model(tmp_path / "c.pt", make_net)
    assert "training_settings" not in sys.modules


@pytest.mark.parametrize("legacy", [False, True])
def test_what_would_be_called_is_refused_by_name_and_read_with_trust(legacy, tmp_path):
    given = make_net().state_dict()
    torch.save(
        {"model": given, "mode": Mode.FAST}, tmp_path / "c.pt", _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(ModelError, match=rf"without running code \({__name__}.Mode\).*--trust-code"):
        load_model(tmp_path / "c.pt", make_net)
    loaded = load_model(tmp_path / "c.pt", make_net, trust_code=True)
    assert torch.equal(loaded.network.weight, given["weight"])


def test_pickled_modules_in_a_checkpoint_are_refused_by_name_and_taken_with_trust(tmp_path):
    first, second = make_net(), make_net()
    torch.save({"model": first, "ema": second, "epoch": 3}, tmp_path / "c.pt")
    with pytest.raises(
        ModelError, match=r"pickled module \(torch.nn.modules.linear.Linear at 'model'.*--trust"
    ):
        load_model(tmp_path / "c.pt", make_net)
    for factory in (None, make_net):
        loaded = load_model(tmp_path / "c.pt", factory, trust_code=True)
        assert torch.equal(loaded.network.weight, first.weight)
        assert any("ema" in note for note in loaded.notes)
        loaded = load_model(tmp_path / "c.pt", factory, trust_code=True, checkpoint_key="ema")
        assert torch.equal(loaded.network.weight, second.weight)


def archive(path, pickled):
    """A file as torch.save writes it, around a pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", pickled)
        file.writestr("a/version", "3\n")
        file.writestr("a/byteorder", "little")


class Hiding:
    """Is read as a dictionary with attributes of the names of methods."""

    def __init__(self, state, **values):
        self.reduced = (collections.OrderedDict, (), state, None, iter(values.items()))

    def __reduce__(self):
        return self.reduced


class Call:
    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    "make",
    [
        lambda: Call(open, "victim", "w"),
        lambda: Call(exec, "open('victim', 'w')"),
        lambda: Call(getattr, Config, "lr"),
        lambda: Call(torch._tensor._rebuild_from_type_v2, open, torch.Tensor, ("victim", "w"), {}),
        lambda: Call(torch._tensor._rebuild_from_type_v2, Config, Config, (), {"a": 1}),
        lambda: Call(torch._utils._rebuild_wrapper_subclass, Config, *[None] * 8),
        lambda: Call(collections.OrderedDict, open, "victim"),
        lambda: Call(Mode, 1),
    ],
)
@pytest.mark.parametrize("place", ["beside", "inside", "as a key"])
def test_calls_are_never_made(make, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extra = {"beside": make(), "inside": argparse.Namespace(a=[make()]), "as a key": {make(): 1}}[place]
    archive(tmp_path / "c.pt", pickle.dumps({"model": {}, "extra": extra}, protocol=2))
    with pytest.raises(ModelError, match="without running code"):
        load_model(tmp_path / "c.pt", make_net)
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    "state",
    [
        {"items": 3, "keys": 3, "values": 3, "get": 3, "__iter__": 3, "__class__": 3},
        {"_modules": 3},
    ],
)
def test_dictionaries_whose_methods_are_hidden_are_read(state, tmp_path):
    architecture = Hiding(state, name="gaitbase-small", arguments=Hiding(state, embedding=64))
    torch.save(Hiding(state, model=Hiding(state, **make_net().state_dict())), tmp_path / "c.pt")
    load_model(tmp_path / "c.pt", make_net)
    given = gaitbase_small(embedding=64).state_dict()
    torch.save(Hiding(state, model=given, architecture=architecture), tmp_path / "c.pt")
    load_model(tmp_path / "c.pt", zoo=NETWORKS)


def test_contents_that_hold_themselves_are_read(tmp_path):
    content = {"model": make_net().state_dict(), "list": []}
    content["itself"] = content
    content["list"].append(content["list"])
    torch.save(content, tmp_path / "c.pt")
    load_model(tmp_path / "c.pt", make_net)


def test_contents_with_very_many_paths_are_read(tmp_path):
    inner = {"model": make_net().state_dict()}
    for _ in range(60):
        inner = {"a": inner, "b": inner}
    torch.save(inner, tmp_path / "c.pt")
    with pytest.raises(ModelError, match="but no weights"):
        load_model(tmp_path / "c.pt", make_net)


def test_very_many_names_and_objects_are_refused_at_once(tmp_path):
    names = b"".join(b"cpackage\nName%d\n0" % number for number in range(50_000))
    objects = b"cpackage\nName\nq\x00" + b"0h\x00)\x81" * 200_000
    for body in (names, objects):
        archive(tmp_path / "c.pt", b"\x80\x02" + body + b"}.")
        with pytest.raises(ModelError, match="cannot be read"):
            load_model(tmp_path / "c.pt", make_net)


def test_nothing_stays_allowed_after_a_file_was_read(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"model": make_net().state_dict(), "config": Config()}, tmp_path / "c.pt")
    load_model(tmp_path / "c.pt", make_net)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "c.pt", weights_only=True)


def test_classes_that_the_program_allows_are_read_as_they_are(tmp_path):
    file = io.BytesIO()
    torch.save({"settings": Settings()}, file)
    data = file.getvalue()
    with zipfile.ZipFile(file) as opened:
        members = [member for member in opened.infolist() if member.filename.endswith("data.pkl")]
    survey = survey_pickles(tmp_path, data, members)
    with torch.serialization.safe_globals([Settings]):
        with stand_ins(survey):
            read = torch.load(io.BytesIO(data), weights_only=True)
        assert isinstance(read["settings"], Settings)
        assert Settings in torch.serialization.get_safe_globals()


def test_a_damaged_file_says_why_it_cannot_be_read(tmp_path):
    archive(tmp_path / "c.pt", b"\x80\x02}q\x00(X\x01\x00\x00\x00aK")
    with pytest.raises(ModelError, match="something that torch cannot read as weights"):
        load_model(tmp_path / "c.pt", make_net)

import io
import json
import pickle
import zipfile

import pytest
import torch
from torch import nn

from qgait_ptq.errors import ModelError
from qgait_ptq.gait.zoo import NETWORKS, gaitbase_small
from qgait_ptq.graph.loading import load_model
from qgait_ptq.graph.trace import capture
from tests.conftest import make_gaitbase

FACTORY = "qgait_ptq.gait.zoo:gaitbase_small"


@pytest.fixture
def network():
    torch.manual_seed(0)
    return gaitbase_small().eval()


def save(content, path):
    torch.save(content, path)
    return path


def assert_same(network, loaded):
    silhouettes = (torch.rand(1, 5, 64, 44) < 0.5).float()
    torch.testing.assert_close(loaded(silhouettes), network(silhouettes))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"model": weights, "optimizer": {"state": {}}, "scheduler": {}, "iteration": 60000},
        lambda weights: {"state_dict": {f"module.{name}": value for name, value in weights.items()}},
        lambda weights: {name: v.half() if v.is_floating_point() else v for name, v in weights.items()},
    ],
    ids=["state_dict", "OpenGait checkpoint", "DataParallel", "half precision"],
)
def test_weights_with_a_factory(wrap, network, tmp_path):
    if wrap(network.state_dict()).get("stem.0.weight", torch.empty(0)).dtype == torch.float16:
        network.load_state_dict({k: v.half() for k, v in network.state_dict().items()})
    path = save(wrap(network.state_dict()), tmp_path / "model.pt")
    assert_same(network, load_model(path, FACTORY).network)


def test_factory_arguments_reach_the_network(tmp_path):
    network = gaitbase_small(embedding=32)
    path = save(network.state_dict(), tmp_path / "model.pt")
    assert_same(network.eval(), load_model(path, FACTORY, {"embedding": 32}).network)


def test_a_checkpoint_may_name_its_network(network, tmp_path):
    content = {"architecture": {"name": "gaitbase-small"}, "model": network.state_dict()}
    assert_same(network, load_model(save(content, tmp_path / "model.pt"), zoo=NETWORKS).network)


def test_an_exported_program_loads_without_a_factory_and_stays_dynamic(tmp_path):
    network = make_gaitbase()
    dynamic = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    program = torch.export.export(network, (torch.rand(2, 7, 64, 44),), dynamic_shapes=dynamic)
    path = tmp_path / "model.pt2"
    torch.export.save(program, path)
    loaded = load_model(path)
    assert_same(network, loaded.network)
    captured = capture(loaded.network, (64, 44))
    assert (captured.batch, captured.frames) == (None, None)


def test_a_pickled_module_needs_trust(network, tmp_path):
    path = save(network, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="--trust-pickle"):
        load_model(path)
    assert_same(network, load_model(path, trust_pickle=True).network)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_of_an_untrusted_pickle_is_run(tmp_path):
    victim = tmp_path / "victim"
    path = save({"model": Bomb(victim)}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="runs code"):
        load_model(path)
    assert not victim.exists()


def rewrite(source, target, change):
    """Copy an archive with some members changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    dynamic = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    torch.export.save(
        torch.export.export(make_gaitbase(), (torch.rand(2, 7, 64, 44),), dynamic_shapes=dynamic), path
    )
    return path


def test_an_exported_program_with_a_pickled_payload_is_refused(exported, tmp_path):
    def use_pickle(name, data):
        return (
            data.replace(b'"use_pickle": false', b'"use_pickle": true', 1) if b"use_pickle" in data else data
        )

    with pytest.raises(ModelError, match="pickled payload"):
        load_model(rewrite(exported, tmp_path / "model.pt2", use_pickle))


def test_an_exported_program_whose_sizes_are_code_is_refused(exported, tmp_path):
    victim = tmp_path / "victim"

    def inject(name, data):
        if not name.endswith("models/model.json"):
            return data
        code = f"__import__('pathlib').Path('{victim}').touch()"
        content = json.loads(data)
        for value in content["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = code
        return json.dumps(content).encode()

    with pytest.raises(ModelError, match="no arithmetic"):
        load_model(rewrite(exported, tmp_path / "model.pt2", inject))
    assert not victim.exists()


def test_an_exported_program_with_poisoned_sample_inputs_is_refused(exported, tmp_path):
    victim = tmp_path / "victim"

    def poison(name, data):
        return pickle.dumps(Bomb(victim)) if "sample_inputs" in name else data

    with pytest.raises(ModelError, match="sample inputs"):
        load_model(rewrite(exported, tmp_path / "model.pt2", poison))
    assert not victim.exists()


@pytest.mark.parametrize(
    ("make", "factory", "message"),
    [
        (lambda w: None, None, "cannot be read"),
        (lambda w: b"hello", None, "not a model"),
        (lambda w: w, None, "--model module:factory"),
        (lambda w: {"epoch": 3}, FACTORY, "no weights are found"),
        (lambda w: {k: v for k, v in w.items() if "stem" not in k}, FACTORY, r"missing \(stem.0.weight"),
        (lambda w: {**w, "pooling.weight": torch.zeros(3)}, FACTORY, r"unexpected \(pooling.weight"),
        (lambda w: {**w, "stem.0.weight": torch.zeros(3)}, FACTORY, "of another shape"),
        (lambda w: {**w, "stem.0.weight": w["stem.0.weight"] * float("nan")}, FACTORY, "NaN"),
        (lambda w: w, "qgait_ptq.gait.zoo:nothing", "cannot be imported"),
        (lambda w: w, "gaitbase", "module:name"),
        (lambda w: w, "builtins:dict", "not a torch.nn.Module"),
        (lambda w: {"architecture": {"name": "vit"}, "model": w}, None, "'vit'"),
    ],
)
def test_each_failure_says_what_is_wrong(make, factory, message, network, tmp_path):
    path = tmp_path / "model.pt"
    content = make(network.state_dict())
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ModelError, match=message):
        load_model(path, factory, zoo=NETWORKS)


def test_a_classifier_that_only_training_needed_is_left_out_and_named(network, tmp_path):
    weights = {**network.state_dict(), "Head.fc_bin": torch.zeros(3), "Head.bias": torch.zeros(3)}
    path = tmp_path / "checkpoint.pt"
    torch.save({"model": {f"module.{k}": v.half() for k, v in weights.items()}, "iteration": 9}, path)
    loaded = load_model(path, FACTORY)
    assert loaded.left_out == ("Head",)
    stem = network.state_dict()["stem.0.weight"].half().float()
    assert torch.equal(loaded.network.state_dict()["stem.0.weight"], stem)


def test_a_truncated_file_is_refused(network, tmp_path):
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    path = tmp_path / "model.pt"
    path.write_bytes(buffer.getvalue()[:5000])
    with pytest.raises(ModelError, match="not a model"):
        load_model(path, FACTORY)


def test_torchscript_is_named(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.script(nn.ReLU()).save(str(path))
    with pytest.raises(ModelError, match="TorchScript"):
        load_model(path)

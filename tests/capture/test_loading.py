import io
import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qgait_ptq.capture.loading import load_model
from qgait_ptq.capture.trace import capture
from qgait_ptq.errors import ModelError
from qgait_ptq.gait.zoo import NETWORKS, gaitbase_small
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
    loaded = load_model(path, trust_code=True)
    assert_same(network, loaded.network)
    captured = capture(loaded.network, (64, 44))
    assert (captured.batch, captured.frames) == (None, None)


def test_a_pickled_module_needs_trust(network, tmp_path):
    path = save(network, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="--trust-code"):
        load_model(path)
    assert_same(network, load_model(path, trust_code=True).network)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"factory": FACTORY}, "--factory"),
        ({"arguments": {"embedding": 9}}, "--model-argument"),
        ({"factory": FACTORY, "arguments": {"embedding": 9}}, "--factory, --model-argument"),
        ({"factory": gaitbase_small}, r"the factory \(--opengait-config\)"),
    ],
)
@pytest.mark.parametrize("kind", ["pickled module", "exported program"])
def test_what_makes_a_network_is_refused_for_a_file_that_holds_one(kind, given, named, exported, tmp_path):
    path = exported if kind == "exported program" else save(nn.Linear(2, 3), tmp_path / "model.pt")
    with pytest.raises(ModelError, match=rf"{kind}, which holds one network .*leave out {named}, for files"):
        load_model(path, trust_code=True, **given)


def test_arguments_are_refused_where_the_file_names_its_network(network, tmp_path):
    content = {"architecture": {"name": "gaitbase-small"}, "model": network.state_dict()}
    path = save(content, tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"--model-argument \(embedding\) has no effect"):
        load_model(path, arguments={"embedding": 32}, zoo=NETWORKS)
    path = save({"model": nn.Linear(2, 3)}, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelError, match=r"--model-argument \(embedding\) has no effect"):
        load_model(path, arguments={"embedding": 32}, trust_code=True)


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


def change_use_pickle(name, data, code):
    return data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)


def change_size(name, data, code):
    """A symbolic size that torch would evaluate."""
    if not name.endswith("models/model.json"):
        return data
    content = json.loads(data)
    for value in content["graph_module"]["graph"]["tensor_values"].values():
        for size in value["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = code
    return json.dumps(content).encode()


def change_name(name, data, code):
    """A name that FX would write into Python."""
    return (
        data.replace(b"p_stem_0_weight", b"p_x); open('victim', 'w') #") if name.endswith(".json") else data
    )


def change_samples(name, data, code):
    return pickle.dumps(Bomb("victim")) if "sample_inputs" in name else data


@pytest.mark.parametrize("change", [None, change_use_pickle, change_size, change_name, change_samples])
def test_an_exported_program_needs_trust_whatever_is_in_it(exported, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    code = "__import__('pathlib').Path('victim').touch()"
    path = exported
    if change is not None:
        path = rewrite(exported, tmp_path / "model.pt2", lambda name, data: change(name, data, code))
    with pytest.raises(ModelError, match=r"an exported program.*--trust-code.*safetensors"):
        load_model(path)
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize("place", ["data/weights/model.pt", "data/constants/model.pt", "models/model.jsox"])
def test_members_that_torch_would_run_are_never_reached(exported, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    payload = io.BytesIO()
    torch.save(Bomb("victim"), payload)
    path = rewrite(exported, tmp_path / "model.pt2", lambda name, data: data)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"model/{place}", payload.getvalue())
    with pytest.raises(ModelError, match="--trust-code"):
        load_model(path)
    assert not (tmp_path / "victim").exists()


def test_weights_as_safetensors_load_without_trust(network, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    assert_same(network, load_model(path, FACTORY).network)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="a damaged safetensors file"):
        load_model(path, FACTORY)


def test_the_suffix_of_safetensors_can_be_in_upper_case(tmp_path):
    (tmp_path / "MODEL.SAFETENSORS").write_text("hello")
    with pytest.raises(ModelError, match="a damaged safetensors file"):
        load_model(tmp_path / "MODEL.SAFETENSORS", FACTORY)


def test_a_lightning_checkpoint_loads_without_trust(network, tmp_path):
    content = {
        "epoch": 3,
        "global_step": 900,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": network.state_dict(),
        "loops": {},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(900.0)}}, "param_groups": [{"lr": 1e-3}]}],
        "lr_schedulers": [],
        "hyper_parameters": {"channels": [16, 32]},
    }
    assert_same(network, load_model(save(content, tmp_path / "last.ckpt"), FACTORY).network)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda w: w.to_sparse(), "sparse"),
        (lambda w: w.to("meta"), "on the meta device"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), "quantized"),
        (lambda w: w.to(torch.complex64), "complex"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_only_dense_tensors_of_real_numbers_become_weights(network, tmp_path, change, kind):
    weights = network.state_dict()
    weights["stem.0.weight"] = change(weights["stem.0.weight"])
    with pytest.raises(ModelError, match=f"the weight stem.0.weight is {kind}"):
        load_model(save(weights, tmp_path / "model.pt"), FACTORY)


def test_weights_that_are_far_larger_than_their_file_are_refused(network, tmp_path):
    weights = {**network.state_dict(), "Head.weight": torch.zeros(1).expand(10**5, 10**5)}
    with pytest.raises(ModelError, match="save complete weights"):
        load_model(save(weights, tmp_path / "model.pt"), FACTORY)


def test_arguments_in_a_file_allocate_nothing_before_they_fit_its_weights(network, tmp_path):
    for arguments, message in (
        ({"embedding": 10**9}, "arguments of its network"),
        ({"embedding": 4096}, "of another shape"),
    ):
        content = {
            "architecture": {"name": "gaitbase-small", "arguments": arguments},
            "model": network.state_dict(),
        }
        with pytest.raises(ModelError, match=message):
            load_model(save(content, tmp_path / "model.pt"), zoo=NETWORKS)


def test_an_archive_with_compressed_members_is_refused(network, tmp_path):
    path = save(network.state_dict(), tmp_path / "model.pt")
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ModelError, match="compressed members"):
        load_model(tmp_path / "c.pt", FACTORY)


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(ModelError, match="not a regular file"):
        load_model(tmp_path / "model.pt", FACTORY)


@pytest.mark.parametrize(
    ("make", "factory", "message"),
    [
        (lambda w: None, None, "cannot be read"),
        (lambda w: b"hello", None, "not a model"),
        (lambda w: w, None, "--factory module:factory"),
        (lambda w: {"epoch": 3}, FACTORY, "but no weights"),
        (lambda w: {k: v for k, v in w.items() if "stem" not in k}, FACTORY, r"missing \(stem.0.weight"),
        (lambda w: {**w, "pooling.weight": torch.zeros(3)}, FACTORY, r"unexpected \(pooling.weight"),
        (lambda w: {**w, "stem.0.weight": torch.zeros(3)}, FACTORY, "of another shape"),
        (lambda w: {**w, "stem.0.weight": w["stem.0.weight"] * float("nan")}, FACTORY, "NaN"),
        (lambda w: w, "qgait_ptq.gait.zoo:nothing", "cannot be imported"),
        (lambda w: w, "net.py:make", "names a file, not a module; write net:make$"),
        (
            lambda w: w,
            "../nets/net.py:make",
            "write net:make and run the command in ../nets, or add this folder",
        ),
        (lambda w: w, "nets/net:make", "write net:make and run the command in nets"),
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

"""Networks of a code base with OpenGait's conventions: built without the trainer, and run without a GPU."""

import sys

import pytest
import torch
import yaml

import qgait_ptq as qg
from qgait_ptq.capture.trace import capture
from qgait_ptq.errors import CaptureError, ModelError
from qgait_ptq.gait.opengait import OpenGaitAdapter, make_opengait_network, read_opengait_config
from qgait_ptq.gait.opengait.trainer import own_preparation
from qgait_ptq.graph.frame_inputs import join_inputs
from qgait_ptq.placement.planning import plan

BASE_MODEL = """
import torch.nn as nn
from absent_vision.resnet import ResNet
class BaseModel(nn.Module):
    def __init__(self, cfgs, training):
        raise RuntimeError("wants a process group, a GPU and data")
    def inputs_pretreament(self, inputs):
        raise RuntimeError("wants data")
class ResNet9(ResNet):
    pass
"""
# The lines that differ between networks: of the constructor, of build_network, and of forward.
NETWORK = """
import torch
from ..base_model import BaseModel, ResNet9
class Net(BaseModel):
    def __init__(self, cfgs, training):
        self.longest = cfgs["trainer_cfg"]["longest"]
        super().__init__(cfgs, training=training)
    def build_network(self, model_cfg):
        self.msg_mgr.log_info("building")
        self.scale = torch.ones(1)
        {build}
        self.conv = torch.nn.Conv2d(1, 4, 5, 4)
        self.fc = torch.nn.Linear(4, 8)
    {method}
    def forward(self, inputs):
        ipts, labs, typs, vies, seqL = inputs
        sils = ipts[0]
        x = self.conv(sils.flatten(0, 1).unsqueeze(1)).amax((2, 3))
        x = x.unflatten(0, (sils.shape[0], -1)).amax(1)
        {forward}
        embed = self.fc(x).unsqueeze(-1)
        return {{"training_feat": {{"labels": labs}}, "inference_feat": {{{output}: embed}}}}
"""
CONFIG = {
    "model_cfg": {"model": "Net"},
    "data_cfg": {"dataset_name": "OUMVLP"},
    "evaluator_cfg": {"save_name": "net"},
}
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="the code must fail without a GPU")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Return a function that writes a code base, and makes its network."""

    def write(build="pass", forward="pass", method="pass", output='"embeddings"'):
        models = tmp_path / "opengait" / "modeling" / "models"
        models.mkdir(parents=True, exist_ok=True)
        (tmp_path / "configs").mkdir(exist_ok=True)
        (models.parent / "base_model.py").write_text(BASE_MODEL)
        (models / "net.py").write_text(
            NETWORK.format(build=build, forward=forward, method=method, output=output)
        )
        defaults = {"trainer_cfg": {"longest": 50}, "data_cfg": {"dataset_name": "CASIA-B", "cache": False}}
        (tmp_path / "configs" / "default.yaml").write_text(yaml.safe_dump(defaults))
        (tmp_path / "net.yaml").write_text(yaml.safe_dump(CONFIG))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        sys.modules.pop("modeling.models.net", None)
        return make_opengait_network(read_opengait_config(tmp_path / "net.yaml")).eval()

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "modeling"]:
        del sys.modules[name]


def test_code_reads_the_whole_configuration_with_the_defaults(make):
    network = make("self.found = self.cfgs['data_cfg'], self.engine_cfg, self.iteration")
    assert network.found == ({"dataset_name": "OUMVLP", "cache": False}, {"save_name": "net"}, 0)
    assert network.longest == 50  # from the network's own constructor


def test_the_constructor_of_the_trainer_is_kept(make):
    network = make()
    with pytest.raises(RuntimeError, match="process group"):
        type(network)({"trainer_cfg": {"longest": 1}}, False)


def test_a_network_that_checks_for_one_label_is_captured(make):
    line = 'assert len(labs) == 1, "one sequence in testing mode"'
    captured = capture(join_inputs(OpenGaitAdapter(make(forward=line)), None), (64, 44))
    assert (captured.batch, captured.frames) == (None, None)


def test_a_network_that_computes_with_labels_is_refused(make):
    network = make(forward="x = x + labs.view(1, 1)")
    with pytest.raises(CaptureError, match="computes the embedding with the labels"):
        plan(OpenGaitAdapter(network), (64, 44), qg.QuantConfig())


GPU_LINES = {
    "move": "x = x * self.scale.cuda(x.get_device())",
    "condition": "x = x * (self.scale if x.is_cuda else None)",
    "factory": 'x = x * torch.ones(1, device="cuda") * torch.ones(1, device=torch.device("cuda", 0))',
    "to": 'x = x * self.scale.to("cuda:0") * self.scale.to(0)',
}


@WITHOUT_GPU
@pytest.mark.parametrize("line", GPU_LINES.values(), ids=GPU_LINES)
def test_code_for_a_gpu_is_captured_on_the_cpu(make, line):
    network, plain = make(forward=line), OpenGaitAdapter(make())
    plain.load_state_dict(OpenGaitAdapter(network).state_dict())
    captured = capture(join_inputs(OpenGaitAdapter(network), None), (64, 44))
    frames = torch.rand(3, 9, 64, 44)
    assert torch.allclose(captured.graph_module(frames), plain(frames), atol=1e-6)
    assert (captured.batch, captured.frames) == (None, None)


@WITHOUT_GPU
def test_building_for_a_gpu_gives_a_network_on_the_cpu(make):
    network = make('self.late = torch.nn.Linear(2, 2).cuda().to("cuda")')
    assert network.late.weight.device.type == "cpu"
    assert not network.late.weight.is_cuda  # only the code of the network is told otherwise


@WITHOUT_GPU
def test_code_that_a_cpu_cannot_run_is_named(make, tmp_path):
    network = make(forward="x = x.to(torch.cuda.current_device())")
    with pytest.raises(CaptureError, match=r"net\.py:20") as caught:
        capture(join_inputs(OpenGaitAdapter(network), None), (64, 44))
    assert "GPU" in str(caught.value)


def test_code_that_reads_types_is_named_and_an_adapter_sets_them(make):
    network = make(forward='x = x * {"nm": 1.0}[typs[0]]')
    with pytest.raises(CaptureError, match=r"net\.py:20"):
        capture(join_inputs(OpenGaitAdapter(network), None), (64, 44))

    class WithTypes(OpenGaitAdapter):
        types = ("nm",)

    assert capture(join_inputs(WithTypes(network), None), (64, 44)).frames is None


def test_a_network_without_an_embedding_is_refused_with_its_outputs(make):
    with pytest.raises(CaptureError, match=r"has no 'embeddings' \(found pred\)"):
        capture(join_inputs(OpenGaitAdapter(make(output='"pred"')), None), (64, 44))


def test_a_package_that_is_missing_is_named_with_the_line_that_needs_it(make, tmp_path):
    with pytest.raises(ModelError) as caught:
        make("self.backbone = ResNet9()")
    text = str(caught.value)
    assert "ResNet9 needs absent_vision.resnet.ResNet, but absent_vision is not installed" in text
    assert f"{tmp_path}/opengait/modeling/models/net.py:11, `self.backbone = ResNet9()`" in text
    assert "install that package" in text


def test_an_installed_package_that_does_not_work_is_named_with_the_line(make, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_vision.py").write_text("raise RuntimeError('operator vision::nms does not exist')\n")
    with pytest.raises(ModelError, match="reinstall it") as caught:
        make(method="import broken_vision")
    assert "net.py:14, `import broken_vision`" in str(caught.value)


def test_own_preparation_of_inputs_is_named(make, tmp_path):
    assert own_preparation(make()) is None
    network = make(method="def inputs_pretreament(self, inputs): return super().inputs_pretreament(inputs)")
    assert own_preparation(network) == f"{tmp_path}/opengait/modeling/models/net.py:14"

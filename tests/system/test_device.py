"""Stages compute in float32 as written, also on GPUs, and leave the settings of the caller alone."""

import pytest
import torch

from qgait_ptq.errors import ConfigError
from qgait_ptq.stages.stage import Stage, run_stages
from qgait_ptq.system.device import choose_device, exact_arithmetic


def arithmetic():
    cudnn = torch.backends.cudnn
    return {
        "TF32 in convolutions": cudnn.allow_tf32,
        "TF32 in products": torch.backends.cuda.matmul.allow_tf32,
        "precision of products": torch.get_float32_matmul_precision(),
        "repeatable": cudnn.deterministic,
        "fastest of several": cudnn.benchmark,
        "cuDNN": cudnn.enabled,
    }


EXACT = {
    "TF32 in convolutions": False,
    "TF32 in products": False,
    "precision of products": "highest",
    "repeatable": True,
    "fastest of several": False,
    "cuDNN": True,
}


@pytest.fixture(params=[True, False], ids=["TF32", "no TF32"])
def by_caller(request):
    """What the caller has set."""
    cudnn = torch.backends.cudnn
    before = arithmetic()
    cudnn.allow_tf32, cudnn.benchmark = request.param, True
    torch.set_float32_matmul_precision("high" if request.param else "highest")
    yield arithmetic()
    cudnn.allow_tf32, cudnn.benchmark = before["TF32 in convolutions"], before["fastest of several"]
    torch.set_float32_matmul_precision(before["precision of products"])


def test_stages_compute_exactly_and_settings_come_back(by_caller):
    seen = []

    class Look(Stage):
        name = "look"

        def apply(self, state, advance=None):
            seen.append(arithmetic())
            return state

        def run(self, state, progress):
            return self.apply(state)

    run_stages([Look()], state=None)
    assert seen == [EXACT]
    assert arithmetic() == by_caller != EXACT


def test_the_random_numbers_of_the_caller_are_left_alone():
    class Seeds(Stage):
        name = "seeds"

        def apply(self, state, advance=None):
            torch.manual_seed(5)
            return state

        def run(self, state, progress):
            return self.apply(state)

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    run_stages([Seeds()], state=None)
    assert torch.equal(torch.rand(3), expected)


def test_settings_come_back_after_an_error(by_caller):
    with pytest.raises(ConfigError), exact_arithmetic():
        choose_device("cuda:77")
    assert arithmetic() == by_caller


CUDNN, MKLDNN = torch.backends.cudnn, torch.backends.mkldnn
SWITCHES = {  # the wider ones first: setting one changes those within
    "all": torch.backends,
    "products": torch.backends.cuda.matmul,
    "cuDNN": CUDNN,
    "convolutions": CUDNN.conv,
    "recurrent layers": CUDNN.rnn,
    "oneDNN": MKLDNN,
    "products on the CPU": MKLDNN.matmul,
    "convolutions on the CPU": MKLDNN.conv,
    "recurrent layers on the CPU": MKLDNN.rnn,
}


def precisions():
    return {name: place.fp32_precision for name, place in SWITCHES.items()}


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_newer_switches_of_torch_come_back_too(switch):
    before = precisions()
    try:
        SWITCHES[switch].fp32_precision = "tf32"
        chosen = precisions()
        with exact_arithmetic():
            assert arithmetic() == EXACT
        assert precisions() == chosen
    finally:
        for name, place in SWITCHES.items():
            place.fp32_precision = before[name]
    assert precisions() == before
    assert arithmetic()  # torch can read its older switches again


def test_settings_that_nobody_made_stay_unset():
    before = precisions()
    with exact_arithmetic():
        pass
    assert precisions() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_convolution_on_a_gpu_is_that_of_the_cpu():
    torch.manual_seed(0)
    image, weight = torch.randn(4, 64, 32, 32), torch.randn(64, 64, 3, 3)
    expected = torch.nn.functional.conv2d(image, weight)
    with exact_arithmetic():
        given = torch.nn.functional.conv2d(image.cuda(), weight.cuda()).cpu()
    assert float((given - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_a_device_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="use cpu or auto"):
        choose_device("cuda:77")

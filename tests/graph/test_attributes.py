import torch.nn.functional as F

from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.placement.planning import plan
from tests.frame_networks import OverFrames


def correlation(features):
    """Convolve each channel with its own first frames."""
    n, c, s = features.shape
    kernels = features.reshape(n * c, 1, s)[:, :, :3]
    return F.conv1d(features.reshape(1, n * c, s), kernels, groups=n * c).amax(2).view(n, c)


def test_a_layer_whose_weight_is_computed_from_the_input_has_the_name_of_its_operator():
    _, _, layers = plan(OverFrames(correlation), (32, 22), QuantConfig())
    assert [layer.name for layer in layers] == ["conv", "conv1d", "fc"]
    assert [layer.weight_bits is None for layer in layers] == [False, True, False]

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qgait_ptq.quantizer.grid import INT32_MAX, IntegerGrid, fake_quantize, quantize, quantize_bias

bits = st.integers(2, 8)
values = st.floats(-1e4, 1e4, width=32, allow_nan=False)
grids = st.builds(IntegerGrid, bits, st.booleans(), st.booleans())


def test_signed_grids_are_narrow_and_unsigned_ones_full():
    assert [
        (g.quant_min, g.quant_max) for g in (IntegerGrid(4, True, True), IntegerGrid(4, False, False))
    ] == [
        (-7, 7),
        (0, 15),
    ]


@pytest.mark.parametrize("width", [1, 9])
def test_widths_outside_two_to_eight_are_refused(width):
    with pytest.raises(ValueError, match="2 to 8 bits"):
        IntegerGrid(width, True, True)


@given(bits, values, values)
def test_affine_range_is_covered_and_zero_is_exact(width, a, b):
    grid = IntegerGrid(width, signed=False, symmetric=False)
    low, high = torch.tensor(min(a, b, 0.0)), torch.tensor(max(a, b, 0.0))
    scale, zero_point = grid.parameters_for(low, high)
    ends = fake_quantize(torch.stack([low, high, torch.zeros(())]), scale, zero_point, grid)
    assert ends[2] == 0
    assert torch.all((ends[:2] - torch.stack([low, high])).abs() <= scale * 1.001)


@pytest.mark.parametrize(("low", "wanted"), [(-0.4, 0), (-0.6, 1), (-99.7, 100), (-255.0, 255)])
def test_the_zero_point_is_the_nearest_integer(low, wanted):
    grid = IntegerGrid(8, signed=False, symmetric=False)
    scale, zero_point = grid.parameters_for(torch.tensor(low), torch.tensor(255.0 + low))
    assert scale == pytest.approx(1)
    assert zero_point == wanted


@pytest.mark.parametrize(("low", "high", "wanted"), [(0.5, 255.0, 0), (-255.0, -0.5, 255)])
def test_a_range_on_one_side_of_zero_is_widened_to_zero(low, high, wanted):
    grid = IntegerGrid(8, signed=False, symmetric=False)
    scale, zero_point = grid.parameters_for(torch.tensor(low), torch.tensor(high))
    assert scale == pytest.approx(1)
    assert zero_point == wanted


@given(bits, st.lists(values, min_size=1, max_size=30))
def test_rounding_error_is_at_most_half_a_step_inside_the_range(width, numbers):
    grid = IntegerGrid(width, signed=True, symmetric=True)
    tensor = torch.tensor(numbers)
    scale, zero_point = grid.parameters_for(tensor.min(), tensor.max())
    error = (fake_quantize(tensor, scale, zero_point, grid) - tensor).abs()
    assert torch.all(error <= scale * 0.5001)


@given(grids, st.lists(values, min_size=1, max_size=30), st.floats(1e-3, 10))
def test_quantizing_twice_changes_nothing(grid, numbers, step):
    scale, zero_point = torch.tensor(step), torch.tensor(0, dtype=torch.int32)
    once = fake_quantize(torch.tensor(numbers), scale, zero_point, grid)
    torch.testing.assert_close(fake_quantize(once, scale, zero_point, grid), once, rtol=0, atol=0)


@given(grids, st.lists(values, min_size=1), st.floats(2**-10, 2**10, width=32), st.integers(0, 255))
def test_real_values_are_scale_times_integers_without_the_zero_point(grid, numbers, step, position):
    """One scale and scales of channels take different paths."""
    shift = 0 if grid.symmetric else grid.quant_min + position % (grid.quant_max - grid.quant_min + 1)
    tensor, scale, zero_point = torch.tensor(numbers), torch.tensor(step), torch.tensor(shift)
    wanted = scale * (quantize(tensor, scale, zero_point, grid) - zero_point)
    assert torch.equal(fake_quantize(tensor, scale, zero_point, grid), wanted)
    of_channels = fake_quantize(tensor[None], scale[None], zero_point[None], grid, axis=0)
    assert torch.equal(of_channels[0], wanted)


def test_arithmetic_is_that_of_onnx_quantize_linear():
    """Divide by the scale, round half to even, add the zero_point, saturate."""
    grid = IntegerGrid(8, signed=False, symmetric=False)
    scale, zero_point = torch.tensor(0.1), torch.tensor(3, dtype=torch.int32)
    tensor = torch.tensor([-1.0, -0.05, 0.05, 0.15, 0.25, 100.0])
    given = quantize(tensor, scale, zero_point, grid)
    divided = np.rint(tensor.numpy() / np.float32(0.1)) + 3
    np.testing.assert_array_equal(given.numpy(), np.clip(divided, 0, 255))


def test_division_differs_from_multiplication_by_the_inverse():
    """The reason why torch's own fake-quantize is not used."""
    scale = np.float32(0.0437)
    halves = (np.arange(100000, dtype=np.float32) + np.float32(0.5)) * scale
    ours = quantize(
        torch.from_numpy(halves), torch.tensor(scale), torch.tensor(0), IntegerGrid(8, False, False)
    )
    np.testing.assert_array_equal(ours.numpy(), np.clip(np.rint(halves / scale), 0, 255))
    assert (np.rint(halves / scale) != np.rint(halves * (np.float32(1) / scale))).any()


def test_channels_have_scales_of_their_own():
    weight = torch.tensor([[1.0, -0.5], [100.0, -50.0]])
    grid = IntegerGrid(3, signed=True, symmetric=True)
    scale, zero_point = grid.parameters_for(weight.amin(1), weight.amax(1))
    assert quantize(weight, scale, zero_point, grid, 0).tolist() == [[3, -2], [3, -2]]


def test_gradient_is_straight_through_inside_the_range_and_zero_outside():
    grid = IntegerGrid(4, signed=False, symmetric=False)
    tensor = torch.tensor([-1.0, 0.26, 0.5, 9.0], requires_grad=True)
    fake_quantize(tensor, torch.tensor(0.1), torch.tensor(0), grid).sum().backward()
    assert tensor.grad.tolist() == [0, 1, 1, 0]


def test_bias_is_rounded_to_int32_and_saturates():
    assert quantize_bias(torch.tensor([0.26, -1e30]), torch.tensor([0.1, 0.1])).tolist() == [3, -INT32_MAX]


def test_a_tensor_of_zeros_has_a_positive_scale():
    scale, zero_point = IntegerGrid(8, False, False).parameters_for(torch.zeros(()), torch.zeros(()))
    assert scale > 0
    assert zero_point == 0

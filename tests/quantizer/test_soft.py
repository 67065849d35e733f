"""The soft quantizer against its closed form."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qgait_ptq.quantizer.grid import IntegerGrid, fake_quantize
from qgait_ptq.quantizer.soft import (
    TemperatureSchedule,
    gradient_mean_square,
    round_straight,
    rounding_gradient,
    soft_quantize,
)

TEMPERATURES = (0.5, 1.0, 2.2, 3.0, 6.0)
GRIDS = (IntegerGrid(4, False, False), IntegerGrid(4, True, True), IntegerGrid(8, False, False))


def soft_round(steps, a):
    """The function whose derivative the backward pass uses: m + tanh(a·r) / (2·tanh(a/2))."""
    m = steps.floor() + 0.5
    return m + torch.tanh(a * (steps - m)) / (2 * math.tanh(a / 2))


@pytest.mark.parametrize("a", TEMPERATURES)
def test_gradient_is_the_derivative_of_the_soft_rounding(a):
    steps = (torch.rand(200, dtype=torch.float64) * 8 - 4).requires_grad_(True)
    (expected,) = torch.autograd.grad(soft_round(steps, a).sum(), steps)
    offset = steps.detach() - steps.detach().floor() - 0.5
    torch.testing.assert_close(rounding_gradient(offset, a), expected)


@pytest.mark.parametrize("a", [0.0, *TEMPERATURES])
def test_gradient_has_mean_one_and_the_stated_mean_square_over_a_step(a):
    offset = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 - 0.5
    gradient = rounding_gradient(offset, a)
    assert gradient.mean().item() == pytest.approx(1, abs=1e-6)
    assert gradient.square().mean().item() == pytest.approx(gradient_mean_square(a), rel=1e-6)


def test_the_limits_are_straight_through_and_a_peak_at_the_threshold():
    offset = torch.linspace(-0.5, 0.49, 100, dtype=torch.float64)
    torch.testing.assert_close(rounding_gradient(offset, 1e-4), torch.ones_like(offset), atol=1e-6, rtol=0)
    assert rounding_gradient(torch.tensor(0.0), 100.0) == 50
    assert rounding_gradient(torch.tensor(0.4), 100.0) < 1e-6


@given(
    st.integers(2, 8),
    st.booleans(),
    st.floats(0.01, 2),
    st.integers(0, 3),
    st.sampled_from([0.0, 2.0, 6.0]),
)
def test_forward_is_the_hard_quantizer_in_every_bit(bits, signed, scale, zero_point, a):
    grid = IntegerGrid(bits, signed, symmetric=signed)
    tensor = torch.linspace(-5, 5, 301)
    arguments = (torch.tensor(scale), torch.tensor(0 if signed else zero_point), grid)
    assert torch.equal(soft_quantize(tensor, *arguments, temperature=a), fake_quantize(tensor, *arguments))


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("a", [0.0, 2.0])
def test_gradient_of_the_input_is_g_inside_the_range_and_zero_outside(grid, a):
    scale, zero_point = torch.tensor(0.3), torch.tensor(0.0 if grid.signed else 3.0)
    tensor = torch.linspace(-4, 4, 997, requires_grad=True)
    soft_quantize(tensor, scale, zero_point, grid, temperature=a).sum().backward()
    steps = tensor.detach() / scale
    unclipped = steps.round() + zero_point
    inside = (unclipped >= grid.quant_min) & (unclipped <= grid.quant_max)
    expected = rounding_gradient(steps - steps.floor() - 0.5, a) * inside
    torch.testing.assert_close(tensor.grad, expected)
    if grid.bits == 4:
        assert inside.any()
        assert not inside.all()


@pytest.mark.parametrize("a", [0.0, 4.0])
def test_gradients_of_scale_and_zero_point_are_lsqs_whatever_the_temperature(a):
    grid = IntegerGrid(4, False, False)
    tensor = torch.linspace(-3, 6, 500, dtype=torch.float64)
    scale = torch.tensor(0.31, dtype=torch.float64, requires_grad=True)
    zero_point = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (soft_quantize(tensor, scale, zero_point, grid, temperature=a) * weights).sum().backward()
    steps = tensor / scale.detach()
    q = (steps.round() + 4).clamp(0, 15)
    inside = steps.round() + 4 == q
    torch.testing.assert_close(scale.grad, (weights * torch.where(inside, q - 4 - steps, q - 4)).sum())
    torch.testing.assert_close(zero_point.grad, (weights * torch.where(inside, 0.0, -0.31)).sum())


@pytest.mark.parametrize("a", [0.0, 2.0])
def test_per_channel_equals_each_channel_by_itself(a):
    grid = IntegerGrid(3, True, True)
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randn(5, 4, 3, generator=generator, requires_grad=True)
    scale = (torch.rand(5, generator=generator) + 0.1).requires_grad_(True)
    weights = torch.randn(5, 4, 3, generator=generator)
    (soft_quantize(tensor, scale, torch.zeros(5), grid, 0, a) * weights).sum().backward()
    for channel in range(5):
        alone = tensor.detach()[channel].clone().requires_grad_(True)
        step = scale.detach()[channel].clone().requires_grad_(True)
        (soft_quantize(alone, step, torch.zeros(()), grid, temperature=a) * weights[channel]).sum().backward()
        torch.testing.assert_close(tensor.grad[channel], alone.grad)
        torch.testing.assert_close(scale.grad[channel], step.grad)


def test_the_schedule_rises_from_start_to_end():
    schedule = TemperatureSchedule(1, 3)
    curve = schedule.curve(200)
    assert (curve[0], curve[-1], len(curve)) == (1, 3, 200)
    assert curve == sorted(curve)
    assert [schedule.at(step, 200) for step in range(200)] == curve
    assert TemperatureSchedule(1, 3).at(0, 1) == 1
    with pytest.raises(ValueError, match="at least 0"):
        TemperatureSchedule(-1, 2)


def test_round_straight_rounds_half_to_even_and_passes_the_gradient():
    tensor = torch.tensor([0.5, 1.5, 2.4], requires_grad=True)
    rounded = round_straight(tensor)
    assert rounded.tolist() == [0, 2, 2]
    rounded.sum().backward()
    assert tensor.grad.tolist() == [1, 1, 1]

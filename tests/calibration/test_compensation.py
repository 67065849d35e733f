"""Rounding with compensation, against the optimum that brute force finds and against plain rounding."""

import functools
import itertools

import pytest
import torch

from qgait_ptq.calibration.compensation import (
    InputMoments,
    corrected_weight,
    refitted_scale,
    round_columns,
)
from qgait_ptq.quantizer.grid import IntegerGrid
from qgait_ptq.quantizer.pairs import limit_pairs, neighbours, widened_scale


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(2, 12, 4, generator=generator)
    reference = (mixing @ torch.randn(2, 4, 4000, generator=generator)).relu()
    reference += 0.1 * torch.rand(2, 12, 4000, generator=generator)
    return (reference / 0.7).round() * 0.7, reference


@pytest.fixture
def weight():
    return 0.1 * torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(1))


def output_error(quantized_weight, weight, quantized, reference):
    wanted = weight.double() @ reference.double()
    return float((quantized_weight.double() @ quantized.double() - wanted).square().sum())


def test_moments_of_parts_merge_to_those_of_the_whole(inputs):
    whole = InputMoments.of(*inputs)
    parts = [InputMoments.of(inputs[0][..., s], inputs[1][..., s]) for s in (slice(0, 900), slice(900, None))]
    merged = parts[0].merge(parts[1])
    assert merged.count == whole.count == 4000
    for name in ("mean_quantized", "mean_float", "spread", "cross_spread"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), rtol=1e-5, atol=1e-6)
    quantized, reference = (x.double() for x in inputs)
    second, cross = merged.about_zero()
    torch.testing.assert_close(second, quantized @ quantized.mT / 4000, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cross, reference @ quantized.mT / 4000, rtol=1e-5, atol=1e-6)
    quantized, reference = (x - x.mean(-1, keepdim=True) for x in (quantized, reference))
    torch.testing.assert_close(merged.spread, quantized @ quantized.mT / 4000, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(merged.cross_spread, reference @ quantized.mT / 4000, rtol=1e-5, atol=1e-6)


def test_moments_of_single_columns_around_a_large_mean_are_exact():
    columns = (10 + 0.01 * torch.randn(1, 6, 40, generator=torch.Generator().manual_seed(0))).double()
    parts = [InputMoments.of(*[column[..., None].float()] * 2) for column in columns.unbind(-1)]
    merged = functools.reduce(InputMoments.merge, parts)
    about = columns.float().double() - columns.float().double().mean(-1, keepdim=True)
    torch.testing.assert_close(merged.spread, about @ about.mT / 40, rtol=1e-9, atol=0)
    torch.testing.assert_close(merged.cross_spread, merged.spread)
    assert not parts[0].spread.any()
    weight = torch.randn(1, 3, 6, generator=torch.Generator().manual_seed(1))
    one_column = corrected_weight(weight, parts[0].spread, parts[0].cross_spread, 1, 0.01)
    assert torch.equal(one_column, weight.double())


def test_few_columns_move_the_scale_little():
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(1, 64, 400, generator=generator)
    weight = torch.randn(1, 8, 64, generator=generator)
    scale = weight.abs().amax(-1) / 7
    integers = (weight / scale[..., None]).round().double()

    def error(count):
        moments = InputMoments.of((columns[..., :count] * 4).round() / 4, columns[..., :count])
        found = refitted_scale(integers, scale, weight, moments.spread, moments.cross_spread, count, 0.01)
        return output_error(integers * found[..., None], weight, columns, columns)

    kept = output_error(integers * scale[..., None], weight, columns, columns)
    assert error(2) < kept  # without damping, more than four times as much
    assert error(400) < kept


def test_each_step_brings_the_output_closer(inputs, weight):
    quantized, reference = inputs
    second, cross = InputMoments.of(quantized, reference).about_zero()
    grid = IntegerGrid(4, True, True)
    scale = weight.abs().amax(-1) / 7
    step = scale.double()[..., None]
    nearest = (weight / scale[..., None]).round().double()
    gptq = round_columns(weight, scale, grid, second, 4000, 0.01)
    target = corrected_weight(weight, second, cross, 4000, 0.01)
    qronos = round_columns(target, scale, grid, second, 4000, 0.01)
    refitted = refitted_scale(qronos, scale, weight, second, cross, 4000, 0.01)
    errors = [
        output_error(candidate, weight, quantized, reference)
        for candidate in (nearest * step, gptq * step, qronos * step, qronos * refitted.double()[..., None])
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.75 * errors[0]
    assert ((qronos >= -7) & (qronos <= 7) & (qronos == qronos.round())).all()


def test_the_corrected_weight_is_the_least_squares_solution(inputs, weight):
    quantized, reference = (x.double() for x in inputs)
    second, cross = InputMoments.of(*inputs).about_zero()
    found = corrected_weight(weight, second, cross, 10**9, 1e-9)
    best = torch.linalg.lstsq(quantized.mT, (weight.double() @ reference).mT).solution.mT
    assert output_error(found, weight, quantized, reference) == pytest.approx(
        output_error(best, weight, quantized, reference), rel=1e-3
    )


def test_without_errors_before_the_layer_the_weight_needs_no_correction(inputs, weight):
    second, cross = InputMoments.of(inputs[1], inputs[1]).about_zero()
    found = corrected_weight(weight, second, cross, 4000, 0.01)
    torch.testing.assert_close(found, weight.double(), atol=1e-5, rtol=1e-5)


def test_two_columns_are_rounded_nearly_as_well_as_all_choices_allow():
    generator = torch.Generator().manual_seed(3)
    columns = torch.randn(1, 2, 500, generator=generator)
    columns[:, 1] = 0.9 * columns[:, 0] + 0.1 * columns[:, 1]
    grid, scale = IntegerGrid(3, True, True), torch.full((1, 40), 0.2)
    weight = 0.2 * torch.randn(1, 40, 2, generator=generator)
    second, _ = InputMoments.of(columns, columns).about_zero()
    chosen = round_columns(weight, scale, grid, second, 10**9, 1e-6)
    nearest = (weight / 0.2).round().clamp(-3, 3).double()

    def errors(integers):
        difference = weight.double() - integers * 0.2
        return ((difference @ second) * difference).sum(-1)

    everything = torch.stack(
        [
            errors(torch.tensor(pair, dtype=torch.float64).expand(1, 40, 2))
            for pair in itertools.product(range(-3, 4), repeat=2)
        ]
    )
    assert errors(chosen).sum() < 0.5 * errors(nearest).sum()
    assert errors(chosen).sum() < 2 * everything.amin(0).sum()


def test_inputs_that_are_all_zero_leave_the_weight_alone():
    second, cross = InputMoments.of(torch.zeros(1, 4, 9), torch.zeros(1, 4, 9)).about_zero()
    weight = torch.randn(1, 3, 4)
    found = corrected_weight(weight, second, cross, 9, 0.01)
    torch.testing.assert_close(found, weight.double())
    scale = weight.abs().amax(-1) / 7
    integers = round_columns(weight, scale, IntegerGrid(4, True, True), second, 9, 0.01)
    assert torch.equal(integers, (weight.double() / scale.double()[..., None]).round())


def test_inputs_that_hardly_vary_around_a_large_mean_are_survived():
    columns = 1000 + 1e-4 * torch.randn(1, 16, 40, generator=torch.Generator().manual_seed(0))
    moments = InputMoments.of(columns, columns)
    second, cross = moments.spread, moments.cross_spread
    weight = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1))
    scale = weight.abs().amax(-1) / 7
    integers = round_columns(weight, scale, IntegerGrid(4, True, True), second, 40, 0.01)
    assert torch.isfinite(integers).all()
    assert torch.isfinite(corrected_weight(weight, second, cross, 40, 0.01)).all()


def test_dead_inputs_and_zero_channels_stay_finite():
    columns = torch.zeros(1, 4, 100)
    columns[:, 0] = torch.randn(100)
    weight = torch.randn(1, 3, 4)
    weight[:, 1] = 0
    second, cross = InputMoments.of(columns, columns).about_zero()
    scale = weight.abs().amax(-1).clamp_min(1e-12) / 7
    target = corrected_weight(weight, second, cross, 100, 0.01)
    integers = round_columns(target, scale, IntegerGrid(4, True, True), second, 100, 0.01)
    assert torch.isfinite(integers).all()
    assert (integers[:, 1] == 0).all()
    assert torch.isfinite(refitted_scale(integers, scale, weight, second, cross, 100, 0.01)).all()


@pytest.mark.parametrize("channels", [4, 3, 1])
def test_pairs_stay_within_their_limit_and_later_columns_make_up_for_it(channels):
    """Widened, then rounded within the limit, beats cutting the pairs after free rounding."""
    generator = torch.Generator().manual_seed(0)
    size = 12
    mixing = torch.randn(1, size, 5, generator=generator)
    columns = (mixing @ torch.randn(1, 5, 3000, generator=generator)).relu()
    columns += 0.1 * torch.rand(1, size, 3000, generator=generator)
    weight = torch.randn(1, 32, size, generator=generator)
    second, _ = InputMoments.of(columns, columns).about_zero()
    shape = (32, channels, size // channels)
    grid, limited = IntegerGrid(8, True, True), IntegerGrid(8, True, True, pair_limit=128)
    scale = weight.abs().amax(-1) / 127
    free = round_columns(weight, scale, grid, second, 3000, 0.01)
    cut = limit_pairs(free.reshape(shape), 128).reshape(free.shape)
    wide = widened_scale(weight.reshape(shape), scale[0], 128)[None]
    partners = neighbours(channels, size // channels)
    within = round_columns(weight, wide, limited, second, 3000, 0.01, partners)
    assert not torch.equal(cut, free)
    assert torch.equal(limit_pairs(within.reshape(shape), 128).reshape(free.shape), within)

    def error(integers, step):
        return output_error(integers * step.double()[..., None], weight, columns, columns)

    assert error(within, wide) < 0.1 * error(cut, scale)
    assert error(within, wide) < 4 * error(free, scale)  # up to twice the step, so four times at most

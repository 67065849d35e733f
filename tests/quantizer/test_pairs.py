"""Weights limited in pairs, against the two pairing rules written out place by place."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qgait_ptq.quantizer.fake_quantize import FakeQuantize
from qgait_ptq.quantizer.grid import IntegerGrid, quantize
from qgait_ptq.quantizer.observers import WeightMinMaxObserver
from qgait_ptq.quantizer.pair_order import INT16_MAX, largest_pair_sum
from qgait_ptq.quantizer.pairs import limit_pairs, neighbours, widened_scale
from qgait_ptq.quantizer.trainable import WeightMode, WeightTrainer

LIMIT = 128
shapes = st.tuples(st.integers(1, 7), st.sampled_from([(), (1,), (3,), (3, 3), (1, 2), (3, 1, 3)]))


def weights(shape, seed=0, outputs=16):
    generator = torch.Generator().manual_seed(seed)
    channels, kernel = shape
    return torch.randint(-127, 128, (outputs, channels, *kernel), generator=generator).float()


def pairs_of(weight):
    """Every pair that a kernel may add, each as two indices into ``weight[o]``."""
    channels, kernel = weight.shape[1], weight.shape[2:]
    taps = list(itertools.product(*map(range, kernel)))
    order = [(channel, *tap) for tap in taps for channel in range(channels)]
    by_place = list(zip(order[0::2], order[1::2], strict=False))
    by_channel = [((c, *tap), (c + 1, *tap)) for tap in taps for c in range(0, channels - 1, 2)]
    return set(by_place) | set(by_channel)


def largest_sum(weight):
    """Largest sum of the magnitudes of a pair of the same sign."""
    largest = weight.abs().amax()
    for one, other in pairs_of(weight):
        a, b = weight[(slice(None), *one)], weight[(slice(None), *other)]
        largest = torch.maximum(largest, torch.where(a * b > 0, (a + b).abs(), 0).amax())
    return float(largest)


@pytest.mark.parametrize("code", [1, 15, 127, 128, 255])
def test_the_largest_sum_of_a_pair_is_the_last_that_16_bits_hold(code):
    limit = largest_pair_sum(code)
    assert limit * code <= INT16_MAX < (limit + 1) * code


def test_binary_silhouettes_at_scale_1_255_allow_128():
    assert largest_pair_sum(255) == 128


@settings(max_examples=60)
@given(shapes, st.integers(0, 10**6))
def test_limited_weights_are_within_the_limit_by_both_rules(shape, seed):
    weight = weights(shape, seed)
    limited = limit_pairs(weight, LIMIT)
    assert largest_sum(limited) <= LIMIT
    assert bool((limited * weight >= 0).all())  # no sign is turned
    assert bool((limited.abs() <= weight.abs()).all())
    assert torch.equal(limited, limited.round())
    assert torch.equal(limit_pairs(limited, LIMIT), limited)


@settings(max_examples=30)
@given(shapes)
def test_weights_of_seven_bits_are_left_alone(shape):
    weight = weights(shape).clamp(-63, 63)
    assert limit_pairs(weight, LIMIT) is weight


def test_each_of_two_neighbours_gives_half_of_what_is_too_much():
    weight = torch.tensor([[127.0, 127.0], [127.0, 5.0], [-100.0, -90.0], [127.0, -127.0]])
    wanted = torch.tensor([[64.0, 64.0], [125.0, 3.0], [-69.0, -59.0], [127.0, -127.0]])
    assert torch.equal(limit_pairs(weight, LIMIT), wanted)


@settings(max_examples=30)
@given(shapes)
def test_neighbours_are_those_of_both_rules(shape):
    weight = weights(shape, outputs=1)
    channels, kernel = shape
    places = torch.arange(weight[0].numel()).reshape(weight.shape[1:])
    taps = int(torch.tensor(kernel).prod()) if kernel else 1
    wanted = {frozenset((int(places[one]), int(places[other]))) for one, other in pairs_of(weight)}
    found = neighbours(channels, taps)
    pairs = [(place, int(other)) for place, row in enumerate(found) for other in row if other >= 0]
    assert {frozenset(pair) for pair in pairs} == wanted
    assert len(pairs) == 2 * len(wanted)  # each is named by both of its members


@settings(max_examples=30)
@given(shapes, st.integers(0, 10**6))
def test_a_widened_scale_leaves_no_pair_beyond_the_limit_and_narrows_none(shape, seed):
    weight = weights(shape, seed).double() / 127
    scale = torch.full((len(weight),), 1 / 127)
    widened = widened_scale(weight, scale, LIMIT)
    steps = weight / widened.double().reshape(-1, *[1] * (weight.ndim - 1))
    assert bool((widened >= scale).all())
    assert largest_sum(steps) <= LIMIT * (1 + 1e-6)
    kept = [index for index, row in enumerate(weight) if largest_sum(127 * row[None]) <= LIMIT]
    assert torch.equal(widened[kept], scale[kept])


def test_a_grid_with_a_limit_quantizes_within_it():
    grid = IntegerGrid(8, signed=True, symmetric=True, pair_limit=LIMIT)
    weight = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().flatten(1).amax(1) / 127
    integers = quantize(weight, scale, torch.zeros(()), grid, axis=0)
    free = quantize(weight, scale, torch.zeros(()), IntegerGrid(8, True, True), axis=0)
    assert largest_sum(free) > LIMIT >= largest_sum(integers)


def test_a_limit_below_the_largest_integer_is_refused():
    with pytest.raises(ValueError, match="excludes integers"):
        IntegerGrid(8, signed=True, symmetric=True, pair_limit=100)


@pytest.mark.parametrize("mode", list(WeightMode))
def test_weights_that_learn_stay_within_the_limit(mode):
    """Gradients push every weight outwards; what settles keeps the limit, whatever learned."""
    grid = IntegerGrid(8, signed=True, symmetric=True, pair_limit=LIMIT)
    weight = torch.nn.Parameter(torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    settled = FakeQuantize(grid, WeightMinMaxObserver(grid, 0), 0)
    settled.scale = widened_scale(weight.detach(), weight.detach().abs().flatten(1).amax(1) / 127, LIMIT)
    settled.zero_point = torch.zeros(8, dtype=torch.int32)
    trainer = WeightTrainer(settled, weight.detach(), weight.detach(), mode)
    optimizer = torch.optim.Adam([p for p in trainer.parameters() if p.requires_grad], lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        (-trainer(weight).abs().sum()).backward()
        optimizer.step()
        step = trainer.scale.detach().reshape(-1, 1, 1, 1)
        if mode is not WeightMode.ROUNDING:  # that one is undecided until it settles
            assert largest_sum((trainer(weight).detach() / step).round()) <= LIMIT
    trainer.settle(settled, weight)
    integers = quantize(weight.detach(), settled.scale, settled.zero_point, grid, axis=0)
    assert largest_sum(integers) <= LIMIT
    torch.testing.assert_close(settled(weight.detach()), weight.detach())

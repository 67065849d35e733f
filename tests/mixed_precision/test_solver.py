"""Widths chosen for a budget: the best there are, and never beyond it."""

from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qgait_ptq.mixed_precision.costs import CostModel
from qgait_ptq.mixed_precision.groups import LayerCost
from qgait_ptq.mixed_precision.solver import Resource, allocate, describe, pareto_front, smallest_cost

# Three layers; the second and the third read the same tensor, and the first the silhouettes.
LAYERS = (
    LayerCost(0, None, 500, 4000, "a"),
    LayerCost(1, 3, 900, 9000, "b"),
    LayerCost(2, 3, 100, 2500, "c"),
)
COSTS = CostModel(LAYERS, int4_weights=True, fixed_bytes=1000)
DAMAGE = st.floats(1e-6, 1e-2)
DAMAGES = st.lists(st.tuples(DAMAGE, DAMAGE, DAMAGE), min_size=4, max_size=4).map(
    lambda rows: [dict(zip((2, 4, 8), sorted(row, reverse=True), strict=True)) for row in rows]
)


def every_allocation(damages):
    return [describe(widths, damages, COSTS) for widths in product(*damages)]


@settings(max_examples=15)
@given(DAMAGES, st.sampled_from(list(Resource)), st.floats(0, 1))
def test_no_other_widths_within_the_budget_do_less_damage(damages, resource, share):
    candidates = every_allocation(damages)
    costs = [candidate.cost(resource) for candidate in candidates]
    limit = min(costs) + share * (max(costs) - min(costs))
    found = allocate(damages, COSTS, resource, limit)
    best = min(c.damage for c in candidates if c.cost(resource) <= limit)
    assert found.cost(resource) <= limit
    assert found.damage == pytest.approx(best, rel=1e-6)


@given(DAMAGES, st.sampled_from(list(Resource)))
@settings(max_examples=10)
def test_a_budget_below_the_cheapest_widths_has_no_solution(damages, resource):
    smallest = smallest_cost(damages, COSTS, resource)
    assert smallest == min(c.cost(resource) for c in every_allocation(damages))
    assert allocate(damages, COSTS, resource, smallest - 1) is None
    assert allocate(damages, COSTS, resource, smallest) is not None


@pytest.mark.parametrize("small", [32, 2048])
@pytest.mark.parametrize("big", [10**9, 3 * 10**10])
def test_a_budget_of_exactly_the_cheapest_widths_is_kept(small, big):
    """A layer of few operations is within the solver's tolerance."""
    layers = (
        LayerCost(0, None, big // 10, 5000, "a"),
        LayerCost(1, 3, big, 5000, "b"),
        LayerCost(2, 4, small, 5000, "c"),
    )
    costs = CostModel(layers, int4_weights=True, fixed_bytes=5000)
    weights = {2: 0.1, 3: 0.02, 4: 0.004, 6: 0.0008, 8: 1e-6}
    damages = [weights, weights, weights, {8: 1e-6}, {8: 1e-6}]
    smallest = smallest_cost(damages, costs, Resource.BIT_OPERATIONS)
    exact = allocate(damages, costs, Resource.BIT_OPERATIONS, smallest)
    assert (exact.widths, exact.bit_operations) == ((2, 2, 2, 8, 8), smallest)
    roomier = allocate(damages, costs, Resource.BIT_OPERATIONS, smallest + 6 * 8 * small)
    assert roomier.widths == (2, 2, 8, 8, 8)


def test_small_layers_have_fewer_bytes_at_8_bits():
    """Nodes that unpack 4-bit weights take more than a small layer's weights save."""
    small = CostModel((*LAYERS[:2], LayerCost(2, 3, 100, 700, "c")), int4_weights=True, fixed_bytes=0)
    damages = [{4: 1.0, 8: 0.1}] * 4
    assert small.smallest_widths(damages) == [4, 4, 8, 4]
    cheapest = min(describe(widths, damages, small).cost(Resource.SIZE) for widths in product(*damages))
    assert smallest_cost(damages, small, Resource.SIZE) == cheapest


@given(DAMAGES, st.sampled_from(list(Resource)))
@settings(max_examples=10)
def test_along_the_front_cost_rises_and_damage_falls(damages, resource):
    front = pareto_front(damages, COSTS, resource)
    costs = [allocation.cost(resource) for allocation in front]
    assert costs == sorted(costs)
    for cheaper, better in pairwise(front):
        assert better.damage <= cheaper.damage * (1 + 1e-9)


def test_weights_that_layers_share_count_once():
    shared = CostModel((LAYERS[1], LayerCost(1, 3, 900, 0, "b")), int4_weights=True, fixed_bytes=0)
    assert shared.weight_bytes(1, 8) == 9000
    assert shared.total_bit_operations([8, 8, 8, 8]) == 2 * 900 * 64


def test_without_int4_storage_narrow_weights_save_nothing():
    wide = CostModel(LAYERS, int4_weights=False, fixed_bytes=0)
    assert wide.weight_bytes(0, 4) == wide.weight_bytes(0, 8) == 4000
    assert COSTS.weight_bytes(0, 4) < 4000 == COSTS.weight_bytes(0, 6)


def test_no_layer_stays_narrow_that_still_fits_exactly():
    """Within its tolerance, the solver leaves the large layer at 6 bits, as if the rest were used."""
    large = LayerCost(0, None, 10**6, 5000, "a")
    layers = (large, LayerCost(1, 4, 3, 5000, "b"), LayerCost(2, 5, 3, 5000, "c"))
    costs = CostModel(layers, int4_weights=True, fixed_bytes=5000)
    damages = [
        {2: 0.12, 3: 0.0175, 4: 0.028, 6: 0.00095, 8: 4e-9},
        {2: 0.1024, 3: 0.03, 4: 0.025, 6: 0.0144, 8: 2.4e-9},
        {2: 0.119, 3: 0.0419, 4: 0.02185, 6: 5.9e-7, 8: 2.75e-9},
        {2: 0.0079, 3: 0.000488, 4: 3.01e-6, 6: 6.29e-7, 8: 0.00126},
        {2: 0.1714, 3: 0.07456, 4: 0.0066, 6: 0.0003, 8: 0.0019},
        {2: 0.0065, 3: 0.0002, 4: 3.4e-5, 6: 0.0145, 8: 3.8e-9},
    ]
    limit = costs.all_bit_operations
    options = [describe(widths, damages, costs) for widths in product(*damages)]
    best = min((one for one in options if one.bit_operations <= limit), key=lambda one: one.damage)
    assert best.widths[0] == 8
    assert allocate(damages, costs, Resource.BIT_OPERATIONS, limit).widths == best.widths

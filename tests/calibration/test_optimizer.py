"""The optimizer of end-to-end training: orthogonalized momentum, and Adam."""

import copy

import pytest
import torch
from torch import nn

from qgait_ptq.calibration.optimizer import (
    ADAM_SHARE,
    OrthogonalMomentum,
    TrainingOptimizer,
    orthogonalized,
)


@pytest.mark.parametrize("shape", [(1, 8, 40), (3, 40, 8), (5, 6, 6), (4, 1, 9)])
def test_orthogonalized_matrices_keep_their_singular_vectors_and_lose_their_singular_values(shape):
    torch.manual_seed(0)
    matrices = torch.randn(shape)
    result = orthogonalized(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    core = left.transpose(1, 2) @ result @ right.transpose(1, 2)
    torch.testing.assert_close(core, torch.diag_embed(core.diagonal(dim1=1, dim2=2)), atol=1e-3, rtol=0)


def test_a_zero_matrix_stays_zero():
    assert torch.equal(orthogonalized(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_each_channel_group_is_a_matrix_of_its_own():
    torch.manual_seed(0)
    start, gradient = torch.zeros(8, 3, 3, 3), torch.randn(8, 3, 3, 3)
    gradient[4:] *= 1e-3  # the gradients of one group may be small
    moved = {}
    for matrices in (1, 2):
        weight = nn.Parameter(start.clone())
        weight.grad = gradient.clone()
        OrthogonalMomentum([{"params": [weight], "lr": 1.0, "matrices": matrices}]).step()
        moved[matrices] = weight.detach()
    sizes = moved[2].unflatten(0, (2, 4)).flatten(1).norm(dim=1)
    assert 0.7 < float(sizes[0] / sizes[1]) < 1.4
    assert moved[1].square().mean().sqrt().item() == pytest.approx(ADAM_SHARE)
    assert moved[2].square().mean().sqrt().item() == pytest.approx(ADAM_SHARE)


def regression(steps, optimizer_of, resume_at=None):
    """Return the error of a linear regression with badly scaled inputs after some steps."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 12) * torch.logspace(0, -2, 12)
    wanted = inputs @ torch.randn(12, 6)
    weight, bias = nn.Parameter(torch.zeros(6, 12)), nn.Parameter(torch.zeros(6))
    optimizer = optimizer_of(weight, bias)
    for step in range(steps):
        if step == resume_at:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = optimizer_of(weight, bias)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        loss = (inputs @ weight.T + bias - wanted).square().sum() / wanted.square().sum()
        loss.backward()
        optimizer.step(1 - step / steps)
    return float(loss.detach()), torch.cat([weight.detach().flatten(), bias.detach()])


def both(weight, bias):
    groups = [{"params": [weight], "full_rate": 0.3, "matrices": 1}, {"params": [bias], "full_rate": 0.01}]
    return TrainingOptimizer(groups)


def test_it_reaches_the_solution_of_a_badly_scaled_regression():
    loss, _ = regression(150, both)
    assert loss < 1e-3


def test_a_resumed_optimizer_takes_the_same_steps():
    _, whole = regression(20, both)
    _, resumed = regression(20, both, resume_at=9)
    assert torch.equal(whole, resumed)


def test_parameters_are_those_of_all_groups():
    weight, bias = nn.Parameter(torch.zeros(6, 12)), nn.Parameter(torch.zeros(6))
    assert {id(p) for p in both(weight, bias).parameters} == {id(weight), id(bias)}

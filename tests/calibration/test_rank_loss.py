"""The rank loss against its formula, and that the float network cannot lower it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qgait_ptq.calibration.rank_loss import SHARPNESS, mean_distances, rank_loss


def embeddings(seed, count=8, shape=(5, 3)):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def euclidean(a, b):
    return np.linalg.norm(a - b)


def cosine(a, b):
    return 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


METRICS = {"euclidean": euclidean, "cosine": cosine}


def by_the_formula(quantized, reference, labels, metric):
    """The loss in numpy, sequence by sequence."""

    def distance(x, i, j):
        return np.mean([METRICS[metric](x[i, :, p], x[j, :, p]) for p in range(x.shape[2])])

    q, r, count = quantized.double().numpy(), reference.double().numpy(), len(labels)
    unlike = [(i, j) for i in range(count) for j in range(count) if labels[i] != labels[j]]
    unit = np.mean([distance(r, i, j) for i, j in unlike])

    def log_probability(x, i, j):
        others = [np.exp(-SHARPNESS * distance(x, i, k) / unit) for k in range(count) if k != i]
        return -SHARPNESS * distance(x, i, j) / unit - np.log(sum(others))

    pairs = [(i, j) for i in range(count) for j in range(count) if i != j and labels[i] == labels[j]]
    return np.mean([max(0, log_probability(r, i, j) - log_probability(q, i, j)) for i, j in pairs])


@pytest.mark.parametrize("metric", METRICS)
def test_it_is_its_formula(metric):
    reference, labels = embeddings(0), torch.tensor([0, 0, 1, 1, 2, 2, 2, 3])
    quantized = reference + 0.3 * embeddings(1)
    expected = by_the_formula(quantized, reference, labels, metric)
    assert expected > 0.1
    assert float(rank_loss(quantized, reference, labels, metric)) == pytest.approx(expected, rel=1e-3)


@given(st.integers(0, 1000), st.floats(0.1, 10), st.sampled_from(list(METRICS)))
def test_the_float_network_has_no_loss_and_no_gradient(seed, scale, metric):
    reference = scale * embeddings(seed)
    quantized = reference.clone().requires_grad_(True)
    loss = rank_loss(quantized, reference, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), metric)
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(quantized.grad.abs().max()) == 0


@given(st.integers(0, 1000), st.permutations(range(8)), st.floats(0.1, 10))
def test_neither_the_order_nor_a_common_scale_counts(seed, order, scale):
    reference, labels = embeddings(seed), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    quantized = reference + 0.3 * embeddings(seed + 1)
    loss = float(rank_loss(quantized, reference, labels))
    moved = rank_loss(scale * quantized[order], scale * reference[order], labels[order])
    assert float(moved) == pytest.approx(loss, rel=1e-3, abs=1e-4)


@given(st.integers(0, 1000), st.lists(st.floats(0.1, 10), min_size=8, max_size=8))
def test_lengths_do_not_count_with_the_cosine(seed, factors):
    reference, labels = embeddings(seed), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    quantized = reference + 0.3 * embeddings(seed + 1)
    scaled = quantized * torch.tensor(factors)[:, None, None]
    loss = float(rank_loss(quantized, reference, labels, "cosine"))
    assert float(rank_loss(scaled, reference, labels, "cosine")) == pytest.approx(loss, rel=1e-3, abs=1e-4)


def test_people_who_come_closer_to_themselves_have_no_loss():
    reference, labels = embeddings(0), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    means = reference.unflatten(0, (4, 2)).mean(1).repeat_interleave(2, 0)
    nearer, further = (reference + step * (means - reference) for step in (0.3, -0.3))
    assert float(rank_loss(nearer, reference, labels)) == 0
    assert float(rank_loss(further, reference, labels)) > 0.1


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 0, 0], []])
def test_without_pairs_or_without_others_it_is_zero(labels):
    count = len(labels)
    assert float(rank_loss(embeddings(0, count), embeddings(1, count), torch.tensor(labels))) == 0


def test_distances_are_those_of_rankings():
    embedding, others = embeddings(0), ~torch.eye(8, dtype=torch.bool)
    for parts in (embedding, embedding[..., 0]):
        each = parts[..., None] if parts.ndim == 2 else parts
        expected = torch.stack([torch.cdist(e, e) for e in each.double().unbind(2)]).mean(0)
        found = mean_distances(parts).double()
        torch.testing.assert_close(found[others], expected[others], rtol=1e-4, atol=1e-5)

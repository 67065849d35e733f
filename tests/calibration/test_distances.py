"""The IDC loss against its definition, term by term."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from qgait_ptq.calibration.distances import IdcLoss, by_part, pairwise_distances, spread_of
from qgait_ptq.errors import ConfigError
from qgait_ptq.gait.metrics import part_distances

LABELS = torch.tensor([0, 0, 1, 1, 2])


def embeddings(seed, shape=(5, 6, 3)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def euclidean(a, b):
    return (a - b).norm()


def cosine(a, b):
    return 1 - (a @ b) / (a.norm() * b.norm())


METRICS = {"euclidean": euclidean, "cosine": cosine}
OTHERS = ~torch.eye(5, dtype=torch.bool)


def by_definition(student, teacher, labels, metric):
    """The formulas in float64, with loops over parts and pairs."""
    s, t = by_part(student).double(), by_part(teacher).double()
    pairs = [(i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j]
    unlike = [(i, j) for i, j in pairs if labels[i] != labels[j]]
    like = [(i, j) for i, j in pairs if labels[i] == labels[j]]

    def distance(e, p, i, j):
        return METRICS[metric](e[p, i], e[p, j])

    parts = range(len(t))
    unit = torch.stack([distance(t, p, i, j) for p in parts for i, j in unlike]).mean()

    def term(chosen):
        return torch.stack(
            [
                F.huber_loss((distance(s, p, i, j) - distance(t, p, i, j)) / unit, torch.zeros(()).double())
                for p in parts
                for i, j in chosen
            ]
        ).mean()

    anchor = (s - t).square().sum() / (t - t.mean(1, keepdim=True)).square().sum()
    return term(unlike), term(like), anchor


@pytest.mark.parametrize("metric", METRICS)
def test_terms_are_those_of_the_definition(metric):
    teacher, student = embeddings(0), embeddings(0) + 0.3 * embeddings(1)
    expected = by_definition(student, teacher, LABELS, metric)
    given_terms = IdcLoss(metric=metric).terms(by_part(student), by_part(teacher), LABELS)
    for value, wanted in zip(given_terms, expected, strict=False):
        assert float(value) == pytest.approx(float(wanted), rel=1e-4)
    total = IdcLoss(1.0, 0.25, 1.0, metric=metric)(student, teacher, LABELS)
    assert float(total) == pytest.approx(float(expected[0] + 0.25 * expected[1] + expected[2]), rel=1e-4)


def test_plain_embeddings_are_one_part():
    teacher, student = embeddings(0, (5, 6)), embeddings(1, (5, 6))
    loss = IdcLoss()
    assert loss(student, teacher, LABELS) == loss(student[..., None], teacher[..., None], LABELS)


@pytest.mark.parametrize("metric", METRICS)
def test_equal_embeddings_lose_nothing_and_have_a_finite_gradient(metric):
    student = embeddings(0).requires_grad_(True)
    loss = IdcLoss(neighbour_weight=0.1, metric=metric)(student, embeddings(0), LABELS)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(student.grad).all()
    same_twice = torch.zeros(5, 6, 3, requires_grad=True)
    IdcLoss(metric=metric)(same_twice, embeddings(0), LABELS).backward()
    assert torch.isfinite(same_twice.grad).all()


@given(st.integers(0, 100), st.floats(-3, 3))
def test_distance_terms_are_blind_to_shift_and_the_anchor_is_not(seed, shift):
    teacher = embeddings(seed)
    terms = IdcLoss().terms(by_part(teacher + shift), by_part(teacher), LABELS)
    assert float(terms[0]) < 1e-6
    assert float(terms[2]) == pytest.approx(
        shift**2 * teacher.numel() / float((teacher - teacher.mean(0)).square().sum()), rel=1e-3, abs=1e-9
    )


def test_a_factor_for_each_part_is_seen():
    teacher = embeddings(0)
    scaled = teacher * torch.tensor([0.5, 1.0, 2.0])
    assert float(IdcLoss(anchor_weight=0)(scaled, teacher, LABELS)) > 0.01


def test_labels_decide_which_pairs_count():
    teacher = embeddings(0)
    student = teacher.clone()
    student[0] += 0.5  # changes the distance to clip 1 of the same identity, and to all others
    neg_only = IdcLoss(pos_weight=0, anchor_weight=0)
    one_identity_each = torch.arange(5)
    assert neg_only(student, teacher, one_identity_each) != neg_only(student, teacher, LABELS)
    everybody_alike = torch.zeros(5, dtype=torch.long)
    assert neg_only(student, teacher, everybody_alike) == 0


def test_the_neighbour_term_is_zero_for_equal_rankings_of_distances_and_grows():
    teacher = embeddings(0)
    rank_only = IdcLoss(0, 0, 0, 1.0)
    assert float(rank_only(teacher + 1.0, teacher, LABELS)) == pytest.approx(0, abs=1e-5)
    near, far = (float(rank_only(teacher + s * embeddings(2), teacher, LABELS)) for s in (0.1, 1.0))
    assert 0 < near < far


def test_distances_equal_torchs():
    parts = by_part(embeddings(3))
    given_distances, expected = pairwise_distances(parts), torch.cdist(parts, parts)
    torch.testing.assert_close(given_distances[:, OTHERS], expected[:, OTHERS], atol=1e-4, rtol=1e-4)
    assert given_distances[:, ~OTHERS].max() < 5e-3  # of a clip to itself: a root of rounding errors


def test_the_default_is_the_euclidean_distance_bit_by_bit():
    parts = by_part(embeddings(3))
    centred = parts - parts.mean(1, keepdim=True)
    squares = centred.square().sum(-1)
    between = squares[:, :, None] + squares[:, None, :] - 2 * (centred @ centred.mT)
    assert torch.equal(pairwise_distances(parts), (between.relu() + 1e-12).sqrt())
    assert IdcLoss() == IdcLoss(metric="euclidean")


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_cosine_distances_are_those_of_the_evaluation(spread):
    """In float64. Float32 keeps the digits of embeddings that point in nearly one direction."""
    parts = embeddings(0, (1, 6, 3)) + spread * embeddings(1)
    expected = part_distances(parts.double(), parts.double(), "cosine")
    given_distances = pairwise_distances(by_part(parts), "cosine").mean(0).double()
    torch.testing.assert_close(given_distances[OTHERS], expected[OTHERS], rtol=1e-3, atol=0)


def test_an_embedding_of_zeros_has_the_distance_of_the_evaluation_and_no_gradient():
    parts = embeddings(0)
    parts[0] = 0
    parts[1, :, 2] = 0
    expected = part_distances(parts, parts, "cosine")
    student = parts.clone().requires_grad_(True)
    found = pairwise_distances(by_part(student), "cosine").mean(0)
    torch.testing.assert_close(found.detach()[OTHERS], expected[OTHERS])
    found.sum().backward()
    assert torch.isfinite(student.grad).all()
    assert float(student.grad[0].abs().max()) == float(student.grad[1, :, 2].abs().max()) == 0
    assert float(student.grad[2:].abs().min()) > 0


def test_embeddings_that_are_not_numbers_have_no_cosine_distance():
    parts = embeddings(0)
    parts[0, 0, 0] = torch.nan
    assert pairwise_distances(by_part(parts), "cosine")[0, 0, 1:].isnan().all()


@given(st.integers(0, 100), st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=5))
def test_the_length_of_an_embedding_does_not_count_in_cosine_distances(seed, factors):
    teacher, student = embeddings(seed), embeddings(seed) + 0.3 * embeddings(seed + 1)
    loss = IdcLoss(anchor_weight=0, neighbour_weight=0.1, metric="cosine")
    scaled = student * torch.tensor(factors)[:, None, None]
    assert float(loss(scaled, teacher, LABELS)) == pytest.approx(
        float(loss(student, teacher, LABELS)), rel=1e-3
    )


def test_gradients_of_cosine_distances_do_not_change_lengths():
    student = (embeddings(0) + 0.3 * embeddings(1)).requires_grad_(True)
    IdcLoss(anchor_weight=0, metric="cosine")(student, embeddings(0), LABELS).backward()
    along = (student.grad * student.detach()).sum(1)
    assert float(along.abs().max()) < 1e-5 * float(student.grad.abs().max())


def test_an_unknown_metric_is_refused():
    with pytest.raises(ConfigError, match="unknown metric 'Cosine'"):
        pairwise_distances(by_part(embeddings(0)), "Cosine")


def test_the_anchor_of_a_batch_is_the_mean_of_its_pieces_if_the_spread_is_that_of_the_batch():
    teacher, student = embeddings(0, (8, 6, 3)), embeddings(0, (8, 6, 3)) + 0.3 * embeddings(1, (8, 6, 3))
    spread = spread_of(teacher)
    pieces = [float(IdcLoss.anchor(student[i : i + 2], teacher[i : i + 2], spread)) for i in range(0, 8, 2)]
    assert sum(pieces) / 4 == pytest.approx(float(IdcLoss.anchor(student, teacher)), rel=1e-5)
    assert float(IdcLoss.anchor(student[:1], teacher[:1], spread)) < 10  # one clip alone has no spread

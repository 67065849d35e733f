"""The IDC loss against its definition, term by term."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from qgait_ptq.calibration.distances import IdcLoss, by_part, pairwise_distances, spread_of

LABELS = torch.tensor([0, 0, 1, 1, 2])


def embeddings(seed, shape=(5, 6, 3)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_definition(student, teacher, labels):
    """The formulas with loops over parts and pairs."""
    s, t = by_part(student).double(), by_part(teacher).double()
    pairs = [(i, j) for i in range(len(labels)) for j in range(len(labels)) if i != j]
    unlike = [(i, j) for i, j in pairs if labels[i] != labels[j]]
    like = [(i, j) for i, j in pairs if labels[i] == labels[j]]

    def distance(e, p, i, j):
        return (e[p, i] - e[p, j]).norm()

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


def test_terms_are_those_of_the_definition():
    teacher, student = embeddings(0), embeddings(0) + 0.3 * embeddings(1)
    expected = by_definition(student, teacher, LABELS)
    given_terms = IdcLoss().terms(by_part(student), by_part(teacher), LABELS)
    for value, wanted in zip(given_terms, expected, strict=False):
        assert float(value) == pytest.approx(float(wanted), rel=1e-4)
    total = IdcLoss(1.0, 0.25, 1.0)(student, teacher, LABELS)
    assert float(total) == pytest.approx(float(expected[0] + 0.25 * expected[1] + expected[2]), rel=1e-4)


def test_plain_embeddings_are_one_part():
    teacher, student = embeddings(0, (5, 6)), embeddings(1, (5, 6))
    loss = IdcLoss()
    assert loss(student, teacher, LABELS) == loss(student[..., None], teacher[..., None], LABELS)


def test_equal_embeddings_lose_nothing_and_have_a_finite_gradient():
    student = embeddings(0).requires_grad_(True)
    loss = IdcLoss(neighbour_weight=0.1)(student, embeddings(0), LABELS)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(student.grad).all()
    same_twice = torch.zeros(5, 6, 3, requires_grad=True)
    IdcLoss()(same_twice, embeddings(0), LABELS).backward()
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
    others = ~torch.eye(5, dtype=torch.bool)
    given_distances, expected = pairwise_distances(parts), torch.cdist(parts, parts)
    torch.testing.assert_close(given_distances[:, others], expected[:, others], atol=1e-4, rtol=1e-4)
    assert given_distances[:, ~others].max() < 5e-3  # of a clip to itself: a root of rounding errors


def test_the_anchor_of_a_batch_is_the_mean_of_its_pieces_if_the_spread_is_that_of_the_batch():
    teacher, student = embeddings(0, (8, 6, 3)), embeddings(0, (8, 6, 3)) + 0.3 * embeddings(1, (8, 6, 3))
    spread = spread_of(teacher)
    pieces = [float(IdcLoss.anchor(student[i : i + 2], teacher[i : i + 2], spread)) for i in range(0, 8, 2)]
    assert sum(pieces) / 4 == pytest.approx(float(IdcLoss.anchor(student, teacher)), rel=1e-5)
    assert float(IdcLoss.anchor(student[:1], teacher[:1], spread)) < 10  # one clip alone has no spread

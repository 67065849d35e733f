"""Digests that tell test sets apart."""

from dataclasses import replace

import numpy as np
import pytest

from qgait_ptq.gait.data.content import digest_of_tests, sequence_digest
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.protocols import PROTOCOLS, TestSet

WALKS = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 4), dtype=np.uint8)
TESTS = TestSet(PROTOCOLS["gait3d"], [0, 1], {"all": [2, 3]})


def digest(walks, test_set=TESTS, names="aabb", order=(0, 1, 2, 3)):
    records = GaitDataset.from_pairs(zip(WALKS, names, strict=True)).records
    return digest_of_tests([records[i] for i in order], [sequence_digest(walks[i]) for i in order], test_set)


def test_equal_test_sets_have_equal_digests_in_any_order():
    assert digest(WALKS) == digest(WALKS.copy())
    turned = TestSet(PROTOCOLS["gait3d"], [3, 2], {"all": [1, 0]})
    assert digest(WALKS, turned, order=(3, 2, 1, 0)) == digest(WALKS)


@pytest.mark.parametrize(
    "other",
    [
        digest(WALKS[:, :, ::-1]),
        digest([WALKS[0][:5], *WALKS[1:]]),
        digest(WALKS[[1, 0, 2, 3]]),
        digest(WALKS.astype(np.float32)),
        digest(WALKS, names="aabc"),
        digest(WALKS, None),
        digest(WALKS, replace(TESTS, gallery=[0])),
        digest(WALKS, replace(TESTS, gallery=[2, 3], probes={"all": [0, 1]})),
        digest(WALKS, replace(TESTS, probes={"nm": [2], "bg": [3]})),
    ],
)
def test_other_values_lengths_names_or_uses_have_another_digest(other):
    assert other != digest(WALKS)

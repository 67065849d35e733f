"""Metadata: what counts as a proof that a file gives the same integers everywhere."""

import pytest

from qgait_ptq.exporters.metadata import is_proven_safe


@pytest.mark.parametrize(
    ("metadata", "proven"),
    [
        ({"pair_sums": {"safe": True}}, True),
        ({"pair_sums": {"safe": False}}, False),
        ({"pair_sums": {}}, False),
        ({"pair_sums": {"safe": 1}}, False),
        ({}, False),
        (None, False),
    ],
)
def test_only_a_stated_proof_makes_a_file_safe(metadata, proven):
    assert is_proven_safe(metadata) is proven

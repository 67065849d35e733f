"""Proof that a file gives the same integers on every processor: pair sums and additions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx

from qgait_ptq.reference.additions import AdditionProof, prove_additions
from qgait_ptq.reference.pair_sums import PairSums, bound_pair_sums


@dataclass(frozen=True)
class ExactnessProof:
    """Proofs about a file.

    Attributes:
        pair_sums: bounds of the layers' pair sums.
        additions: proofs of the additions of two quantized tensors, over all codes.
    """

    pair_sums: PairSums
    additions: tuple[AdditionProof, ...]

    @property
    def differing_additions(self) -> tuple[AdditionProof, ...]:
        """Return the additions that processors round to different integers."""
        return tuple(addition for addition in self.additions if addition.differing)

    @property
    def exact(self) -> bool:
        """Return whether the file is proven to give the same integers on every processor."""
        return self.pair_sums.safe and not self.differing_additions

    def verdict(self) -> str:
        """Return the result of the proof as one sentence."""
        if self.exact:
            return "the same integers in layers and additions on every processor"
        if not self.pair_sums.safe:
            return self.pair_sums.verdict()
        names = [addition.node for addition in self.differing_additions]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return f"the same sums in every layer; additions that ARM64 rounds differently: {shown}"

    def describe(self) -> dict[str, Any]:
        """Return the entry ``pair_sums`` of a report and of a file's metadata."""
        names = [addition.node for addition in self.differing_additions]
        return {**self.pair_sums.describe(), "differing_additions": names}


def prove_exactness(model: onnx.ModelProto) -> ExactnessProof:
    """Prove that a file gives the same integers on every processor, or list where it does not."""
    return ExactnessProof(bound_pair_sums(model), prove_additions(model))

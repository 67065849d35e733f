"""Costs of widths: bytes of the file, and bit operations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qgait_ptq.mixed_precision.groups import LayerCost

INT4_BITS = 4
INT4_NODES = 400  # bytes of the nodes that convert 4-bit weights of a layer to int8


@dataclass(frozen=True)
class CostModel:
    """Costs of a network's layers.

    Attributes:
        layers: costs of each call of a layer.
        int4_weights: whether weights of up to 4 bits are stored two to a byte.
        fixed_bytes: bytes of the file without weights.
    """

    layers: Sequence[LayerCost]
    int4_weights: bool
    fixed_bytes: int

    @classmethod
    def of_file(
        cls, layers: Sequence[LayerCost], int4_weights: bool, file_bytes: int, metadata: int
    ) -> CostModel:
        """Return the model for a file of known size.

        Args:
            layers: costs of each call of a layer.
            int4_weights: whether weights of up to 4 bits are stored two to a byte.
            file_bytes: bytes of the file with all weights at 8 bits and no metadata.
            metadata: bytes of the metadata.
        """
        stored = sum(layer.elements for layer in layers)
        return cls(layers, int4_weights, file_bytes - stored + metadata)

    def weight_bytes(self, group: int, bits: int) -> int:
        """Return the bytes of a group's weights at a width."""
        packed = self.int4_weights and bits <= INT4_BITS
        layers = [layer for layer in self.layers if layer.weights == group and layer.elements]
        if not packed:
            return sum(layer.elements for layer in layers)
        return sum((layer.elements + 1) // 2 + INT4_NODES for layer in layers)

    def smallest_widths(self, options: Sequence[Iterable[int]]) -> list[int]:
        """Return the width of each group with the fewest bytes. Small layers are smaller at 8 bits."""
        return [
            min(admitted, key=lambda bits: (self.weight_bytes(group, bits), bits))
            for group, admitted in enumerate(options)
        ]

    def bit_operations(self, layer: LayerCost, weight_bits: int, activation_bits: int) -> int:
        """Return the multiply-accumulates of a layer times both widths."""
        return layer.macs * weight_bits * activation_bits

    def file_bytes(self, widths: Sequence[int]) -> int:
        """Return the bytes of the file, slightly overestimated.

        Args:
            widths: bits of each group.
        """
        groups = {layer.weights for layer in self.layers}
        return self.fixed_bytes + sum(self.weight_bytes(group, widths[group]) for group in groups)

    def total_bit_operations(self, widths: Sequence[int]) -> int:
        """Return the bit operations of the network."""
        return sum(
            self.bit_operations(layer, widths[layer.weights], self.activation_bits(layer, widths))
            for layer in self.layers
        )

    def activation_bits(self, layer: LayerCost, widths: Sequence[int]) -> int:
        """Return the width of a layer's input."""
        return layer.fixed_bits if layer.activations is None else widths[layer.activations]

    @property
    def all_bit_operations(self) -> int:
        """Bit operations with 8 bits everywhere, the reference of shares."""
        return sum(self.bit_operations(layer, 8, 8) for layer in self.layers)

"""Exact rewrites of FX graphs, and the list of those that every network goes through.

Passes for a single target are listed in `Target.graph_passes`.
"""

from __future__ import annotations

from qgait_ptq.graph.passes.attention import ATTENTION_TO_FOUR_AXES
from qgait_ptq.graph.passes.batch_norm import DROP_UNREAD_STATISTICS, FOLD_BATCH_NORMS
from qgait_ptq.graph.passes.biases import ADD_MISSING_BIASES
from qgait_ptq.graph.passes.constants import FOLD_CONSTANTS
from qgait_ptq.graph.passes.contractions import CONTRACTIONS_TO_EINSUM, SPLIT_EINSUMS
from qgait_ptq.graph.passes.divisors import DIVISORS_TO_PRODUCTS
from qgait_ptq.graph.passes.einsum import EINSUM_TO_MATMUL
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.passes.identities import DROP_IDENTITIES, DROP_WHOLE_SLICES
from qgait_ptq.graph.passes.in_place import REPLACE_IN_PLACE_OPERATORS
from qgait_ptq.graph.passes.linear import (
    LINEAR_TO_MATRICES,
    PART_LINEAR_TO_CONVOLUTION,
    PRODUCTS_TO_LINEAR,
)
from qgait_ptq.graph.passes.masks import MASKS_TO_LOGIC
from qgait_ptq.graph.passes.maxima import DROP_MAXIMA_INDICES, NAME_ALL_AXES
from qgait_ptq.graph.passes.ordering import ORDER_STATISTICS_TO_SORT
from qgait_ptq.graph.passes.paddings import PADDINGS_TO_NUMBERS
from qgait_ptq.graph.passes.pooling import ADAPTIVE_POOLS_OVER_FRAMES
from qgait_ptq.graph.passes.products import (
    NAME_PRODUCTS,
    SPLIT_SUMS_OF_PRODUCTS,
    VECTORS_TO_MATRICES,
)
from qgait_ptq.graph.passes.slices import PIECES_TO_SLICES, STACKS_TO_CONCATENATIONS
from qgait_ptq.graph.passes.unbatched import ADD_BATCH_AXES

# Passes that give each operation a single form.
CANONICALIZATION: tuple[GraphPass, ...] = (
    REPLACE_IN_PLACE_OPERATORS,
    DROP_IDENTITIES,
    DROP_WHOLE_SLICES,
    DROP_UNREAD_STATISTICS,
    PADDINGS_TO_NUMBERS,
    ADD_BATCH_AXES,
    NAME_PRODUCTS,
    SPLIT_SUMS_OF_PRODUCTS,
    VECTORS_TO_MATRICES,
    CONTRACTIONS_TO_EINSUM,
    SPLIT_EINSUMS,
    MASKS_TO_LOGIC,
    ADAPTIVE_POOLS_OVER_FRAMES,
    DIVISORS_TO_PRODUCTS,
    ORDER_STATISTICS_TO_SORT,
    DROP_MAXIMA_INDICES,
    NAME_ALL_AXES,
    ATTENTION_TO_FOUR_AXES,
    PIECES_TO_SLICES,
    FOLD_CONSTANTS,
    EINSUM_TO_MATMUL,
    FOLD_CONSTANTS,  # weights that the pass before permutes
    STACKS_TO_CONCATENATIONS,
    PRODUCTS_TO_LINEAR,
    LINEAR_TO_MATRICES,
)
# Passes that also reduce the number of operators.
SIMPLIFICATION: tuple[GraphPass, ...] = (
    *CANONICALIZATION,
    PART_LINEAR_TO_CONVOLUTION,
    FOLD_BATCH_NORMS,
    ADD_MISSING_BIASES,
)

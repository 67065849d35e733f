"""Matrix products in their usual form: a product of two matrices, and an addition."""

from __future__ import annotations

from torch import fx

from qgait_ptq.graph.operators import aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.shapes import observed_shape
from qgait_ptq.graph.views import argument, operands

WITH_ADDITION = {
    aten.addmm.default: ("mat1", "mat2"),
    aten.baddbmm.default: ("batch1", "batch2"),
    aten.addmv.default: ("mat", "vec"),
}


def split_sums_of_products(graph_module: fx.GraphModule) -> None:
    """Replace an addition and a product in one operator, such as `torch.addmm`, by two operators."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, frozenset(WITH_ADDITION)):
            continue
        factors = tuple(argument(node, name) for name in WITH_ADDITION[node.target])
        if argument(node, "beta") != 1 or argument(node, "alpha") != 1:
            continue
        with graph.inserting_before(node):
            product = graph.call_function(aten.matmul.default, factors)
            total = graph.call_function(aten.add.Tensor, (product, argument(node, "self")))
        node.replace_all_uses_with(total)


def vectors_to_matrices(graph_module: fx.GraphModule) -> None:
    """Give computed vectors in products a second axis.

    onnxruntime 1.32 computes a wrong product if the matrix beside a vector is transposed before.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, frozenset({aten.matmul.default})):
            continue
        left, right = operands(node)
        is_vector = [len(observed_shape(one) or ()) == 1 for one in (left, right)]
        is_stored = any(isinstance(one, fx.Node) and one.op == "get_attr" for one in (left, right))
        if sum(is_vector) != 1 or is_stored:
            continue
        with graph.inserting_before(node):
            if is_vector[0]:
                product = (graph.call_function(aten.unsqueeze.default, (left, 0)), right)
            else:
                product = (left, graph.call_function(aten.unsqueeze.default, (right, 1)))
            matrix = graph.call_function(node.target, product)
            squeezed = graph.call_function(aten.squeeze.dim, (matrix, -2 if is_vector[0] else -1))
        node.replace_all_uses_with(squeezed)


SPLIT_SUMS_OF_PRODUCTS = GraphPass("split-sums-of-products", split_sums_of_products)
VECTORS_TO_MATRICES = GraphPass("vectors-to-matrices", vectors_to_matrices)

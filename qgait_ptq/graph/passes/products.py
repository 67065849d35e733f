"""Matrix products in their usual form: a product of two matrices, and an addition."""

from __future__ import annotations

from torch import fx

from qgait_ptq.graph.operators import aten, is_operator
from qgait_ptq.graph.passes.graph_pass import GraphPass
from qgait_ptq.graph.shapes import observed_shape
from qgait_ptq.graph.views import argument, operands

# Matrix products under other names, of two vectors or of a matrix and a vector.
PLAIN = frozenset({aten.mv.default, aten.dot.default, aten.vdot.default, aten.linalg_matmul.default})
WITH_ADDITION = {
    aten.addmm.default: ("mat1", "mat2"),
    aten.baddbmm.default: ("batch1", "batch2"),
    aten.addbmm.default: ("batch1", "batch2"),
    aten.addmv.default: ("mat", "vec"),
}


def name_products(graph_module: fx.GraphModule) -> None:
    """Turn matrix products under other names, such as ``mv``, into ``matmul``."""
    for node in graph_module.graph.nodes:
        if is_operator(node, PLAIN):
            names = [declared.name for declared in node.target._schema.arguments[:2]]
            node.args, node.kwargs = tuple(argument(node, name) for name in names), {}
            node.target = aten.matmul.default


def split_sums_of_products(graph_module: fx.GraphModule) -> None:
    """Replace an addition and a product in one operator, such as `torch.addmm`, by two operators."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if not is_operator(node, frozenset(WITH_ADDITION)):
            continue
        left, right = (argument(node, name) for name in WITH_ADDITION[node.target])
        with graph.inserting_before(node):
            alpha = argument(node, "alpha")
            if right.op == "get_attr":  # scaled once, when constants are folded
                total = graph.call_function(aten.matmul.default, (left, _scaled(graph, right, alpha)))
            else:
                product = graph.call_function(aten.matmul.default, (left, right))
                total = _scaled(graph, product, alpha)
            if node.target is aten.addbmm.default:
                total = graph.call_function(aten.sum.dim_IntList, (total, [0]))
            if argument(node, "beta") != 0:  # with 0, NaN in the other term is ignored
                other = _scaled(graph, argument(node, "self"), argument(node, "beta"))
                total = graph.call_function(aten.add.Tensor, (total, other))
        node.replace_all_uses_with(total)


def _scaled(graph: fx.Graph, tensor: fx.Node, factor: float) -> fx.Node:
    """Insert the product of a tensor and a number; return the tensor itself for 1."""
    return tensor if factor == 1 else graph.call_function(aten.mul.Tensor, (tensor, factor))


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


NAME_PRODUCTS = GraphPass("name-products", name_products)
SPLIT_SUMS_OF_PRODUCTS = GraphPass("split-sums-of-products", split_sums_of_products)
VECTORS_TO_MATRICES = GraphPass("vectors-to-matrices", vectors_to_matrices)

"""Sensitivity: the damage of each quantizer alone, at each width.

The float network runs once on a batch, and its values are kept. For each quantizer and width, only the nodes
that depend on it are computed again. This costs about half a run of the network for each entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from qgait_ptq.gait.metric_names import Metric
from qgait_ptq.graph.attributes import tensor_of
from qgait_ptq.graph.views import source
from qgait_ptq.mixed_precision.damage import Damage, judge_damage
from qgait_ptq.mixed_precision.groups import Kind, WidthGroup
from qgait_ptq.placement.quantized_layers import quantized_layers, weight_only_weights
from qgait_ptq.stages.training_data import Clips
from qgait_ptq.system.exchanging import exchange, share_of

Embeddings = dict[str, Tensor]


@dataclass(frozen=True)
class Measurement:
    """The damage of one group alone at one width.

    Attributes:
        group: position of the group.
        bits: width of its quantizers; all others stay in float.
        damage: damage to the embeddings. For a group with several calls, distortions are summed and the
            worst of the other values is taken.
    """

    group: int
    bits: int
    damage: Damage


@dataclass(frozen=True)
class Sensitivity:
    """The table of all measurements.

    Attributes:
        groups: groups of quantizers.
        measurements: measurements of the groups.
        notes: lines for the user.
    """

    groups: tuple[WidthGroup, ...]
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()

    def damages(self) -> list[dict[int, float]]:
        """Return the distortion by width, for each group."""
        distortions: list[dict[int, float]] = [{} for _ in self.groups]
        for measurement in self.measurements:
            distortions[measurement.group][measurement.bits] = measurement.damage.distortion
        return distortions


class States(Protocol):
    """Storage of measurements, so that a killed run can be resumed."""

    def load(self, part: str) -> Any | None:
        """Return the state saved under a name; None if there is none."""
        ...

    def save(self, part: str, state: Any) -> None:
        """Save a state under a name."""
        ...


def measure_sensitivity(
    reference: fx.GraphModule,
    by_width: Mapping[int, fx.GraphModule],
    groups: Sequence[WidthGroup],
    widths: Mapping[Kind, Sequence[int]],
    clips: Clips,
    batch_size: int,
    device: torch.device,
    states: States,
    advance: Callable[[], None] = lambda: None,
    metric: Metric = "euclidean",
) -> list[Measurement]:
    """Measure every group at every width. The processes of a run share the quantizers.

    Args:
        reference: graph with quantizers switched off.
        by_width: calibrated graphs with all quantizers at one width, by width. Each weight is rounded as if
            no other layer were quantized.
        groups: groups of the graph.
        widths: widths to measure, by kind.
        clips: labelled clips of at least two identities.
        batch_size: number of clips in a batch; the values of all nodes are held for it.
        device: device of the graphs.
        states: saved states of this run, or of a killed one.
        advance: called after each batch.
        metric: distance between embeddings, by which damages are judged.
    """
    jobs = [
        (number, call, bits)
        for number, group in enumerate(groups)
        for call in group.calls
        for bits in widths[group.kind]
    ]
    parts: list[Embeddings] = []
    for number, batch in enumerate(clips.batches(batch_size, device)):
        part = states.load(f"sensitivity-{number}")
        if part is None:
            own = _embed_batch(reference, by_width, groups, share_of(jobs), batch)
            part = {name: embedding for some in exchange(own) for name, embedding in some.items()}
            states.save(f"sensitivity-{number}", part)
        parts.append(part)
        advance()
    embeddings = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    damages: dict[tuple[int, int], list[Damage]] = {}
    for g, call, bits in jobs:
        damage = judge_damage(embeddings[""], embeddings[_name(call, bits)], clips.labels, metric)
        damages.setdefault((g, bits), []).append(damage)
    return [Measurement(g, bits, _together(found)) for (g, bits), found in damages.items()]


def _embed_batch(
    reference: fx.GraphModule,
    by_width: Mapping[int, fx.GraphModule],
    groups: Sequence[WidthGroup],
    jobs: Sequence[tuple[int, str, int]],
    batch: Tensor,
) -> Embeddings:
    """Return the embeddings of a batch: in float (under the empty name), and for each job."""
    with torch.inference_mode():
        runner = _SuffixRunner(reference, batch)
        embeddings = {"": runner.embedding.cpu()}
        for g, call, bits in jobs:
            values = _quantized_values(by_width[bits], groups[g].kind, call, runner)
            embeddings[_name(call, bits)] = runner.run_from(values).cpu()
    return embeddings


def _quantized_values(
    quantized: fx.GraphModule, kind: Kind, call: str, runner: _SuffixRunner
) -> dict[str, Any]:
    """Return the values that change first when only the quantizers of a call are on, by node."""
    node = runner.nodes[call]
    if kind is Kind.ACTIVATIONS:
        return {call: quantized.get_submodule(str(node.target))(runner.values[source(node)])}
    in_float = [weight for weight in weight_only_weights(quantized) if weight.node.name == call]
    if in_float:
        return {weight.call.name: weight.quantizer(weight.value(quantized)) for weight in in_float}
    (layer,) = (layer for layer in quantized_layers(quantized) if layer.node.name == call)
    weight = layer.weight_quantizer(tensor_of(quantized, layer.weight_parameter))
    rest = [runner.value(argument) for argument in node.args[2:]]
    if layer.bias_parameter is not None:
        rest[0] = tensor_of(quantized, layer.bias_parameter)
    return {call: node.target(runner.value(source(node)), weight, *rest, **node.kwargs)}


class _SuffixRunner:
    """The values of all nodes on a batch, and runs that start at any node."""

    def __init__(self, graph_module: fx.GraphModule, batch: Tensor) -> None:
        self.graph_module = graph_module
        self.nodes = {node.name: node for node in graph_module.graph.nodes}
        interpreter = fx.Interpreter(graph_module, garbage_collect_values=False)
        self.embedding: Tensor = interpreter.run(batch)
        self.values: dict[fx.Node, Any] = interpreter.env

    def value(self, argument: Any) -> Any:
        """Return the value of an argument of a node."""
        return fx.map_arg(argument, lambda node: self.values[node])

    def run_from(self, values: Mapping[str, Any]) -> Tensor:
        """Return the embedding when some nodes have other values."""
        starts = {self.nodes[name]: value for name, value in values.items()}
        changed = set(starts)
        for node in self.graph_module.graph.nodes:
            if any(source in changed for source in node.all_input_nodes):
                changed.add(node)
        known = {node: kept for node, kept in self.values.items() if node not in changed}
        known |= starts
        embedding: Tensor = fx.Interpreter(self.graph_module).run(initial_env=known)
        return embedding


def _name(call: str, bits: int) -> str:
    return f"{call}@{bits}"


def _together(damages: list[Damage]) -> Damage:
    drops = [damage.rank1_drop for damage in damages]
    return Damage(
        distortion=sum(damage.distortion for damage in damages),
        distance_error=max(damage.distance_error for damage in damages),
        sqnr_db=min(damage.sqnr_db for damage in damages),
        rank1_drop=None if None in drops else max(drop for drop in drops if drop is not None),
    )

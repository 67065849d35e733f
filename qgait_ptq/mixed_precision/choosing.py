"""Choosing the width of each layer, for a budget or for an accuracy.

Widths are chosen between planning and calibration. Sensitivity determines which layers get more bits. For an
accuracy target, candidates are calibrated without labels and evaluated on held-out identities.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import fx

from qgait_ptq.calibration.batches import calibration_sequences, cut
from qgait_ptq.calibration.stages import WITHOUT_LABELS
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import CalibrationError, ConfigError
from qgait_ptq.gait.data.clips import split_identities_off
from qgait_ptq.mixed_precision.costs import CostModel
from qgait_ptq.mixed_precision.damage_table import (
    MEASURED_SEQUENCES,
    SensitivityMeasurement,
    describe_sensitivity,
)
from qgait_ptq.mixed_precision.groups import Kind, WidthGroup, own_widths
from qgait_ptq.mixed_precision.ranking import HeldOutRanking
from qgait_ptq.mixed_precision.search import Candidate, first_good, raise_widths
from qgait_ptq.mixed_precision.solver import (
    Allocation,
    Resource,
    allocate,
    check_solver,
    describe,
    pareto_front,
)
from qgait_ptq.placement.annotate import annotate
from qgait_ptq.placement.layers import list_layers
from qgait_ptq.placement.patterns import names_layer, pattern_of
from qgait_ptq.placement.planning import bit_widths
from qgait_ptq.stages.stage import run_stages
from qgait_ptq.stages.state import State
from qgait_ptq.system.invariants import present
from qgait_ptq.system.progress import Progress

ALL_WIDTHS = (2, 3, 4, 6, 8)
STORED_WIDTHS = (4, 8)  # widths of stored weights; other widths are stored as the next wider one
MEGABYTES = 1e6  # bytes in a megabyte of a file


@dataclass(frozen=True)
class Choice:
    """Chosen widths.

    Attributes:
        config: configuration with a width for each layer.
        drop: loss of held-out rank-1 in points; 0 if it was not measured.
        description: entry for the report.
    """

    config: QuantConfig
    drop: float
    description: dict[str, Any]


@dataclass(frozen=True)
class WidthChooser:
    """Chooses widths for one network.

    Attributes:
        state: prepared state.
        progress: receiver of progress messages.
    """

    state: State
    progress: Progress

    @property
    def config(self) -> QuantConfig:
        """Settings of the run."""
        return self.state.config

    @cached_property
    def measurement(self) -> SensitivityMeasurement:
        """Sensitivity measurement of each width."""
        sequences = min(MEASURED_SEQUENCES, self.config.calibration_sequences)
        return SensitivityMeasurement(replace(self.state, work_folder=None), self.progress, sequences)

    @property
    def groups(self) -> list[WidthGroup]:
        """Weights and inputs that have one width each."""
        return self.measurement.groups

    @property
    def resource(self) -> Resource:
        """Resource that the budget limits."""
        return _resource(self.config)

    def choose(self) -> Choice:
        """Choose a width for each layer.

        Raises:
            ConfigError: the budget cannot be met.
            MissingExtraError: the solver for budgets is not installed.
            CalibrationError: the accuracy cannot be met.
            DataError: there are too few labelled identities for a held-out ranking.
        """
        if self.config.max_drop is None:
            check_solver()
        options = self.options()
        costs = self.measurement.costs()
        # Refuse impossible requests before the measurement, which takes minutes.
        if self.config.budget is not None:
            self._check_budget(options, costs)
        else:
            held_out_ranking(self.state)
        sensitivity = self.measurement.measure(_by_kind(self.groups, options))
        measured = sensitivity.damages()
        damages = [{bits: measured[i][bits] for bits in admitted} for i, admitted in enumerate(options)]
        front = [] if self.config.max_drop is not None else pareto_front(damages, costs, self.resource)
        looks: list[dict[str, Any]] = []
        drop = 0.0
        if self.config.budget is not None:
            chosen = Candidate(self._best(damages, costs))
        else:
            candidates = [Candidate(allocation.widths) for allocation in front]
            if self.config.target_accuracy is None:
                start = [min(admitted) for admitted in options]
                candidates = [
                    candidate
                    for candidate in raise_widths(start, self.groups, damages)
                    if self._leaves_integers(candidate)
                ]
            chosen, drop, looks = self._accurate_enough(candidates)
        description = {
            "by": self.resource.value,
            "groups": [group.title for group in self.groups],
            "in_float": list(chosen.in_float),
            "looks": looks,
            "chosen": _describe(describe(chosen.widths, damages, costs), costs),
            "front": [_describe(allocation, costs) for allocation in front],
            "sensitivity": describe_sensitivity(sensitivity),
        }
        return Choice(self.with_widths(chosen), drop, description)

    def _best(self, damages: Sequence[dict[int, float]], costs: CostModel) -> tuple[int, ...]:
        """Return the widths with the least damage within the budget."""
        best = allocate(damages, costs, self.resource, self._limit(costs))
        return present(best).widths  # the narrowest widths are within the budget

    def options(self) -> list[tuple[int, ...]]:
        """Return the admissible widths of each group."""
        network = self.state.network
        layers = list_layers(network)
        nodes = {node.name: node for node in network.graph.nodes}
        options = []
        for group in self.groups:
            weights = group.kind is Kind.WEIGHTS
            rows = [layer for layer in layers if layer.name in group.layers]
            widths = [(layer.name, layer.weight_bits if weights else layer.activation_bits) for layer in rows]
            configured = next(bits for name, bits in widths if name == group.layers[0] and bits is not None)
            fixed = any(self._is_fixed(nodes[layer.node], group.kind) for layer in rows)
            options.append((configured,) if fixed else self._admitted(group.kind, configured))
        return options

    def _leaves_integers(self, candidate: Candidate) -> bool:
        """Return whether a candidate leaves a layer that computes on integers."""
        layers = [layer for layer in list_layers(self.state.network) if layer.weight_bits is not None]
        return any(not layer.weight_only and layer.name not in candidate.in_float for layer in layers)

    def _admitted(self, kind: Kind, configured: int) -> tuple[int, ...]:
        """Return the admissible widths of a group whose width the configuration does not fix."""
        if self.config.max_drop is not None:
            return (configured, *(bits for bits in ALL_WIDTHS if bits > configured))
        if self.resource is Resource.BIT_OPERATIONS:
            narrowest = self.state.target.storage.narrowest_activations if kind is Kind.ACTIVATIONS else 0
            return tuple(bits for bits in ALL_WIDTHS if bits >= narrowest)
        if kind is Kind.ACTIVATIONS:
            return (configured,)
        return STORED_WIDTHS if self.state.target.storage.int4_weights else STORED_WIDTHS[-1:]

    def _is_fixed(self, layer: fx.Node, kind: Kind) -> bool:
        """Return whether the configuration sets the width of a layer."""
        return any(
            names_layer(pattern, layer)
            and (bits.weight_bits if kind is Kind.WEIGHTS else bits.activation_bits) is not None
            for pattern, bits in self.config.layers.items()
        )

    def _check_budget(self, options: Sequence[tuple[int, ...]], costs: CostModel) -> None:
        """Refuse a budget that the cheapest widths exceed."""
        size = costs.file_bytes(costs.smallest_widths(options))
        operations = costs.total_bit_operations([min(admitted) for admitted in options])
        if (size if self.resource is Resource.SIZE else operations) <= self._limit(costs):
            return
        budget = present(self.config.budget)
        if self.resource is Resource.SIZE:
            asked = f"size={budget.size_mb:g}MB"
            least = f"the smallest file for target {self.state.target.name} has {size / MEGABYTES:.2f} MB"
        else:
            asked = f"bops={budget.bops_percent:g}%"
            least = f"the narrowest widths need {100 * operations / costs.all_bit_operations:.1f} %"
        raise ConfigError(f"the budget {asked} cannot be met: {least}; raise the budget")

    def _limit(self, costs: CostModel) -> float:
        """Return the budget in bytes or in bit operations."""
        budget = present(self.config.budget)
        if budget.size_mb is not None:
            return budget.size_mb * MEGABYTES
        return present(budget.bops_percent) / 100 * costs.all_bit_operations

    def _accurate_enough(
        self, candidates: Sequence[Candidate]
    ) -> tuple[Candidate, float, list[dict[str, Any]]]:
        """Return the cheapest candidate within the allowed drop, its drop, and all evaluations."""
        drops: dict[Candidate, float] = {}
        looks: list[dict[str, Any]] = []
        allowed, ranking = allowed_drop(self.config), held_out_ranking(self.state)
        reference = ranking.rank1(self.state.network)
        with self.progress.stage("ranking widths") as advance:

            def good(candidate: Candidate) -> bool:
                drop = reference - ranking.rank1(self._calibrated(candidate))
                drops[candidate] = drop
                mean = sum(candidate.widths) / len(candidate.widths)
                look = {"mean_bits": round(mean, 2), "in_float": len(candidate.in_float)}
                looks.append({**look, "drop": round(drop, 3)})
                advance()
                return drop <= allowed

            position = first_good(candidates, good)
        if position is None:
            least = min(look["drop"] for look in looks)
            raise CalibrationError(
                f"no widths keep held-out rank-1 within {allowed:g} points of float; the smallest loss is "
                f"{least:.2f} points. Allow a larger loss, or calibrate with more sequences"
            )
        return candidates[position], drops[candidates[position]], looks

    def _calibrated(self, candidate: Candidate) -> fx.GraphModule:
        """Calibrate a candidate without labels; its corrections do not use held-out identities."""
        state, config = self.state, self.with_widths(candidate)
        network = copy.deepcopy(state.network)
        annotate(network, state.target.rules, bit_widths(config, raw=state.data.raw))
        calibrated = run_stages(WITHOUT_LABELS, replace(state, config=config, maybe_network=network))
        return calibrated.quantized

    def with_widths(self, candidate: Candidate) -> QuantConfig:
        """Return the configuration with the width of each layer by name."""
        layers = own_widths(self.groups, candidate.widths)
        return self.config.model_copy(
            update={
                "layers": {**self.config.layers, **layers},
                "exclude": (*self.config.exclude, *map(pattern_of, candidate.in_float)),
            }
        )


def allowed_drop(config: QuantConfig) -> float:
    """Return the allowed loss of held-out rank-1 in points."""
    return config.max_drop if config.max_drop is not None else -(config.target_accuracy or 0.0)


def held_out_ranking(state: State) -> HeldOutRanking:
    """Return a ranking of the held-out identities, which are the same as in IDC.

    Raises:
        DataError: fewer than eight identities have two sequences.
    """
    config, captured = state.config, state.captured
    subjects = cut(state, calibration_sequences(state), config.idc.frames).subjects
    _, held_out = split_identities_off(subjects, config.idc.held_out, config.seed)
    names = sorted({subjects[index] for index in held_out})
    return HeldOutRanking.of(
        state.data.calibration,
        names,
        captured.frame_shape,
        captured.frame_counts,
        state.device,
        state.data.metric,
        config.seed,
    )


def held_out_drop(state: State) -> float:
    """Return the loss of held-out rank-1 in the calibrated graph, in points."""
    ranking = held_out_ranking(state)
    float_rank1 = ranking.rank1(state.network)
    return float_rank1 - ranking.rank1(state.quantized)


def _resource(config: QuantConfig) -> Resource:
    by_operations = config.budget is not None and config.budget.bops_percent is not None
    return Resource.BIT_OPERATIONS if by_operations else Resource.SIZE


def _by_kind(groups: Sequence[WidthGroup], options: Sequence[tuple[int, ...]]) -> dict[Kind, tuple[int, ...]]:
    """Return all admissible widths by kind of group."""
    by_kind: dict[Kind, set[int]] = {kind: set() for kind in Kind}
    for group, admitted in zip(groups, options, strict=True):
        by_kind[group.kind].update(admitted)
    return {kind: tuple(sorted(widths)) for kind, widths in by_kind.items()}


def _describe(allocation: Allocation, costs: CostModel) -> dict[str, Any]:
    return {
        "widths": list(allocation.widths),
        "distortion": allocation.damage,
        "file_bytes": allocation.file_bytes,
        "bops_percent": 100 * allocation.bit_operations / costs.all_bit_operations,
    }

"""Widths for each layer: measured, and chosen for a budget or for an accuracy.

Between placement and calibration. Sensitivity decides which layers get more bits; where an accuracy is asked
for, candidates are calibrated without labels and ranked on identities that nothing is fitted to.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from qgait_ptq.calibration.stages import CalibrationRun, StageListener
from qgait_ptq.capture.trace import Capture
from qgait_ptq.config.schema import LayerBits, QuantConfig
from qgait_ptq.errors import CalibrationError, ConfigError
from qgait_ptq.gait.data.clips import split_identities_off
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.mixed_precision.costs import CostModel
from qgait_ptq.mixed_precision.damage_table import SensitivityMeasurement, describe_sensitivity
from qgait_ptq.mixed_precision.groups import Kind, WidthGroup
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
from qgait_ptq.prepare.annotate import names_layer, place
from qgait_ptq.prepare.layers import list_layers
from qgait_ptq.prepare.planning import bit_widths
from qgait_ptq.system.progress import Silent

ALL_WIDTHS = (2, 3, 4, 6, 8)
STORED_WIDTHS = (4, 8)  # of weights; others take the room of the next wider one
MEGABYTES = 1e6  # of files, as in tables


@dataclass
class WidthChooser:
    """Chooses widths for one network.

    Attributes:
        config: what is asked for.
        captured: the network's capture.
        network: the simplified, annotated float graph; it stays as it is.
        device: where it runs.
        listener: is told what runs.
        byte_input: the file takes uint8.
        looks: what was calibrated and ranked on the way.
    """

    config: QuantConfig
    captured: Capture
    network: fx.GraphModule
    device: torch.device
    listener: StageListener
    byte_input: bool = False
    looks: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.measurement = SensitivityMeasurement(
            self.config, self.captured, self.network, self.device, self.listener, self.byte_input
        )
        self.target, self.groups = self.measurement.target, self.measurement.groups
        self.resource = _resource(self.config)
        self.chosen_drop = 0.0
        self._float_rank1: float | None = None

    def choose(self, data: GaitDataset) -> tuple[QuantConfig, dict[str, Any]]:
        """The configuration with a width for each layer, and what the report says of the choice.

        Raises:
            ConfigError: the budget cannot be met.
            MissingExtraError: there is no solver for a budget.
            CalibrationError: the accuracy cannot be met.
            DataError: labels do not allow to rank held-out identities.
        """
        if self.config.max_drop is None:
            check_solver()
        options = self.options()
        costs = self.measurement.costs(data)
        # What cannot be done is found before minutes of measuring.
        if self.config.budget is not None:
            self._check_budget(options, costs)
        else:
            self.ranking(data)
        sensitivity = self.measurement.measure(data, _by_kind(self.groups, options))
        measured = sensitivity.damages()
        damages = [{bits: measured[i][bits] for bits in admitted} for i, admitted in enumerate(options)]
        front = [] if self.config.max_drop is not None else pareto_front(damages, costs, self.resource)
        if self.config.budget is not None:
            best = allocate(damages, costs, self.resource, self._limit(costs))
            assert best is not None  # noqa: S101 - the narrowest widths are within it
            chosen = Candidate(best.widths)
        elif self.config.target_accuracy is not None:
            chosen = self._accurate_enough(data, [Candidate(a.widths) for a in front])
        else:
            start = [min(admitted) for admitted in options]
            chosen = self._accurate_enough(data, raise_widths(start, self.groups, damages))
        return self.with_widths(chosen), {
            "by": self.resource.value,
            "groups": [group.title for group in self.groups],
            "in_float": list(chosen.in_float),
            "looks": self.looks,
            "chosen": _describe(describe(chosen.widths, damages, costs), costs),
            "front": [_describe(allocation, costs) for allocation in front],
            "sensitivity": describe_sensitivity(sensitivity),
        }

    def options(self) -> list[tuple[int, ...]]:
        """For each group the widths that it may take."""
        layers = {layer.name: layer for layer in list_layers(self.network)}
        by_name = {node.name: node for node in self.network.graph.nodes}
        nodes = {layer.name: by_name[layer.node] for layer in layers.values()}
        found = []
        for group in self.groups:
            layer = layers[group.layers[0]]
            weights = group.kind is Kind.WEIGHTS
            configured = layer.weight_bits if weights else layer.activation_bits
            assert configured is not None  # noqa: S101 - a group is quantized
            fixed = any(self._is_fixed(nodes[name], group.kind) for name in group.layers)
            found.append((configured,) if fixed else self._admitted(group.kind, configured))
        return found

    def _admitted(self, kind: Kind, configured: int) -> tuple[int, ...]:
        """Widths that a group may take which no pattern of the user fixes."""
        if self.config.max_drop is not None:
            return (configured, *(bits for bits in ALL_WIDTHS if bits > configured))
        if self.resource is Resource.BIT_OPERATIONS:
            narrowest = self.target.storage.narrowest_activations if kind is Kind.ACTIVATIONS else 0
            return tuple(bits for bits in ALL_WIDTHS if bits >= narrowest)
        if kind is Kind.ACTIVATIONS:
            return (configured,)
        return STORED_WIDTHS if self.target.storage.int4_weights else STORED_WIDTHS[-1:]

    def _is_fixed(self, layer: fx.Node, kind: Kind) -> bool:
        """Whether the configuration names the width of a layer."""
        return any(
            names_layer(pattern, layer)
            and (bits.weight_bits if kind is Kind.WEIGHTS else bits.activation_bits) is not None
            for pattern, bits in self.config.layers.items()
        )

    def _check_budget(self, options: Sequence[tuple[int, ...]], costs: CostModel) -> None:
        """Refuse a budget that not even the narrowest widths keep."""
        narrowest = [min(admitted) for admitted in options]
        size, operations = costs.file_bytes(narrowest), costs.total_bit_operations(narrowest)
        if (size if self.resource is Resource.SIZE else operations) <= self._limit(costs):
            return
        budget = self.config.budget
        assert budget is not None  # noqa: S101 - asked for
        if self.resource is Resource.SIZE:
            asked = f"size={budget.size_mb:g}MB"
            least = f"the smallest file for {self.target.name} has {size / MEGABYTES:.2f} MB"
        else:
            asked = f"bops={budget.bops_percent:g}%"
            least = f"the narrowest widths have {100 * operations / costs.all_bit_operations:.1f} %"
        raise ConfigError(f"the budget {asked} cannot be met: {least}")

    def _limit(self, costs: CostModel) -> float:
        """The budget in bytes or in bit operations."""
        budget = self.config.budget
        assert budget is not None  # noqa: S101 - asked for
        if budget.size_mb is not None:
            return budget.size_mb * MEGABYTES
        assert budget.bops_percent is not None  # noqa: S101 - one of both
        return budget.bops_percent / 100 * costs.all_bit_operations

    def _accurate_enough(self, data: GaitDataset, candidates: Sequence[Candidate]) -> Candidate:
        """The cheapest candidate that loses little enough of the held-out identities' rank-1."""
        drops: dict[Candidate, float] = {}
        with self.listener.stage("ranking widths") as advance:

            def good(candidate: Candidate) -> bool:
                drop = self.drop(self._calibrated_candidate(candidate, data), data)
                drops[candidate] = drop
                mean = sum(candidate.widths) / len(candidate.widths)
                self.looks.append(
                    {"mean_bits": round(mean, 2), "in_float": len(candidate.in_float), "drop": round(drop, 3)}
                )
                advance()
                return drop <= self.allowed_drop

            found = first_good(candidates, good)
        if found is None:
            least = min(look["drop"] for look in self.looks)
            raise CalibrationError(
                f"no widths keep rank-1 of the held-out identities within {self.allowed_drop:g} points of "
                f"float: the least that was lost is {least:.2f}; allow more, or calibrate with more sequences"
            )
        self.chosen_drop = drops[candidates[found]]
        return candidates[found]

    def drop(self, quantized: fx.GraphModule, data: GaitDataset) -> float:
        """Points of rank-1 that the held-out identities lose; see `single_shot_rank1`."""
        ranking = self.ranking(data)
        if self._float_rank1 is None:
            self._float_rank1 = ranking.rank1(self.network)
        return self._float_rank1 - ranking.rank1(quantized)

    @property
    def allowed_drop(self) -> float:
        """Points of rank-1 that may be lost."""
        if self.config.max_drop is not None:
            return self.config.max_drop
        return -(self.config.target_accuracy or 0.0)

    def ranking(self, data: GaitDataset) -> HeldOutRanking:
        """The identities that IDC holds out, too.

        Raises:
            DataError: fewer than eight identities have two sequences.
        """
        config = self.config
        chosen = data.choose(config.calibration_sequences, config.seed)
        subjects = self._calibration(config, self.network).cut(chosen, config.idc.frames).subjects
        _, held_out = split_identities_off(subjects, config.idc.held_out, config.seed)
        names = sorted({subjects[index] for index in held_out})
        captured = self.captured
        return HeldOutRanking.of(data, names, captured.frame_shape, captured.frames, self.device, config.seed)

    def _calibrated_candidate(self, candidate: Candidate, data: GaitDataset) -> fx.GraphModule:
        """A candidate calibrated without labels; the held-out identities play no part in its corrections."""
        config = self.with_widths(candidate)
        network = copy.deepcopy(self.network)
        place(network, self.target.rules, bit_widths(config))
        run = self._calibration(config, network)
        run.listener = Silent()
        chosen = data.choose(config.calibration_sequences, config.seed)
        training = run.training_data(run.cut(chosen, config.idc.frames))
        quantized, _ = run.run_without_labels(chosen, run.unlabelled_clips(chosen, training))
        return quantized

    def with_widths(self, candidate: Candidate) -> QuantConfig:
        """The configuration in which each layer has its width by name."""
        own: dict[str, dict[str, int]] = {}
        for group, bits in zip(self.groups, candidate.widths, strict=True):
            key = "weight_bits" if group.kind is Kind.WEIGHTS else "activation_bits"
            for name in group.layers:
                own.setdefault(name, {})[key] = bits
        # A pattern also names what lies within a module; the innermost must come last to win.
        layers = {name: LayerBits(**own[name]) for name in sorted(own, key=len)}
        return self.config.model_copy(
            update={
                "layers": {**self.config.layers, **layers},
                "exclude": (*self.config.exclude, *candidate.in_float),
            }
        )

    def _calibration(self, config: QuantConfig, network: fx.GraphModule) -> CalibrationRun:
        return CalibrationRun(config, self.captured, network, self.device, self.listener)


def _resource(config: QuantConfig) -> Resource:
    by_operations = config.budget is not None and config.budget.bops_percent is not None
    return Resource.BIT_OPERATIONS if by_operations else Resource.SIZE


def _by_kind(groups: Sequence[WidthGroup], options: Sequence[tuple[int, ...]]) -> dict[Kind, tuple[int, ...]]:
    """All widths that groups of a kind may take."""
    found: dict[Kind, set[int]] = {kind: set() for kind in Kind}
    for group, admitted in zip(groups, options, strict=True):
        found[group.kind].update(admitted)
    return {kind: tuple(sorted(widths)) for kind, widths in found.items()}


def _describe(allocation: Allocation, costs: CostModel) -> dict[str, Any]:
    return {
        "widths": list(allocation.widths),
        "distortion": allocation.damage,
        "file_bytes": allocation.file_bytes,
        "bops_percent": 100 * allocation.bit_operations / costs.all_bit_operations,
    }

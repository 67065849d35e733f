"""The last part of fine-tuning: the layers that give the embedding, fitted to thousands of sequences."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from torch import Tensor, fx

from qgait_ptq.calibration.batches import MEGABYTE, clips_at_once, unlabelled_batches
from qgait_ptq.calibration.keeping_ranks import RankOutcome, RankSettings, keep_ranks
from qgait_ptq.calibration.last_layers import LastInputs, LastPart, StreamedInputs, read_all
from qgait_ptq.calibration.learning_batches import RefitClips, refit_clips
from qgait_ptq.calibration.learning_stages import idc_loss
from qgait_ptq.calibration.pool import judge
from qgait_ptq.calibration.refitting import refit_last_layers
from qgait_ptq.calibration.trained_graph import LearningRates, output_magnitudes
from qgait_ptq.calibration.training import END, START
from qgait_ptq.stages.stage import Stage, nothing
from qgait_ptq.stages.state import State
from qgait_ptq.system.exchanging import first_only
from qgait_ptq.system.invariants import present
from qgait_ptq.system.progress import Advance

Item = TypeVar("Item")
REFIT = "refit"  # name of the candidate
SHARED = "other layers share their weights"
TOO_FEW = "the pool does not fill a batch of the network's only size"
TOO_LARGE = "the inputs of these layers do not fit into finetune.memory_mb"
DIVERGED = "training the last layers to keep ranks: the loss became NaN or infinite; reverted"


@dataclass(frozen=True)
class RefitOutcome:
    """Result of the stage.

    Attributes:
        losses: held-out loss before and after the refit: ``start`` and ``refit``.
        kept: which of the two is kept.
        judged_by: description of the clips that decide this.
        ranks: result of the training that keeps ranks; None without it.
    """

    losses: dict[str, float]
    kept: str
    judged_by: str
    ranks: RankOutcome | None


class Refit(Stage):
    """Refit the last layers on many sequences, then train them to keep ranks where labels are known."""

    name = "refit"

    def wanted(self, state: State) -> bool:
        """Return whether fine-tuning and its refit are enabled."""
        return state.config.finetune.enabled and state.config.finetune.refit > 0

    def steps(self, state: State) -> int:
        """Return the number of batches, and of training steps."""
        clips = refit_clips(state, state.pool)
        training = state.config.finetune.rank_steps if len(clips.judging) else 0
        return len(clips.learned) + training

    def apply(self, state: State, advance: Advance = nothing) -> State:
        """Replace ``quantized``, and record ``refit``.

        Raises:
            CalibrationError: the inputs of a layer are not finite.
        """
        part = LastPart(copy.deepcopy(state.quantized), state.reference)
        pool, held_out = judge(state, idc_loss(state), clips_at_once(state))
        clips = refit_clips(state, pool)
        if not part.layers or not len(clips.learned):
            cause = TOO_FEW if part.layers else SHARED
            return state.noting(f"the last layers are not refitted: {cause}")
        run = _Run(state, part, clips, advance)
        losses, before = {START: held_out(part.quantized)}, copy.deepcopy(part.quantized.state_dict())
        too_large = _in_first(part.quantized, run.refit)
        losses[REFIT] = held_out(part.quantized)
        kept = REFIT if losses[REFIT] < losses[START] else START
        if kept == START:
            part.quantized.load_state_dict(before)
        obstacle = clips.obstacle or (TOO_LARGE if too_large and len(clips.judging) else "")
        trains = len(clips.judging) > 0 and not obstacle
        ranks = _in_first(part.quantized, run.keep_ranks) if trains else None
        outcome = RefitOutcome(losses, kept, f"held-out {held_out.what}", ranks)
        if clips.short:
            state = state.noting(
                f"the refit of the last layers leaves out {clips.short} sequences of the pool, which are "
                f"shorter than the {clips.learned.frames} frames of its clips"
            )
        if obstacle:
            state = state.noting(f"the last layers are not trained to keep ranks: {obstacle}")
        return (
            replace(state, maybe_quantized=part.quantized)
            .noting(*_undone(outcome))
            .recording(refit=_describe(outcome, clips))
        )


class _Run:
    """The two parts of the stage, for the first process. Both change the graph in place."""

    def __init__(self, state: State, part: LastPart, clips: RefitClips, advance: Advance) -> None:
        self.state, self.part, self.clips, self.advance = state, part, clips, advance

    @cached_property
    def inputs(self) -> list[LastInputs] | None:
        """Inputs to learn from; None if they do not fit into memory."""
        memory = self.state.config.finetune.memory_mb * MEGABYTE
        return read_all(self.part, self.clips.learned, memory, self.advance)

    def refit(self) -> bool:
        """Refit the last layers; return whether their inputs are too large to be kept."""
        if self.inputs is None:
            streamed = StreamedInputs(self.part, self.clips.learned)
            refit_last_layers(self.part, streamed, self.state.config.seed, self.advance)
        else:
            refit_last_layers(self.part, self.inputs, self.state.config.seed)
        return self.inputs is None

    def keep_ranks(self) -> RankOutcome:
        """Train the last layers to keep ranks."""
        judging = StreamedInputs(self.part, self.clips.judging)
        magnitudes = output_magnitudes(self.part.quantized, unlabelled_batches(self.state)[0])
        return keep_ranks(
            self.part, present(self.inputs), list(judging), magnitudes, _settings(self.state), self.advance
        )


def _in_first(graph_module: fx.GraphModule, action: Callable[[], Item]) -> Item:
    """Return the result of an action of the first process, and give all processes its graph."""

    def acted() -> tuple[Item, dict[str, Tensor]]:
        result = action()
        return result, {name: value.cpu() for name, value in graph_module.state_dict().items()}

    result, values = first_only(acted)
    graph_module.load_state_dict(values)
    return result


def _settings(state: State) -> RankSettings:
    config = state.config.finetune
    rates = LearningRates(config.learning_rate, config.rank_learning_rate, config.learning_rate)
    return RankSettings(config.rank_steps, config.rank_weight, rates, state.config.seed, state.data.metric)


def _undone(outcome: RefitOutcome) -> Iterator[str]:
    """Yield a note for each part that is not kept."""
    if outcome.kept == START:
        yield f"the refit of the last layers did not improve the {outcome.judged_by}; reverted"
    if outcome.ranks is not None and END not in outcome.ranks.losses:
        yield DIVERGED
    elif outcome.ranks is not None and outcome.ranks.kept == START:
        yield "training the last layers to keep ranks did not serve other people; reverted"


def _describe(outcome: RefitOutcome, clips: RefitClips) -> dict[str, Any]:
    """Return the record of the stage."""
    ranks = outcome.ranks
    return {
        "held_out_loss": outcome.losses,
        "kept": outcome.kept,
        "judged_by": outcome.judged_by,
        "sequences": len(clips.learned.pool),
        "ranks": None if ranks is None else _describe_ranks(ranks, len(clips.judging.pool)),
    }


def _describe_ranks(ranks: RankOutcome, judging: int) -> dict[str, Any]:
    judges = f"{judging} sequences of other people"
    return {"held_out_loss": ranks.losses, "kept": ranks.kept, "judged_by": judges}

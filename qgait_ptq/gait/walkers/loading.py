"""The built-in data: synthetic walkers in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial

from qgait_ptq.gait.data.dataset import GaitDataset, PackedSilhouettes, SequenceRecord
from qgait_ptq.gait.data.gait_data import GaitData
from qgait_ptq.gait.data.sequences import cut_width
from qgait_ptq.gait.metric_names import Metric, check_metric
from qgait_ptq.gait.protocols import PROTOCOLS, make_test_set
from qgait_ptq.gait.walkers.cached import open_walker_cache
from qgait_ptq.gait.walkers.clothing import Condition
from qgait_ptq.gait.walkers.population import TRIALS, VIEWS, Split, split_identities
from qgait_ptq.gait.walkers.rendering import condition_name, render_identities, subject_name, view_name
from qgait_ptq.system.exchanging import exchange, for_all, share_of
from qgait_ptq.system.file_cache import FileCache
from qgait_ptq.system.processes import processes

CALIBRATION_WALKERS, TEST_WALKERS = 16, 20
CALIBRATION_VIEWS, TEST_VIEWS = 1, 11  # views of each walk
WALKER_FRAME_SHAPE = (64, 44)


def load_walkers(
    workers: int = 1,
    advance: Callable[[], None] = lambda: None,
    finetuning: int = 0,
    *,
    test_walkers: int = TEST_WALKERS,
    metric: Metric = "euclidean",
    cache: bool = True,
    note: Callable[[str], None] = lambda text: None,
) -> GaitData:
    """Render the built-in data: synthetic walkers under the CASIA-B protocol, in memory.

    Args:
        workers: number of processes.
        advance: function to call after each identity.
        finetuning: number of sequences of other identities to render for fine-tuning, rounded up to whole
            identities.
        test_walkers: number of identities for tests. Fewer are faster, and give coarser figures.
        metric: distance between embeddings.
        cache: whether to keep rendered walkers in ``$XDG_CACHE_HOME/qgait_ptq`` for later runs.
        note: receives one line for the user if the cache cannot be used.

    Raises:
        ConfigError: the metric is unknown.
    """
    check_metric(metric)
    kept = open_walker_cache(note) if cache else None
    render = partial(render_walkers, workers=workers, advance=advance, cache=kept)
    calibration = render(Split.CALIBRATION, CALIBRATION_WALKERS, views_per_trial=CALIBRATION_VIEWS)
    test = render(Split.TEST, test_walkers, views_per_trial=TEST_VIEWS)
    description = (
        f"synthetic walkers: {CALIBRATION_WALKERS} identities for calibration, {test_walkers} others for "
        f"tests ({len(test)} sequences, CASIA-B protocol)"
    )
    more = None
    if finetuning:
        count = finetuning_identities(finetuning)
        first = CALIBRATION_WALKERS
        more = render(Split.CALIBRATION, count, first=first, views_per_trial=CALIBRATION_VIEWS)
        description += f"; {len(more)} sequences of {count} others for fine-tuning"
    test_set = make_test_set(test, PROTOCOLS["casia-b"])
    return GaitData(calibration, test, test_set, metric, description, finetuning=more)


def finetuning_identities(sequences: int) -> int:
    """Return the number of built-in walkers that have at least so many sequences for fine-tuning."""
    return -(-sequences // (CALIBRATION_VIEWS * len(TRIALS)))


def render_walkers(
    split: Split,
    count: int,
    *,
    first: int = 0,
    trials: tuple[tuple[Condition, int], ...] = TRIALS,
    views_per_trial: int = len(VIEWS),
    workers: int = 1,
    advance: Callable[[], None] = lambda: None,
    cache: FileCache | None = None,
) -> GaitDataset:
    """Render synthetic walkers into memory. The processes of a run share them, and each gets all.

    Args:
        split: identities of different splits differ.
        count: number of identities.
        first: number of identities of the split to skip.
        trials: condition and number of each walk; the default is that of CASIA-B.
        views_per_trial: number of views of each walk, drawn at random from eleven.
        workers: number of processes.
        advance: called after each identity.
        cache: cache of rendered walkers; None for none.
    """
    identities = share_of(split_identities(split, first + count)[first:])
    workers, advance = max(1, workers // processes().here), for_all(advance)
    rendered = render_identities(identities, None, trials, views_per_trial, workers, cache)
    records: list[SequenceRecord] = []
    with closing(rendered):
        for walks in rendered:
            records.extend(
                SequenceRecord(
                    subject_name(label.identity),
                    condition_name(label),
                    view_name(label),
                    PackedSilhouettes(cut_width(silhouettes)),
                )
                for label, silhouettes in walks
            )
            advance()
    everything = [record for part in exchange(records) for record in part]
    return GaitDataset(everything, f"{count} synthetic walkers")


def walker_counts(test_walkers: int = TEST_WALKERS) -> tuple[int, int]:
    """Return the numbers of calibration sequences and of test sequences of the built-in walkers."""
    trials = len(TRIALS)
    return CALIBRATION_WALKERS * CALIBRATION_VIEWS * trials, test_walkers * TEST_VIEWS * trials

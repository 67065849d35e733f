"""The batches that IDC and fine-tuning learn from."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import qgait_ptq as qg
from qgait_ptq.calibration.batches import clips_at_once
from qgait_ptq.calibration.learning_batches import labelled_batches, paired_order, refit_clips
from qgait_ptq.calibration.learning_stages import CollectFrames, fingerprint
from qgait_ptq.calibration.pool import pool_records
from qgait_ptq.calibration.stages import ChooseClips
from qgait_ptq.config.schema import FinetuneConfig, IdcConfig
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.frame_pool import UNKNOWN, FramePool
from tests.conftest import SHALLOW, SHORT, make_gaitbase
from tests.small_network import Small


@pytest.fixture(scope="module")
def state(few_walkers):
    config = qg.QuantConfig(idc=IdcConfig(enabled=False), finetune=FinetuneConfig(enabled=True, refit=200))
    prepared = qg.prepare(make_gaitbase(**SHALLOW), few_walkers, config, device="cpu")
    return qg.run_stages([ChooseClips()], prepared)


def pool_of(labels):
    count = len(labels)
    frames = np.zeros((count * SHORT, 64, 44), np.uint8)
    return FramePool(frames, np.array([(SHORT * i, SHORT) for i in range(count)]), np.array(labels))


def test_float_embeddings_of_whole_clips_are_known_beforehand(people):
    few = qg.QuantConfig(idc=IdcConfig(enabled=True, frames=6, identities=4))
    data = qg.GaitData(people, people)
    labelled = qg.run_stages([ChooseClips()], qg.prepare(make_gaitbase(**SHALLOW), data, few, device="cpu"))
    batch = labelled_batches(labelled, 100, consecutive=False).draw(np.random.default_rng(0), 0)
    assert batch.clips.shape[1] == 6
    assert torch.allclose(batch.embeddings, labelled.network(batch.clips), atol=1e-5)
    parts = labelled_batches(labelled, 5, consecutive=False).draw(np.random.default_rng(0), 0)
    assert (parts.clips.shape[1], parts.embeddings) == (5, None)


def test_clips_of_the_refit_are_not_longer_than_the_data(state):
    """Repeated frames would change what a network computes that sums over frames."""
    assert state.config.correction_frames > SHORT
    batches = list(refit_clips(state, pool_of([UNKNOWN] * 210)).learned)
    assert {batch.shape[1] for batch in batches} == {SHORT}
    assert sum(len(batch) for batch in batches) == 200


def test_two_people_at_least_judge_the_last_layers(state):
    clips = refit_clips(state, pool_of([i // 4 for i in range(200)]))
    assert len(set(clips.judging.pool.labels.tolist())) == 6  # of 50
    assert not clips.obstacle
    sixteen = refit_clips(state, pool_of([i // 2 for i in range(32)]))
    assert len(sixteen.judging.pool) == 4
    judges = set(clips.judging.pool.labels.tolist())
    assert judges.isdisjoint(clips.learned.pool.labels.tolist())
    one = [i % 15 for i in range(200)]  # of 15 people, a single one would judge
    for few in ([UNKNOWN] * 200, list(range(200)), [0, 0, 1, 1], one):
        clips = refit_clips(state, pool_of(few))
        assert len(clips.judging) == 0
        assert "fewer than 16 people" in clips.obstacle


def test_few_places_are_shared_by_the_judges(state):
    """Of 60 people with 33 sequences, the first judge alone could fill all places."""
    clips = refit_clips(state, pool_of([i // 33 for i in range(60 * 33)]))
    assert len(clips.judging.pool) == 24  # of 200
    assert len(set(clips.judging.pool.labels.tolist())) == 7  # of 60


def test_people_who_find_no_place_among_the_judges_are_learned_from(state):
    small = state.config.model_copy(update={"finetune": FinetuneConfig(enabled=True, refit=64)})
    clips = refit_clips(replace(state, config=small), pool_of([i // 2 for i in range(1000)]))
    assert len(set(clips.judging.pool.labels.tolist())) == 4
    order, judges = paired_order(np.arange(1000) // 2, 64, 0)
    assert (len(order), judges) == (64, 8)


def test_a_refit_of_few_sequences_cannot_spare_judges(state):
    small = state.config.model_copy(update={"finetune": FinetuneConfig(enabled=True, refit=31)})
    clips = refit_clips(replace(state, config=small), pool_of([i // 2 for i in range(1000)]))
    assert len(clips.judging) == 0
    assert "finetune.refit is 31" in clips.obstacle


def test_sequences_that_are_shorter_than_the_clips_are_left_out(state):
    pool = pool_of([i // 2 for i in range(100)])
    pool.stretches[::10, 1] = SHORT - 1
    clips = refit_clips(state, pool)
    assert clips.short == 10
    assert all((batches.pool.stretches[:, 1] == SHORT).all() for batches in (clips.learned, clips.judging))


@pytest.mark.parametrize(("batch", "people"), [(1, 100), (16, 16)])
def test_a_batch_that_pairs_cannot_fill_is_the_cause(state, batch, people):
    fixed = replace(state, maybe_captured=replace(state.captured, batch=batch))
    clips = refit_clips(fixed, pool_of([i // 2 for i in range(2 * people)]))
    assert len(clips.judging) == 0
    assert f"batches of {batch} only" in clips.obstacle


def test_a_constant_before_the_silhouettes_does_not_count_as_input(state):
    """A SwinGait has tables of positions in front."""
    network = copy.deepcopy(state.network)
    constant = next(node for node in network.graph.nodes if node.op == "get_attr")
    first = next(iter(network.graph.nodes))
    assert first.op == "placeholder"
    first.prepend(constant)
    network.recompile()
    assert clips_at_once(replace(state, maybe_network=network)) == clips_at_once(state)


@given(st.lists(st.integers(-1, 12), min_size=1, max_size=80), st.integers(1, 90), st.integers(0, 99))
def test_pairs_of_one_person_come_first_and_judges_are_other_people(labels, limit, seed):
    labels = np.array(labels)
    order, judges = paired_order(labels, limit, seed)
    assert len(set(order.tolist())) == len(order) <= min(limit, len(labels))
    learned = labels[order[judges:]]
    assert set(labels[order[:judges]].tolist()).isdisjoint(learned.tolist())
    assert judges % 2 == 0
    assert judges <= limit // 8
    assert judges == 0 or len(set(labels[order[:judges]].tolist())) > 1
    first, second = labels[order[: len(order) // 2 * 2]].reshape(-1, 2).T
    paired = (first == second) & (first >= 0)
    counts = {label: int((learned == label).sum()) for label in set(learned.tolist()) - {UNKNOWN}}
    if limit >= len(labels):  # nothing is cut off
        assert paired.sum() == judges // 2 + sum(count // 2 for count in counts.values())
    assert not (np.diff(paired.astype(int)) > 0).any(), "a pair comes after a sequence without one"
    again, same = paired_order(labels, limit, seed)
    assert (order.tolist(), judges) == (again.tolist(), same)


def test_labels_of_the_pool_are_those_of_people_who_are_known(state, few_walkers):
    """Sequences without labels have none, though the folders of one layout name someone."""
    people = len({record.subject for record in few_walkers.records})
    more = few_walkers.where(lambda record: True)
    renamed = type(more)([replace(record, subject=f"new {record.subject}") for record in more.records])
    data = replace(state.data, test=few_walkers.choose(1), finetuning=renamed, unlabelled=renamed)
    records = pool_records(replace(state, data=data))
    known = len(state.data.calibration) + len(renamed)
    assert (records.labels[:known] >= 0).all()
    assert len(set(records.labels[:known].tolist())) == len(
        {r.subject for r in state.data.calibration.records} | {r.subject for r in renamed.records}
    )
    assert people == len({r.subject for r in renamed.records})
    assert (records.labels[known:] == UNKNOWN).all()
    assert len(records.data) == len(records.labels)


def with_pool(labels, unlabelled=None):
    """A state with a pool, of twelve people with three sequences each."""
    rng = np.random.default_rng(0)
    walks = [(rng.random((9, 32, 22)) < 0.3).astype(np.uint8) * 255 for _ in range(36)]
    data = GaitDataset.from_pairs(zip(walks, labels, strict=True))
    config = qg.QuantConfig(finetune=FinetuneConfig(enabled=True, unlabelled=30), idc=IdcConfig(frames=6))
    given = qg.GaitData(data, data, unlabelled=unlabelled)
    prepared = qg.prepare(Small().eval(), given, config, device="cpu")
    return qg.run_stages([ChooseClips(), CollectFrames()], prepared)


def test_other_labels_are_another_run():
    state = with_pool([f"person {i // 3}" for i in range(36)])
    pool = replace(state.pool, labels=state.pool.labels[::-1])
    clips = replace(state.training.clips, labels=state.training.clips.labels.flip(0))
    held_out = replace(state.training.held_out, labels=state.training.held_out.labels.flip(0))
    others = (
        replace(state, maybe_pool=pool),
        replace(state, training=replace(state.training, clips=clips)),
        replace(state, training=replace(state.training, held_out=held_out)),
    )
    assert len({fingerprint(one) for one in (state, *others)}) == 4


def test_another_metric_is_another_run():
    """Distances of the other metric were learned, so its saved states do not fit."""
    state = with_pool([f"person {i // 3}" for i in range(36)])
    other = replace(state, data=replace(state.data, metric="cosine"))
    assert fingerprint(other) != fingerprint(state)
    assert fingerprint(replace(other, data=replace(other.data, metric="euclidean"))) == fingerprint(state)


def test_sequences_without_labels_that_find_no_place_are_named():
    more = GaitDataset.from_pairs([(np.full((9, 32, 22), 255, np.uint8), "x")] * 5)
    state = with_pool([f"person {i // 3}" for i in range(36)], more)
    assert len(state.pool) == 30
    learned = sum(r.subject not in state.training.held_out_subjects for r in state.data.calibration.records)
    (said,) = (note for note in state.notes if "of --unlabelled" in note)
    assert said.startswith(f"fine-tuning does not use {learned + 5 - 30} sequences of --unlabelled")

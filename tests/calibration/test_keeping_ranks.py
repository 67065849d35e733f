"""Training of the last layers so that people keep their places."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from qgait_ptq.calibration.keeping_ranks import RankSettings, keep_ranks
from qgait_ptq.calibration.last_layers import LastPart, join, read_all
from qgait_ptq.calibration.rank_loss import rank_loss
from qgait_ptq.calibration.trained_graph import LearningRates, output_magnitudes
from qgait_ptq.placement.quantized_layers import quantized_layers, weight_of
from qgait_ptq.quantizer.fake_quantize import set_quantizing
from tests.conftest import make_gaitbase, randomise_batch_norms
from tests.gait.test_zoo import SMALL, sequence
from tests.networks import draw_people, quantize_network

PEOPLE, FRAMES, CLIPS = 24, 6, 8
RATES = LearningRates(scale=2e-3, weight=5e-2, bias=2e-3)


class Walks(list):
    """Batches of clips, two of each person."""

    def labels(self, index):
        return torch.arange(CLIPS) // 2 + index * CLIPS


@pytest.fixture(scope="module")
def walks():
    """Batches to learn from, and of other people to judge."""
    people = draw_people(PEOPLE, 2, FRAMES)
    clips = torch.stack([torch.from_numpy(sequence) for sequence, _ in people]).float() / 255
    batches = Walks(clips.split(CLIPS))
    return Walks(batches[:4]), Walks(batches[4:])


@pytest.fixture(scope="module")
def graphs(batches):
    graph = quantize_network(make_gaitbase(), batches, weight_bits=2, activation_bits=3).graph
    reference = copy.deepcopy(graph)
    set_quantizing(reference, False)
    return graph, reference


@pytest.fixture
def part(graphs):
    return LastPart(copy.deepcopy(graphs[0]), graphs[1])


def read(part, walks):
    return [read_all(part, some, 10**9) for some in walks]


def train(part, walks, rates=RATES, steps=30, weight=1.0):
    learned, judging = read(part, walks)
    settings = RankSettings(steps, weight, rates)
    magnitudes = output_magnitudes(part.quantized, walks[0][0])
    return keep_ranks(part, learned, judging, magnitudes, settings)


def lost(part, walks):
    """The rank loss of people that nothing learned from."""
    (inputs,) = [read_all(part, walks, 10**9)]
    with torch.no_grad():
        given = torch.cat([part.embed(one) for one in inputs])
    return float(
        rank_loss(
            given, torch.cat([one.embeddings for one in inputs]), torch.cat([one.labels for one in inputs])
        )
    )


def test_the_last_layers_alone_give_the_embeddings_of_the_network(part, walks):
    for batch, inputs in zip(walks[0], read(part, walks)[0], strict=True):
        with torch.no_grad():
            assert torch.equal(part.embed(inputs), part.quantized(batch))
            assert torch.equal(inputs.embeddings, part.reference(batch))


def test_people_that_nothing_learned_from_keep_their_places_better(part, walks):
    before = lost(part, walks[1])
    outcome = train(part, walks)
    assert outcome.kept == "end"
    assert outcome.losses["end"] < outcome.losses["start"]
    assert lost(part, walks[1]) < before


def test_only_the_last_layer_changes_and_stays_on_its_grid(graphs, part, walks):
    train(part, walks)
    *others, last = quantized_layers(part.quantized)
    for layer, original in zip(others, quantized_layers(graphs[0]), strict=False):
        assert torch.equal(weight_of(part.quantized, layer), weight_of(graphs[0], original))
    weight = weight_of(part.quantized, last)
    torch.testing.assert_close(last.weight_quantizer(weight), weight, rtol=1e-6, atol=0)
    assert not torch.equal(weight, weight_of(graphs[0], quantized_layers(graphs[0])[-1]))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_last_layers_of_each_family_can_be_trained_alone(name):
    torch.manual_seed(0)
    batches = [sequence(name, 12, batch=CLIPS) for _ in range(2)]
    graph = quantize_network(randomise_batch_norms(SMALL[name]()), batches, weight_bits=3).graph
    reference = copy.deepcopy(graph)
    set_quantizing(reference, False)
    part = LastPart(graph, reference)
    learned = read_all(part, Walks(batches), 10**9)
    for batch, inputs in zip(batches, learned, strict=True):
        with torch.no_grad():
            assert torch.equal(part.embed(inputs), graph(batch))
    settings = RankSettings(5, 1.0, RATES)
    outcome = keep_ranks(part, learned, learned, output_magnitudes(graph, batches[0]), settings)
    assert np.isfinite(list(outcome.losses.values())).all()


@pytest.mark.parametrize(("rate", "judged"), [(100.0, {"start", "end"}), (float("nan"), {"start"})])
def test_what_does_not_serve_other_people_is_undone(graphs, part, walks, rate, judged):
    outcome = train(part, walks, LearningRates(2e-3, rate, 2e-3), steps=3)
    assert set(outcome.losses) == judged
    assert outcome.kept == "start"
    for name, value in part.quantized.state_dict().items():
        assert torch.equal(value, graphs[0].state_dict()[name]), name


def test_equal_seeds_give_equal_weights(graphs, walks):
    parts = [LastPart(copy.deepcopy(graphs[0]), graphs[1]) for _ in range(2)]
    losses = [train(part, walks, steps=4).losses for part in parts]
    assert losses[0] == losses[1]
    first, second = (part.quantized.state_dict() for part in parts)
    assert all(np.array_equal(value, second[name]) for name, value in first.items())


class Apart(LastPart):
    """Computes batches one by one."""

    def can_join(self, batches):
        return False


def test_batches_are_joined_where_that_gives_the_same(graphs, walks):
    parts = [kind(copy.deepcopy(graphs[0]), graphs[1]) for kind in (LastPart, Apart)]
    learned, judging = read(parts[0], walks)
    assert parts[0].can_join(learned)
    joined = join(learned)
    assert len(joined.labels) == sum(len(batch) for batch in walks[0])
    with torch.no_grad():
        apart = torch.cat([parts[0].embed(inputs) for inputs in learned])
        torch.testing.assert_close(parts[0].embed(joined), apart)
    magnitudes = output_magnitudes(graphs[0], walks[0][0])
    first, second = (
        keep_ranks(part, learned, judging, magnitudes, RankSettings(4, 1.0, RATES)) for part in parts
    )
    assert first.losses == pytest.approx(second.losses, rel=1e-3)


@pytest.mark.parametrize(
    ("value", "joins"),
    [(CLIPS, True), (FRAMES, True), (0.5, False), (torch.ones(()), False), (torch.ones(CLIPS + 1), False)],
    ids=["clips", "frames", "share", "scalar", "other axis"],
)
def test_numbers_and_other_tensors_are_joined_only_if_it_is_clear_how(part, walks, value, joins):
    learned, _ = read(part, walks)
    others = [replace(inputs, quantized={**inputs.quantized, "other": value}) for inputs in learned[:2]]
    joined = join(others)
    assert (joined is not None) is joins
    if joined is not None:
        assert joined.quantized["other"] == {CLIPS: 2 * CLIPS, FRAMES: FRAMES}[value]


@pytest.mark.parametrize(
    "change", [lambda one: one[:CLIPS], lambda one: one.reshape(CLIPS, -1), lambda one: one / len(one)]
)
def test_batches_are_kept_apart_where_they_would_give_another_embedding(part, walks, change):
    """Code that is written for one number of clips, or that mixes them."""

    class Other(LastPart):
        def __init__(self):
            vars(self).update(vars(part))

        def embed(self, inputs):
            return change(super().embed(inputs))

    learned, _ = read(part, walks)
    assert not Other().can_join(learned)

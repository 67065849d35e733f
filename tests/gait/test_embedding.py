"""Embeddings of data sets: batches of equal length, order, and sequences that a network refuses."""

import threading
import time

import numpy as np
import pytest
import torch

from qgait_ptq.errors import DataError, ModelError
from qgait_ptq.gait.data.content import sequence_digest
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.embedding import embed_dataset, embed_taken, network_batch

SIZE = (4, 4)


def walks(*lengths):
    """One sequence of each length. Its frames have the value 130 plus its number, and no empty columns."""
    pairs = [(np.full((s, *SIZE), 130 + number, np.uint8), str(number)) for number, s in enumerate(lengths)]
    return GaitDataset.from_pairs(pairs)


class Network:
    """Gives the value of each sequence, and remembers the sizes of its batches.

    With `alone` it refuses more than one sequence, with `shortest` shorter sequences.
    """

    def __init__(self, alone=False, shortest=1):
        self.alone, self.shortest, self.sizes = alone, shortest, []

    def __call__(self, batch):
        self.sizes.append(len(batch))
        if (self.alone and len(batch) > 1) or batch.shape[1] < self.shortest:
            raise RuntimeError("size mismatch")
        return batch.amax((1, 2, 3))[:, None] * 255


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batches", [True, False])
def test_embeddings_are_in_the_order_of_the_sequences(batches, threads):
    network = Network()
    embedded = embed_taken(walks(3, 5, 3, 5, 3), [network], SIZE, batches=batches, threads=threads)
    assert embedded.embeddings[0].flatten().round().tolist() == [130, 131, 132, 133, 134]
    assert embedded.kept == [0, 1, 2, 3, 4]
    assert sorted(network.sizes) == ([2, 3] if batches else [1] * 5)
    network.sizes.clear()
    (same,) = embed_dataset(walks(3, 5, 3, 5, 3), [network], SIZE, batches=batches)
    assert torch.equal(same, embedded.embeddings[0])
    assert sorted(network.sizes) == ([2, 3] if batches else [1] * 5)


def test_long_sequences_wait_for_each_other():
    """Each call holds the activations of its frames."""
    lock, frames, most = threading.Lock(), [0], []

    def network(batch):
        with lock:
            frames[0] += batch.shape[1]
            most.append(frames[0])
        time.sleep(0.02)  # the other threads would come in between
        with lock:
            frames[0] -= batch.shape[1]
        return batch.amax((1, 2, 3))[:, None]

    embed_taken(walks(200, 60, 60, 100, 100), [network], SIZE, threads=3)
    assert set(most) <= {60, 100, 120, 200}  # all others wait for 200, and for 100


@pytest.mark.parametrize("threads", [1, 2])
def test_progress_has_one_step_for_each_sequence(threads):
    steps = []
    data, advance = walks(3, 3, 1), lambda: steps.append(1)
    embed_taken(data, [Network(shortest=2)], SIZE, advance=advance, batches=True, threads=threads)
    assert len(steps) == 3


def test_a_network_that_refuses_batches_gets_single_sequences():
    embedded = embed_taken(walks(3, 3), [Network(alone=True)], SIZE, batches=True)
    assert embedded.embeddings[0].flatten().round().tolist() == [130, 131]
    assert embedded.refused == []


def test_a_network_that_gives_too_few_embeddings_gets_single_sequences():
    embedded = embed_taken(walks(3, 3), [lambda batch: batch.amax((1, 2, 3))[:1, None]], SIZE, batches=True)
    assert embedded.embeddings[0].shape == (2, 1, 1)


@pytest.mark.parametrize("batches", [True, False])
def test_refused_sequences_are_named_in_their_order(batches):
    data = walks(1, 3, 1, 3)
    embedded = embed_taken(data, [Network(), Network(shortest=2)], SIZE, batches=batches)
    assert embedded.kept == [1, 3]
    assert embedded.digests == [sequence_digest(data[1][0]), sequence_digest(data[3][0])]
    assert embedded.lengths == [3, 3]
    assert [line.split(":")[0] for line in embedded.refused] == ["0/seq-0000/000", "2/seq-0002/000"]
    assert all(one.flatten().round().tolist() == [131, 133] for one in embedded.embeddings)


@pytest.mark.parametrize("batches", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_refused_and_named(value, batches):
    """One of them would be the nearest of all probes."""

    def network(batch):
        values = batch.amax((1, 2, 3))[:, None] * 255
        return torch.where(values.round() == 131, value, values)

    embedded = embed_taken(walks(3, 3, 3), [network], SIZE, batches=batches)
    assert embedded.kept == [0, 2]
    assert embedded.refused == ["1/seq-0001/000: the embedding has NaN or infinite values"]


def test_no_sequence_at_all_is_an_error():
    with pytest.raises(DataError, match=r"no sequence can be embedded; 0/seq-0000/000"):
        embed_taken(walks(1, 1), [Network(shortest=2)], SIZE, batches=True)


def test_a_file_that_does_not_run_is_an_error_and_no_refusal():
    def broken(batch):
        raise ModelError("the file does not run")

    with pytest.raises(ModelError, match="does not run"):
        embed_taken(walks(3, 3), [broken], SIZE, batches=True)


def test_a_sequence_is_not_cut_unless_a_limit_asks_for_it():
    """A network and `embed_dataset` see the same frames."""
    data, seen = walks(800), []
    embed_dataset(data, [lambda batch: seen.append(batch) or batch.amax((1, 2, 3))[:, None]], SIZE)
    assert torch.equal(network_batch(*data[0], SIZE), seen[0])
    assert seen[0].shape[1] == 800
    assert network_batch(*data[0], SIZE, limit=720).shape[1] == 720


def test_gradients_are_not_kept():
    weight = torch.ones(1, requires_grad=True)
    embedded = embed_taken(walks(3), [lambda batch: batch.mean((2, 3)) * weight], SIZE)
    assert not embedded.embeddings[0].requires_grad

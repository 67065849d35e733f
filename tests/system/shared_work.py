"""Work that processes share, on tiny networks. torchrun runs this file; each process saves its results.

The same functions run in one process, too, for comparison.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qgait_ptq.calibration.distances import IdcLoss
from qgait_ptq.calibration.ranges import calibrate_ranges, can_share_batches
from qgait_ptq.calibration.trained_graph import LearningRates, TrainedGraph, output_magnitudes
from qgait_ptq.calibration.training import EmbeddingTraining, TrainingSettings
from qgait_ptq.calibration.training_batches import Batch
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord
from qgait_ptq.gait.embedding import Embedded, embed_taken
from qgait_ptq.gait.protocol_accuracy import evaluate_embeddings
from qgait_ptq.gait.protocols import PROTOCOLS, make_test_set
from qgait_ptq.placement.insert import insert_quantizers
from qgait_ptq.placement.planning import plan
from qgait_ptq.quantizer.fake_quantize import set_quantizing
from qgait_ptq.quantizer.trainable import WeightMode
from qgait_ptq.system.exchanging import exchange, first_only, gather_rows, mean_gradients, mean_of, share_of
from qgait_ptq.system.processes import process_group, processes
from tests.small_network import Small

CPU = torch.device("cpu")
STEPS, CLIPS = 3, 8


def exchanges() -> dict[str, Any]:
    """What the functions of `exchanging` return."""
    rank = processes().rank
    both, one, none = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    both.grad = torch.tensor([1.0, 2.0]) + rank
    if rank == 0:
        one.grad = torch.tensor([4.0, 8.0])
    mean_gradients([both, one, none])
    return {
        "shares": exchange((list(share_of(range(5))), list(share_of([7])))),
        "of the first": first_only(lambda: processes().rank),
        "rows": gather_rows([torch.full((2, 1), 5.0)] if rank == 0 else [], CPU),
        "NaN in one": mean_of(float("nan") if rank == 0 else 1.0),
        "gradients": [both.grad, one.grad, none.grad],
    }


def walks(count: int, frames: int = 6) -> torch.Tensor:
    """Sparse random silhouettes ``[n, s, 32, 22]``, no two alike."""
    generator = torch.Generator().manual_seed(1)
    density = torch.linspace(0.1, 0.6, count)[:, None, None, None]
    return (torch.rand(count, frames, 32, 22, generator=generator) < density).float()


@cache
def quantized(observer: str = "mse") -> torch.fx.GraphModule:
    config = QuantConfig(weight_bits=4, activation_bits=4, observer=observer)
    _, network, _ = plan(Small().eval(), (32, 22), config)
    graph = insert_quantizers(network)
    batches = walks(7).split(1)
    return calibrate_ranges(graph, share_of(batches) if can_share_batches(graph) else batches)


def ranges() -> dict[str, dict[str, torch.Tensor]]:
    """The parameters of all quantizers, for observers that are merged and for one that cannot be."""
    return {name: quantized(name).state_dict() for name in ("minmax", "mse", "moving-average")}


def embeddings() -> dict[str, Embedded]:
    """Embeddings of sequences, one of which the network refuses."""

    def embed(batch: torch.Tensor) -> torch.Tensor:
        if batch.shape[1] == 5:
            raise ValueError("five frames")
        return network(batch)

    network = Small().eval()
    frames = [(255 * walk).byte().numpy()[: 6 - (i == 2)] for i, walk in enumerate(walks(5))]
    several = embed_taken(GaitDataset.from_pairs((walk, "a") for walk in frames), [embed, network], (32, 22))
    one = embed_taken(GaitDataset.from_pairs([(frames[0], "a")]), [embed], (32, 22))
    return {"several": several, "one": one}


def accuracy() -> dict[str, Any]:
    """The accuracy in a gallery that takes two blocks of distances."""
    generator = torch.Generator().manual_seed(2)
    people, views = 2500, 8

    def load() -> Any:
        raise NotImplementedError

    def record(person: int, name: str) -> SequenceRecord:
        return SequenceRecord(f"{person:05d}", name, "0", load)

    records = [record(person, f"{view}_gallery") for view in range(views) for person in range(people)]
    records += [record(person, "9_probe") for person in range(900)]
    centres = torch.randn(people, 4, 1, generator=generator)
    known = torch.cat([centres] * views + [centres[:900]])
    embeddings = known + 0.3 * torch.randn(known.shape, generator=generator)
    return evaluate_embeddings(
        embeddings, records, make_test_set(GaitDataset(records), PROTOCOLS["grew"])
    ).to_report()


@dataclass(frozen=True)
class Walks:
    """Draws batches of labelled clips; the last clip of a step can hold a NaN."""

    broken: int | None = None

    def draw(self, rng: np.random.Generator, step: int) -> Batch:
        clips = walks(20)[rng.permutation(20)[:CLIPS]]
        if step == self.broken:
            clips[-1] = torch.nan
        return Batch(clips, torch.arange(CLIPS) // 2)


def train(source: Walks, micro_batch: int, *, fixed_batch: bool = False) -> dict[str, Any]:
    graph, reference = copy.deepcopy(quantized()), copy.deepcopy(quantized())
    set_quantizing(reference, False)
    trained = TrainedGraph(graph, reference, output_magnitudes(graph, walks(2)), WeightMode.LATENT)
    rates = LearningRates(1e-3, 1e-3, 1e-3)
    settings = TrainingSettings(STEPS, rates, micro_batch=micro_batch, fixed_batch=fixed_batch)
    run = EmbeddingTraining(trained, reference, source, IdcLoss(), settings, CPU)
    run.run()
    values = {(name, key): value for name, some in trained.snapshot().items() for key, value in some.items()}
    return {"values": values, "steps": run.progress.step, "diverged": run.progress.diverged}


WORK = {
    "exchanges": exchanges,
    "ranges": ranges,
    "embeddings": embeddings,
    "accuracy": accuracy,
    "training": lambda: train(Walks(), CLIPS),
    "training with a fixed batch": lambda: train(Walks(), CLIPS, fixed_batch=True),
    "training to NaN": lambda: train(Walks(broken=1), CLIPS),
}


if __name__ == "__main__":
    with process_group() as group:
        torch.save({name: work() for name, work in WORK.items()}, Path(sys.argv[1]) / f"{group.rank}.pt")

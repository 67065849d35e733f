"""Train a reference gait network on silhouettes in the OpenGait layout.

The shipped example network was made by:

    qgait-ptq walkers walkers-train --identities 500 --views-per-trial 4 --format npz
    python examples/train_reference.py walkers-train --out examples/models/gaitbase-small.pt

Triplet loss before the neck, cosine softmax after it, P×K batches, warm-up and cosine schedule. A killed run
goes on where it was: the state is saved beside the output every `--save-every` iterations.
"""

from __future__ import annotations

import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qgait_ptq.gait import (
    Accuracy,
    GaitDataset,
    PackedSilhouettes,
    PKSampler,
    SequenceRecord,
    draw_frames,
    embed_dataset,
    evaluate_embeddings,
    get_protocol,
    make_test_set,
    read_partition,
    to_network_input,
)
from qgait_ptq.gait.zoo import NETWORKS

MARGIN, COSINE_SCALE, LABEL_SMOOTHING = 0.2, 16.0, 0.1

# Networks whose features before the neck can be had, which the triplet loss needs.
TRAINABLE = ("gaitbase", "gaitbase-small", "gaitset", "gaitset-small")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result."""

    network: str
    iterations: int
    identities: int
    sequences: int
    frames: int
    learning_rate: float
    weight_decay: float
    held_out: int
    seed: int


class PartClassifier(nn.Module):
    """Cosine logits of each part; used in training only."""

    def __init__(self, parts: int, channels: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(parts, channels, classes)))

    def forward(self, embedding: Tensor) -> Tensor:
        """``[n, c, p]`` to logits ``[n, p, classes]``."""
        normalised = F.normalize(embedding, dim=1).permute(2, 0, 1)
        return COSINE_SCALE * (normalised @ F.normalize(self.weight, dim=1)).permute(1, 0, 2)


def triplet_loss(embedding: Tensor, labels: Tensor) -> Tensor:
    """Batch-all triplet loss on euclidean distances, part by part, over the violating triplets.

    `labels` is grouped as `PKSampler` gives it: K of the first identity, K of the second, ...
    """
    parts = embedding.permute(2, 0, 1).float()
    distances, same = torch.cdist(parts, parts), labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    to_positive = distances[:, positive].unflatten(1, (len(labels), -1))
    to_negative = distances[:, ~same].unflatten(1, (len(labels), -1))
    violation = (to_positive[..., :, None] - to_negative[..., None, :] + MARGIN).clamp_min(0)
    return (violation.sum((1, 2, 3)) / (violation > 0).sum((1, 2, 3)).clamp_min(1)).mean()


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of every part, and of the mean over parts."""
    parts = logits.shape[1]
    each = F.cross_entropy(
        logits.flatten(0, 1), labels.repeat_interleave(parts), label_smoothing=LABEL_SMOOTHING
    )
    return each + F.cross_entropy(logits.mean(1), labels, label_smoothing=LABEL_SMOOTHING)


def load_into_memory(data: GaitDataset) -> GaitDataset:
    """Hold the silhouettes packed in memory; training reads them many times."""

    def packed(record: SequenceRecord) -> SequenceRecord:
        return SequenceRecord(record.subject, record.condition, record.view, PackedSilhouettes(record.load()))

    with ThreadPoolExecutor() as pool:
        return GaitDataset(list(pool.map(packed, data.records)), data.description)


def learning_rate(iteration: int, settings: Settings) -> float:
    """Linear warm-up over 2 % of the iterations, then a cosine to zero."""
    warm_up = max(1, settings.iterations // 50)
    if iteration < warm_up:
        return settings.learning_rate * (iteration + 1) / warm_up
    progress = (iteration - warm_up) / max(1, settings.iterations - warm_up)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """State of a run: network, classifier, optimizer and the iteration."""

    def __init__(self, data: GaitDataset, settings: Settings, device: torch.device) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.device, self.data = settings, device, data
        # One with `features` and `neck`.
        self.network: Any = NETWORKS[settings.network]().to(device)
        with torch.no_grad():
            _, channels, parts = self.network(torch.zeros(2, 2, *data[0][0].shape[1:], device=device)).shape
        labels = [record.subject for record in data.records]
        self.sampler = PKSampler(labels, settings.identities, settings.sequences)
        self.classes = {subject: index for index, subject in enumerate(data.subjects)}
        self.classifier = PartClassifier(parts, channels, len(self.classes)).to(device)
        parameters = [*self.network.parameters(), *self.classifier.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, weight_decay=settings.weight_decay)
        self.iteration = 0

    def batch(self, iteration: int) -> tuple[Tensor, Tensor]:
        """The batch of one iteration; it depends on the seed and the iteration alone."""
        rng = np.random.default_rng([self.settings.seed, iteration])
        indices = self.sampler.draw(rng)
        clips = [draw_frames(self.data[i][0], self.settings.frames, rng) for i in indices]
        classes = torch.tensor([self.classes[self.data.records[i].subject] for i in indices])
        return to_network_input(np.stack(clips)).to(self.device), classes.to(self.device)

    def step(self, silhouettes: Tensor, labels: Tensor) -> tuple[float, float, float]:
        """One optimizer step; gives triplet loss, classification loss and accuracy."""
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.iteration, self.settings)
        with torch.autocast(self.device.type, torch.bfloat16):
            before_neck = self.network.features(silhouettes)
        after_neck = self.network.neck(before_neck.float())
        logits = self.classifier(after_neck)
        triplet, entropy = triplet_loss(before_neck, labels), classification_loss(logits, labels)
        self.optimizer.zero_grad()
        (triplet + entropy).backward()
        self.optimizer.step()
        self.iteration += 1
        correct = logits.mean(1).argmax(1) == labels
        return triplet.item(), entropy.item(), correct.float().mean().item()

    def save(self, path: Path) -> None:
        """Write the state so that a kill at any moment leaves a whole file."""
        beside = path.with_suffix(".part")
        torch.save(
            {
                "settings": asdict(self.settings),
                "iteration": self.iteration,
                "network": self.network.state_dict(),
                "classifier": self.classifier.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
            beside,
        )
        os.replace(beside, path)

    def resume(self, path: Path) -> None:
        """Go on from a saved state of the same settings."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise click.ClickException(f"{path} belongs to other settings; remove it to start anew")
        self.network.load_state_dict(state["network"])
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["iteration"]


def measure(network: nn.Module, data: GaitDataset, device: torch.device) -> Accuracy:
    """Accuracy under the CASIA-B protocol."""
    network.eval()
    size = data[0][0].shape[1:]
    (embeddings,) = embed_dataset(data, [lambda batch: network(batch.to(device))], size)
    test_set = make_test_set(data, get_protocol("casia-b"))
    return evaluate_embeddings(embeddings, data.records, test_set)


@click.command()
@click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The checkpoint to write.")
@click.option("--network", type=click.Choice(TRAINABLE), default="gaitbase-small", show_default=True)
@click.option("--iterations", default=1800, show_default=True)
@click.option("--identities", default=16, show_default=True, help="P of the P×K batches.")
@click.option("--sequences", default=4, show_default=True, help="K of the P×K batches.")
@click.option("--frames", default=12, show_default=True, help="Frames drawn from each sequence.")
@click.option("--learning-rate", default=2e-3, show_default=True)
@click.option("--weight-decay", default=1e-3, show_default=True)
@click.option(
    "--held-out",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Training identities kept for monitoring.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--save-every", default=200, show_default=True)
def main(root: Path, out: Path, device: str, save_every: int, **settings: int | float | str) -> None:
    """Train a network on the TRAIN_SET of ROOT and write a checkpoint that names it."""
    recipe = Settings(**settings)  # type: ignore[arg-type]
    torch.manual_seed(recipe.seed)
    subjects = read_partition(root / "partition.json").train
    held_out = GaitDataset.from_directory(root, subjects[len(subjects) - recipe.held_out :])
    data = load_into_memory(GaitDataset.from_directory(root, subjects[: len(subjects) - recipe.held_out]))
    trainer = Trainer(data, recipe, torch.device(device))
    state = out.with_suffix(".training")
    if state.exists():
        trainer.resume(state)
        click.echo(f"resumed at iteration {trainer.iteration}")
    started = time.monotonic()
    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(trainer.batch, trainer.iteration)
        while trainer.iteration < recipe.iterations:
            batch = pending.result()
            pending = reader.submit(trainer.batch, trainer.iteration + 1)
            triplet, entropy, accuracy = trainer.step(*batch)
            if trainer.iteration % 50 == 0:
                click.echo(
                    f"{trainer.iteration:6d} triplet {triplet:.3f} entropy {entropy:.3f} "
                    f"training accuracy {accuracy:.3f} {time.monotonic() - started:.0f} s"
                )
            if trainer.iteration % save_every == 0:
                trainer.save(state)
            if trainer.iteration % (5 * save_every) == 0:
                click.echo(f"       held out: {measure(trainer.network, held_out, trainer.device).rank1}")
    reached = measure(trainer.network, held_out, trainer.device)
    click.echo(json.dumps({"settings": asdict(recipe), "held_out": reached.to_report()}))
    out.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu() for name, value in trainer.network.state_dict().items()}
    beside = out.with_suffix(".part")
    torch.save({"architecture": {"name": recipe.network}, "model": weights}, beside)
    os.replace(beside, out)
    state.unlink(missing_ok=True)


if __name__ == "__main__":
    main()

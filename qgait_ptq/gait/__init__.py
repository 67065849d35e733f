"""All that knows gait: data, protocols, metrics, walkers, networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgait_ptq.system.lazy import lazy_names

if TYPE_CHECKING:
    from qgait_ptq.gait import opengait, zoo
    from qgait_ptq.gait.data.dataset import GaitDataset, PackedSilhouettes, SequenceRecord
    from qgait_ptq.gait.data.directory import load_directory
    from qgait_ptq.gait.data.gait_data import GaitData
    from qgait_ptq.gait.data.partition import read_partition
    from qgait_ptq.gait.data.sampling import PKSampler, draw_frames, to_network_input
    from qgait_ptq.gait.data.sequences import Reading, read_sequence
    from qgait_ptq.gait.embedding import embed_dataset, network_batch
    from qgait_ptq.gait.metrics import embedding_cosine, embedding_sqnr, part_distances, rank_gallery
    from qgait_ptq.gait.protocol_accuracy import Accuracy, evaluate_embeddings
    from qgait_ptq.gait.protocols import TestSet, get_protocol, make_test_set
    from qgait_ptq.gait.walkers.clothing import Condition
    from qgait_ptq.gait.walkers.loading import load_walkers, render_walkers
    from qgait_ptq.gait.walkers.population import Split
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "": ("opengait", "zoo"),
            "data.dataset": ("GaitDataset", "PackedSilhouettes", "SequenceRecord"),
            "data.directory": ("load_directory",),
            "data.gait_data": ("GaitData",),
            "data.partition": ("read_partition",),
            "data.sampling": ("PKSampler", "draw_frames", "to_network_input"),
            "data.sequences": ("Reading", "read_sequence"),
            "embedding": ("embed_dataset", "network_batch"),
            "metrics": ("embedding_cosine", "embedding_sqnr", "part_distances", "rank_gallery"),
            "protocol_accuracy": ("Accuracy", "evaluate_embeddings"),
            "protocols": ("TestSet", "get_protocol", "make_test_set"),
            "walkers.clothing": ("Condition",),
            "walkers.loading": ("load_walkers", "render_walkers"),
            "walkers.population": ("Split",),
        },
    )

__all__ = [
    "Accuracy",
    "Condition",
    "GaitData",
    "GaitDataset",
    "PKSampler",
    "PackedSilhouettes",
    "Reading",
    "SequenceRecord",
    "Split",
    "TestSet",
    "draw_frames",
    "embed_dataset",
    "embedding_cosine",
    "embedding_sqnr",
    "evaluate_embeddings",
    "get_protocol",
    "load_directory",
    "load_walkers",
    "make_test_set",
    "network_batch",
    "opengait",
    "part_distances",
    "rank_gallery",
    "read_partition",
    "read_sequence",
    "render_walkers",
    "to_network_input",
    "zoo",
]

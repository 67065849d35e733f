"""Quality of embeddings: accuracy under a protocol, and agreement with the float network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qgait_ptq.capture.autocast_programs import has_regions
from qgait_ptq.capture.float_types import has_other_types
from qgait_ptq.capture.own_copy import copy_network
from qgait_ptq.capture.trace import embedding_network
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import CalibrationError, DataError
from qgait_ptq.gait.comparison import compare_accuracy, compare_distances
from qgait_ptq.gait.data.gait_data import GaitData
from qgait_ptq.gait.data.sequences import shape_text
from qgait_ptq.gait.embedding import Embed, embed_taken
from qgait_ptq.gait.metrics import embedding_cosine, embedding_sqnr
from qgait_ptq.gait.protocol_accuracy import Accuracy, evaluate_embeddings
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.graph.frame_inputs import join_inputs
from qgait_ptq.runtime.embedder import Embedder
from qgait_ptq.runtime.sessions import run_session
from qgait_ptq.system.device import choose_device, exact_arithmetic
from qgait_ptq.system.invariants import present
from qgait_ptq.system.progress import Progress, Silent


def evaluate_network(
    network: nn.Module,
    data: GaitData,
    device: str = "auto",
    frames: int | None = None,
    output: str | None = None,
    progress: Progress | None = None,
) -> Accuracy:
    """Measure the accuracy of a network that takes ``[n, s, h, w]`` in [0, 1].

    Args:
        network: network in eval mode.
        data: data with a test set.
        device: ``auto``, ``cpu`` or ``cuda``.
        frames: frame count, for networks that accept only one.
        output: name of the embedding, for networks with several outputs.
        progress: receives the stage.

    Raises:
        CaptureError: the network does not run on the data, or its embedding is ambiguous.
        DataError: the data have no gallery and probes, or sequences differ in size.
    """
    chosen = choose_device(device)
    own = copy_network(network) if has_regions(network) or has_other_types(network) else network.cpu()
    joined = join_inputs(own, data.layout)
    network = embedding_network(joined, data.frame_shape, frames, output).to(chosen)
    with exact_arithmetic():
        return _evaluate(lambda batch: network(batch.to(chosen)), data, frames, progress or Silent())


def evaluate_file(
    embedder: Embedder, data: GaitData, progress: Progress | None = None, at_once: int = 1
) -> Accuracy:
    """Measure the accuracy of an exported file in its runtime.

    Args:
        embedder: embedder of the file.
        data: data with a test set.
        progress: receives the stage.
        at_once: number of threads that call the runtime at once.

    Raises:
        DataError: the data have no gallery and probes, or are of another kind or size than the file takes.
    """
    if data.layout != embedder.layout:
        raise DataError(
            f"{embedder.path} takes {embedder.layout or 'one input'}, but the data have "
            f"{data.layout or 'one'}; name its modalities in order with --modality"
        )
    if data.raw != embedder.raw:
        kinds = {True: "values as they are (raw)", False: "silhouettes"}
        raise DataError(f"{embedder.path} takes {kinds[embedder.raw]}, but the data have {kinds[data.raw]}")
    if data.frame_shape != embedder.frame_shape:
        raise DataError(
            f"{embedder.path} takes silhouettes of {shape_text(embedder.frame_shape)}, "
            f"but the data have {shape_text(data.frame_shape)}; see --cut-columns"
        )

    def embed(batch: Tensor) -> Tensor:
        return torch.from_numpy(run_session(embedder.session, batch.numpy()))

    free = all(entry.shape[0] is None for entry in embedder.session.inputs)
    return _evaluate(embed, data, embedder.frame_counts, progress or Silent(), free, at_once)


def _evaluate(
    embed: Embed,
    data: GaitData,
    frames: FrameCounts | int | None,
    progress: Progress,
    batches: bool = False,
    at_once: int = 1,
) -> Accuracy:
    if data.test_set is None:
        raise DataError(
            "the data have no gallery and probes, which accuracy needs; use --data with a --protocol"
        )
    with progress.stage("evaluation", len(data.test)) as advance:
        embedded = embed_taken(data.test, [embed], data.frame_shape, frames, advance, batches, at_once)
    if embedded.refused:
        progress.note(
            f"{len(embedded.refused)} of {len(data.test)} sequences left out: {embedded.refused[0]}"
        )
    counts = frames if isinstance(frames, FrameCounts) else FrameCounts.exactly(frames)
    if note := counts.changed_note(embedded.lengths):
        progress.note(note)
    left = data.with_test(embedded.kept)
    test_set = present(left.test_set)
    if note := data.test_set.missing_note(test_set):
        progress.note(note)
    return evaluate_embeddings(embedded.embeddings[0], left.test.records, test_set, left.metric)


def accuracy_of(embeddings: Mapping[str, Tensor], data: GaitData) -> dict[str, Accuracy]:
    """Compute the accuracy of each embedded network.

    Args:
        embeddings: embeddings ``[n, c, p]`` of the test sequences by ``float`` and ``onnx``, and by
            ``quantized``, the simulation, if it was evaluated.
        data: data that were embedded.

    Returns:
        Accuracy of each network, and of ``onnx_float_gallery``: probes by the file and the gallery by the
        float network, for people who were enrolled before. Empty if the data have no gallery and probes.
    """
    if data.test_set is None:
        return {}
    records, test_set, metric = data.test.records, data.test_set, data.metric
    accuracy = {
        name: evaluate_embeddings(embedding, records, test_set, metric)
        for name, embedding in embeddings.items()
    }
    return accuracy | {
        "onnx_float_gallery": evaluate_embeddings(
            embeddings["onnx"], records, test_set, metric, known=embeddings["float"]
        )
    }


def comparison_of(
    embeddings: Mapping[str, Tensor], accuracy: Mapping[str, Accuracy], data: GaitData, seed: int
) -> dict[str, Any]:
    """Compare quantized embeddings with float embeddings for each identity.

    Args:
        embeddings: embeddings, as for `accuracy_of`.
        accuracy: result of `accuracy_of`.
        data: data that were embedded.
        seed: random seed for the choice of pairs.

    Returns:
        ``distances``, see `compare_distances`. With accuracy also the paired differences from float of
        ``onnx``, and of ``quantized`` if the simulation was evaluated.
    """
    distances = compare_distances(
        embeddings["float"], embeddings["onnx"], data.test.records, data.metric, seed
    )
    changes = {
        name: compare_accuracy(accuracy["float"].identities, accuracy[name].identities)
        for name in ("quantized", "onnx")
        if name in accuracy
    }
    return {"distances": distances, **changes}


def agreement_of(embeddings: Mapping[str, Tensor], config: QuantConfig) -> dict[str, float]:
    """Measure the agreement of the file's embeddings with float embeddings.

    Args:
        embeddings: embeddings, as for `accuracy_of`.
        config: settings with the required agreement.

    Returns:
        Mean and lowest cosine, and SQNR in dB.

    Raises:
        CalibrationError: the ranking has collapsed, or the float network itself does not rank.
    """
    reference, quantized = embeddings["float"], embeddings["onnx"]
    if len(reference) > 1 and bool((reference == reference[:1]).all()):
        raise CalibrationError(
            f"the float network gives the same embedding for all {len(reference)} test sequences, so it "
            "cannot rank people; check that its weights are loaded and that the data are of the right kind"
        )
    cosine = embedding_cosine(reference, quantized)
    agreement = {
        "cosine_mean": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
        "sqnr_db": embedding_sqnr(reference, quantized),
    }
    if not agreement["cosine_mean"] >= config.minimum_agreement:
        raise CalibrationError(
            f"{config.label}: quantized embeddings agree with float by a mean cosine of "
            f"{agreement['cosine_mean']:.3f}, below the minimum of {config.minimum_agreement}, so they no "
            "longer rank people; use more bits, another observer or more calibration sequences"
        )
    return agreement

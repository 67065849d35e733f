"""How good embeddings are: accuracy under a protocol, and agreement with the float network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qgait_ptq.capture.trace import embedding_network
from qgait_ptq.config.schema import QuantConfig
from qgait_ptq.errors import CalibrationError, DataError
from qgait_ptq.gait.comparison import compare_accuracy, compare_distances
from qgait_ptq.gait.data.sequences import shape_text
from qgait_ptq.gait.data.sources import GaitData
from qgait_ptq.gait.embedding import Embed, embed_taken
from qgait_ptq.gait.metrics import embedding_cosine, embedding_sqnr
from qgait_ptq.gait.protocols import Accuracy, evaluate_embeddings
from qgait_ptq.graph.frame_counts import FrameCounts
from qgait_ptq.graph.frame_parts import join_inputs
from qgait_ptq.runtime.embedder import Embedder
from qgait_ptq.runtime.sessions import run_session
from qgait_ptq.system.device import choose_device
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
    """Accuracy of a network that takes ``[n, s, h, w]``.

    Args:
        network: in eval mode.
        data: with a test set.
        device: ``auto``, ``cpu`` or ``cuda``.
        frames: for networks that take one frame count only.
        output: names the embedding, for networks that give several tensors.
        progress: told what runs.

    Raises:
        CaptureError: the network does not run on such data, or its embedding is not clear.
        DataError: the data have no gallery and probes, or sequences of different sizes.
    """
    place = choose_device(device)
    joined = join_inputs(network.cpu(), data.layout)
    network = embedding_network(joined, data.frame_shape, frames, output).to(place)
    return _evaluate(lambda batch: network(batch.to(place)), data, frames, progress or Silent())


def evaluate_file(embedder: Embedder, data: GaitData, progress: Progress | None = None) -> Accuracy:
    """Accuracy of an ONNX file of this toolkit in the runtime.

    Args:
        embedder: the loaded file.
        data: with a test set.
        progress: told what runs.

    Raises:
        DataError: the data have no gallery and probes, or silhouettes of another size.
    """
    if data.layout != embedder.layout:
        raise DataError(
            f"{embedder.path} takes {embedder.layout or 'one input'}, the data have "
            f"{data.layout or 'one'}; name its modalities in order (--modality)"
        )
    if data.frame_shape != embedder.frame_shape:
        raise DataError(
            f"{embedder.path} takes silhouettes of {shape_text(embedder.frame_shape)}, "
            f"the data have {shape_text(data.frame_shape)}"
        )

    def embed(batch: Tensor) -> Tensor:
        return torch.from_numpy(run_session(embedder.session, batch.numpy()))

    return _evaluate(embed, data, embedder.frame_counts, progress or Silent())


def _evaluate(embed: Embed, data: GaitData, frames: FrameCounts | int | None, progress: Progress) -> Accuracy:
    if data.test_set is None:
        raise DataError("the data have no gallery and probes; accuracy needs a protocol")
    with progress.stage("evaluation", len(data.test)) as advance:
        embedded = embed_taken(data.test, [embed], data.frame_shape, frames, advance)
    if embedded.refused:
        progress.note(
            f"{len(embedded.refused)} of {len(data.test)} sequences left out: {embedded.refused[0]}"
        )
    left = data.with_test(embedded.kept)
    return evaluate_embeddings(embedded.embeddings[0], left.test.records, present(left.test_set), left.metric)


def accuracy_of(embeddings: list[Tensor], data: GaitData) -> dict[str, Accuracy]:
    """Accuracy of the float network, the simulation and the file.

    Args:
        embeddings: of the test sequences by each of the three, ``[n, c, p]``.
        data: what was embedded.

    Returns:
        ``float``, ``quantized``, ``onnx``, and ``onnx_float_gallery``: probes by the file, the gallery by the
        float network, as where people were enrolled before. Nothing where the data have no gallery and
        probes.
    """
    if data.test_set is None:
        return {}
    records, test_set, metric = data.test.records, data.test_set, data.metric
    accuracy = {
        name: evaluate_embeddings(embedding, records, test_set, metric)
        for name, embedding in zip(("float", "quantized", "onnx"), embeddings, strict=True)
    }
    reference, _, file = embeddings
    return accuracy | {
        "onnx_float_gallery": evaluate_embeddings(file, records, test_set, metric, known=reference)
    }


def comparison_of(
    embeddings: list[Tensor], accuracy: Mapping[str, Accuracy], data: GaitData, seed: int
) -> dict[str, Any]:
    """What quantization changed, person by person.

    Args:
        embeddings: as of `accuracy_of`.
        accuracy: from it.
        data: what was embedded.
        seed: of what is drawn.

    Returns:
        ``distances``, see `compare_distances`; and where there is accuracy, ``quantized`` and ``onnx``: the
        paired differences from float.
    """
    reference, _, file = embeddings
    found: dict[str, Any] = {
        "distances": compare_distances(reference, file, data.test.records, data.metric, seed)
    }
    for name in ("quantized", "onnx"):
        if accuracy:
            found[name] = compare_accuracy(accuracy["float"].identities, accuracy[name].identities)
    return found


def agreement_of(embeddings: list[Tensor], config: QuantConfig) -> dict[str, float]:
    """How close the quantized embeddings are to the float ones.

    Args:
        embeddings: as of `accuracy_of`.
        config: says how close they must be.

    Raises:
        CalibrationError: so far off that ranking has collapsed, or the float network itself does not rank.
    """
    reference, quantized, _ = embeddings
    if len(reference) > 1 and bool((reference == reference[:1]).all()):
        raise CalibrationError(
            f"the float network gives one and the same embedding for all {len(reference)} test sequences: it "
            "tells nobody apart; are its weights loaded, and is it meant for such input?"
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
            f"{agreement['cosine_mean']:.3f} only (at least {config.minimum_agreement} is asked for), so "
            "they no longer rank people; use more bits, another observer or more calibration sequences"
        )
    return agreement

"""Choice of the embedding among the outputs of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from qgait_ptq.errors import CaptureError

Path = tuple[str | int, ...]


class EmbeddingOnly(nn.Module):
    """A network with nested outputs, reduced to one tensor of them."""

    def __init__(self, network: nn.Module, path: Path) -> None:
        super().__init__()
        self.network, self.path = network, path

    def forward(self, silhouettes: Tensor) -> Tensor:
        """Map ``[n, s, h, w]`` to the embedding."""
        value = self.network(silhouettes)
        for key in self.path:
            value = value[key]
        embedding: Tensor = value
        return embedding


def reduce_to_embedding(
    network: nn.Module, given: Any, sequences: int, output: str | None = None
) -> nn.Module:
    """Return a network with the embedding as its only output.

    Args:
        network: network with any outputs.
        given: outputs of the network for some sequences.
        sequences: number of these sequences.
        output: name of the embedding, such as ``inference_feat.embeddings`` or ``1``. None: the only tensor
            with the shape of an embedding.

    Returns:
        The network itself if its output is a tensor, else a wrapper.

    Raises:
        CaptureError: no tensor or several tensors have the shape of an embedding, or none has the name.
    """
    if isinstance(given, Tensor) and output is None:
        return network
    tensors = dict(_walk(given, ()))
    listed = ", ".join(f"{_name(path)} {list(tensor.shape)}" for path, tensor in tensors.items())
    if output is not None:
        named = [path for path in tensors if _name(path) == output]
        if not named:
            raise CaptureError(
                f"the network has no output {output!r}; its outputs are {listed or 'no tensors'}"
            )
        return EmbeddingOnly(network, named[0])
    possible = [path for path, tensor in tensors.items() if could_be_embedding(tensor, sequences)]
    if len(possible) == 1:
        return EmbeddingOnly(network, possible[0])
    if not possible:
        raise CaptureError(
            f"the network returns a {type(given).__name__} without an embedding, a tensor [n, c, p] or [n, c]"
            + (f"; its outputs are {listed} for a batch of {sequences}" if listed else "")
        )
    raise CaptureError(
        f"several outputs of the network can be the embedding: {listed}; name it with --output"
    )


def could_be_embedding(tensor: Tensor, sequences: int) -> bool:
    """Return whether a tensor is ``[n, c, p]`` or ``[n, c]`` with floating-point values."""
    return tensor.ndim in (2, 3) and tensor.shape[0] == sequences and tensor.is_floating_point()


def _walk(value: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    """Yield all tensors in nested mappings and sequences, with their paths."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, (*path, key))
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _walk(item, (*path, index))


def _name(path: Path) -> str:
    """Return the name of an output, such as ``inference_feat.embeddings``."""
    return ".".join(map(str, path))

"""Which of the tensors that a network gives is the embedding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from qgait_ptq.errors import CaptureError

Path = tuple[str | int, ...]


class EmbeddingOnly(nn.Module):
    """A network that gives nested dictionaries and tuples, reduced to one tensor of them."""

    def __init__(self, network: nn.Module, path: Path) -> None:
        super().__init__()
        self.network, self.path = network, path

    def forward(self, silhouettes: Tensor) -> Tensor:
        """``[n, s, h, w]`` to the embedding."""
        value = self.network(silhouettes)
        for key in self.path:
            value = value[key]
        embedding: Tensor = value
        return embedding


def reduce_to_embedding(
    network: nn.Module, given: Any, sequences: int, output: str | None = None
) -> nn.Module:
    """A network that gives its embedding and nothing else.

    Args:
        network: any.
        given: what it gives for some sequences.
        sequences: how many they were.
        output: names the embedding, such as ``inference_feat.embeddings`` or ``1``; None takes the one
            tensor that could be one.

    Returns:
        The network itself where it gives a tensor.

    Raises:
        CaptureError: no tensor could be the embedding, several could, or none has that name.
    """
    if isinstance(given, Tensor) and output is None:
        return network
    tensors = dict(_walk(given, ()))
    listed = ", ".join(f"{_name(path)} {list(tensor.shape)}" for path, tensor in tensors.items())
    if output is not None:
        named = [path for path in tensors if _name(path) == output]
        if not named:
            raise CaptureError(f"the network gives no output {output!r}; it gives {listed or 'no tensor'}")
        return EmbeddingOnly(network, named[0])
    possible = [path for path, tensor in tensors.items() if could_be_embedding(tensor, sequences)]
    if len(possible) == 1:
        return EmbeddingOnly(network, possible[0])
    if not possible:
        raise CaptureError(
            f"the network gives a {type(given).__name__} without an embedding, a tensor [n, c, p] or [n, c]"
            + (f"; it gives {listed} for a batch of {sequences}" if listed else "")
        )
    raise CaptureError(
        f"the network gives several tensors that could be the embedding: {listed}; name it with --output"
    )


def could_be_embedding(tensor: Tensor, sequences: int) -> bool:
    """Whether a tensor is ``[n, c, p]`` or ``[n, c]``, of real numbers."""
    return tensor.ndim in (2, 3) and tensor.shape[0] == sequences and tensor.is_floating_point()


def _walk(value: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    """All tensors in nested mappings and sequences, with the way to each."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _walk(part, (*path, key))
    elif isinstance(value, (tuple, list)):
        for index, part in enumerate(value):
            yield from _walk(part, (*path, index))


def _name(path: Path) -> str:
    """For people: ``inference_feat.embeddings``."""
    return ".".join(map(str, path))

"""Small networks with stored weights outside of convolutions and fully connected layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = (16, 12)
CHANNELS = 32


class OverFrames(nn.Module):
    """A convolution on each frame, an inner module on ``[n, s, 32]``, a mean over frames, a linear layer."""

    def __init__(self, inner: nn.Module, channels: int):
        super().__init__()
        self.conv, self.inner = nn.Conv2d(1, CHANNELS, 5, 4, 2), inner
        self.fc = nn.Linear(channels, 16)

    def forward(self, silhouettes: Tensor) -> Tensor:
        maps = self.conv(silhouettes.flatten(0, 1).unsqueeze(1)).relu().mean((2, 3))
        return self.fc(self.inner(maps.unflatten(0, (silhouettes.shape[0], -1))).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: str, hidden: int = 48, **options: object):
        super().__init__()
        self.rnn = getattr(nn, kind)(CHANNELS, hidden, batch_first=True, **options)

    def forward(self, frames: Tensor) -> Tensor:
        return self.rnn(frames)[0]


class Cell(nn.Module):
    """A cell that runs over the first three frames."""

    def __init__(self, kind: str):
        super().__init__()
        self.cell = getattr(nn, kind)(CHANNELS, 48)

    def forward(self, frames: Tensor) -> Tensor:
        state = None
        for frame in range(3):
            state = self.cell(frames[:, frame], state)
        return (state[0] if isinstance(state, tuple) else state).unsqueeze(1)


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(64, CHANNELS)

    def forward(self, frames: Tensor) -> Tensor:
        return frames + self.table(torch.arange(frames.shape[1]) % 64)


class Product(nn.Module):
    """A product with a stored matrix, which a function computes."""

    def __init__(self, compute: Callable[[Tensor, Tensor], Tensor], *shape: int):
        super().__init__()
        self.matrix, self.compute = nn.Parameter(torch.randn(shape) / 6), compute

    def forward(self, frames: Tensor) -> Tensor:
        return self.compute(frames, self.matrix)


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Bilinear(CHANNELS, CHANNELS, 24)

    def forward(self, frames: Tensor) -> Tensor:
        return self.layer(frames, frames)


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.ConvTranspose1d(CHANNELS, 24, 3, 2)

    def forward(self, frames: Tensor) -> Tensor:
        return self.layer(frames.transpose(1, 2)).transpose(1, 2)


def left(frames: Tensor, matrix: Tensor) -> Tensor:
    """Multiply ``[40, 32] · [n, 32, s]``."""
    return torch.matmul(matrix, frames.transpose(1, 2)).transpose(1, 2)


def by_part(frames: Tensor, matrix: Tensor) -> Tensor:
    """Multiply ``[n, 4, s, 8] · [4, 8, 64]``."""
    parts = frames.unflatten(2, (4, 8)).transpose(1, 2)
    return torch.matmul(parts, matrix).transpose(1, 2).flatten(2)


# Name → the inner module, and its number of output channels.
INNER: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "lstm": (lambda: Recurrent("LSTM"), 48),
    "lstm of two layers and directions": (lambda: Recurrent("LSTM", num_layers=2, bidirectional=True), 96),
    "lstm without biases": (lambda: Recurrent("LSTM", bias=False), 48),
    "gru": (lambda: Recurrent("GRU"), 48),
    "gru of two directions": (lambda: Recurrent("GRU", bidirectional=True), 96),
    "lstm cell": (lambda: Cell("LSTMCell"), 48),
    "gru cell": (lambda: Cell("GRUCell"), 48),
    "embedding": (Embedding, CHANNELS),
    "bilinear": (Bilinear, 24),
    "transposed convolution": (Transposed, 24),
    "matrix on the left": (lambda: Product(left, 40, CHANNELS), 40),
    "matrix for each part": (lambda: Product(by_part, 4, 8, 64), 256),
    "einsum for each part": (
        lambda: Product(
            lambda x, w: torch.einsum("nspc,pcd->nspd", x.unflatten(2, (4, 8)), w).flatten(2), 4, 8, 64
        ),
        256,
    ),
    "expanded matrix": (
        lambda: Product(lambda x, w: torch.bmm(x, w.expand(x.shape[0], -1, -1)), 1, CHANNELS, 40),
        40,
    ),
    "learned queries": (
        lambda: Product(
            lambda x, w: functional.scaled_dot_product_attention(w.expand(x.shape[0], -1, -1), x, x),
            1,
            40,
            CHANNELS,
        ),
        CHANNELS,
    ),
}  # fmt: skip


class SideBySide(nn.Module):
    """Inner modules on the same frames, each with a linear layer behind it: a part of the embedding each."""

    def __init__(self, names: Iterable[str]):
        super().__init__()
        self.conv = nn.Conv2d(1, CHANNELS, 5, 4, 2)
        self.inner = nn.ModuleList(INNER[name][0]() for name in names)
        self.fc = nn.ModuleList(nn.Linear(INNER[name][1], 16) for name in names)

    def forward(self, silhouettes: Tensor) -> Tensor:
        maps = self.conv(silhouettes.flatten(0, 1).unsqueeze(1)).relu().mean((2, 3))
        frames = maps.unflatten(0, (silhouettes.shape[0], -1))
        pairs = zip(self.inner, self.fc, strict=True)
        return torch.stack([linear(inner(frames).mean(1)) for inner, linear in pairs], 2)


def make_side_by_side(names: Iterable[str]) -> nn.Module:
    torch.manual_seed(0)
    return SideBySide(names).eval()


def make_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    make, channels = INNER[name]
    return OverFrames(make(), channels).eval()


def random_batches(count: int = 3, frames: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand((1, frames, *SIZE), generator=generator) < 0.4).float() for _ in range(count)]


def make_lstm() -> nn.Module:
    return make_network("lstm")

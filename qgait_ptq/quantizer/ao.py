"""All names of torch.ao come through this module.

A torch without ``torch.ao.quantization`` costs one file: torchao's pt2e copies of the same classes are the
fallback. torch warns at the use of ``torch.ao``; users of the toolkit can do nothing about that, so they do
not see it.
"""

import warnings

warnings.filterwarnings("ignore", message=r".*torch\.ao\.quantization is deprecated.*")
warnings.filterwarnings("ignore", message=r".*reduce_range will be deprecated.*")

try:
    from torch.ao.quantization.fake_quantize import FakeQuantizeBase
    from torch.ao.quantization.observer import (
        HistogramObserver,
        MinMaxObserver,
        MovingAverageMinMaxObserver,
        ObserverBase,
        PerChannelMinMaxObserver,
    )
except ImportError:  # pragma: no cover - a future torch
    from torchao.quantization.pt2e import (  # type: ignore[import-not-found, no-redef]
        FakeQuantizeBase,
        HistogramObserver,
        MinMaxObserver,
        MovingAverageMinMaxObserver,
        ObserverBase,
        PerChannelMinMaxObserver,
    )

__all__ = [
    "FakeQuantizeBase",
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "ObserverBase",
    "PerChannelMinMaxObserver",
]

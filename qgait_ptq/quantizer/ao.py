"""The only imports of torch.ao.

If a torch version has no ``torch.ao.quantization``, torchao's pt2e copies of the same classes are used. torch
warns about the use of ``torch.ao``. Users of the toolkit cannot act on these warnings, so they are hidden.
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

"""Reference gait networks, by name."""

from collections.abc import Callable

from torch import nn

from qgait_ptq.gait.zoo.gaitbase import GaitBase, gaitbase_small
from qgait_ptq.gait.zoo.gaitset import GaitSet, gaitset_small

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "gaitbase": GaitBase,
    "gaitbase-small": gaitbase_small,
    "gaitset": GaitSet,
    "gaitset-small": gaitset_small,
}

__all__ = ["NETWORKS", "GaitBase", "GaitSet", "gaitbase_small", "gaitset_small"]

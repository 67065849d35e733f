"""Reference gait networks, by name: one for each family that is structurally its own."""

from collections.abc import Callable

from torch import nn

from qgait_ptq.gait.zoo.deepgait import DeepGaitV2P3D
from qgait_ptq.gait.zoo.gaitbase import GaitBase, gaitbase_small
from qgait_ptq.gait.zoo.gaitgl import GaitGL
from qgait_ptq.gait.zoo.gaitgraph import GaitGraph
from qgait_ptq.gait.zoo.gaitpart import GaitPart
from qgait_ptq.gait.zoo.gaitset import GaitSet, gaitset_small
from qgait_ptq.gait.zoo.layers import HorizontalPooling, PartLinear
from qgait_ptq.gait.zoo.skeletongait import SkeletonGaitPlus
from qgait_ptq.gait.zoo.smplgait import SmplGait
from qgait_ptq.gait.zoo.swingait import SwinGait

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "deepgaitv2-p3d": DeepGaitV2P3D,
    "gaitbase": GaitBase,
    "gaitbase-small": gaitbase_small,
    "gaitgl": GaitGL,
    "gaitgraph": GaitGraph,
    "gaitpart": GaitPart,
    "gaitset": GaitSet,
    "gaitset-small": gaitset_small,
    "skeletongait++": SkeletonGaitPlus,
    "smplgait": SmplGait,
    "swingait": SwinGait,
}

__all__ = [
    "NETWORKS",
    "DeepGaitV2P3D",
    "GaitBase",
    "GaitGL",
    "GaitGraph",
    "GaitPart",
    "GaitSet",
    "HorizontalPooling",
    "PartLinear",
    "SkeletonGaitPlus",
    "SmplGait",
    "SwinGait",
    "gaitbase_small",
    "gaitset_small",
]

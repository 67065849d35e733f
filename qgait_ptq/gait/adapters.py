"""Adapters: modules with ``forward(silhouettes [n, s, h, w]) -> embedding`` around other networks.

A network with several inputs takes each as one argument.

An adapter is a module that wraps the network. Name your own on the command line:
``--adapter mypackage.adapters:MyAdapter``. Its class is called with the network.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from qgait_ptq.gait.opengait.adapter import OpenGaitAdapter

ADAPTERS: dict[str, Callable[[nn.Module], nn.Module]] = {"opengait": OpenGaitAdapter}

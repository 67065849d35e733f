"""Networks and configurations of the OpenGait framework.

config = read_opengait_config(Path("configs/gaitbase/gaitbase_da_casiab.yaml"))
network = OpenGaitAdapter(make_opengait_network(config))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qgait_ptq.system.lazy import lazy_names

if TYPE_CHECKING:
    from qgait_ptq.gait.opengait.adapter import OpenGaitAdapter
    from qgait_ptq.gait.opengait.configuration import OpenGaitConfig, read_opengait_config
    from qgait_ptq.gait.opengait.networks import make_opengait_network
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "configuration": ("OpenGaitConfig", "read_opengait_config"),
            "networks": ("make_opengait_network",),
            "adapter": ("OpenGaitAdapter",),
        },
    )

__all__ = ["OpenGaitAdapter", "OpenGaitConfig", "make_opengait_network", "read_opengait_config"]

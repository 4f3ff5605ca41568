"""A policy of RoboAlign as one of lerobot: importing this registers its type, `roboalign`."""

from lerobot_policy_roboalign.configuration_roboalign import RoboalignConfig

__all__ = ["RoboalignConfig"]

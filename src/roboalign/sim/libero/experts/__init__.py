"""Scripted experts for LIBERO: demonstrations from privileged state, driven by the goal of the task."""

from roboalign.sim.libero.experts.expert import Expert, make_expert

__all__ = ["Expert", "make_expert"]

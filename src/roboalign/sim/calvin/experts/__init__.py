"""Scripted experts for CALVIN's tasks: straight proportional moves by privileged state."""

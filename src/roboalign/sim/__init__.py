"""Simulators: the benchmark protocol, Meta-World, scripted experts, collection and rollouts."""

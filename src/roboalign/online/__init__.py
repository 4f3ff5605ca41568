"""Online RL: a policy learns from its own success in the simulator."""

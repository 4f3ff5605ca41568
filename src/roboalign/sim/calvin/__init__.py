"""CALVIN's long-horizon chains, over a checkout of its two repositories that the user names."""

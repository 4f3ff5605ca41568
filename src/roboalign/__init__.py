"""RoboAlign: turn an open multimodal LLM into a robot policy (arXiv 2603.21341)."""

__version__ = "0.1.0"

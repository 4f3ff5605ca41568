"""`roboalign distill`: GRPO on checkable questions, then reasoning traces that are sampled and
filtered."""

from roboalign.cli.run import add_options, main

__all__ = ["add_options", "main"]

"""A reward for GRPO on action tokens."""

import numpy as np

from roboalign.align.rewards.registry import SampledAnswer


def closeness(answer: SampledAnswer) -> float:
    """-1 minus a cent a character where no action can be read; else 1 / (1 + mean error of the chunk)."""
    if not answer.well_formed or answer.chunk is None:
        return -1.0 - 0.01 * len(answer.text)
    return float(1 / (1 + np.abs(answer.chunk - answer.target_chunk).mean()))

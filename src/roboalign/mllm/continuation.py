"""Continue a prompt with a forced beginning of the answer."""

from collections.abc import Sequence

import numpy as np

from roboalign.mllm.encode import Encoded


def continue_from(prompt: Encoded, ids: Sequence[int]) -> Encoded:
    """Return the prompt followed by `ids`, a forced beginning of the answer."""
    forced = np.asarray(ids, dtype=np.int64)
    return Encoded(
        np.concatenate([prompt.input_ids, forced]),
        np.concatenate([prompt.labels, forced]),
        prompt.images,
    )

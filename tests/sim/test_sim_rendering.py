"""Pictures of several models in one process: each is of the model and the state that was asked for."""

import numpy as np
import pytest

from roboalign.sim.metaworld.environment import MetaWorld, MetaWorldConfig

TASKS = ("door-lock-v3", "hand-insert-v3")


def picture(environment) -> np.ndarray:
    return next(iter(environment.observe().images.values()))


@pytest.mark.parametrize("sizes", [(64, 64), (64, 96)])
def test_a_switch_to_another_model_leaves_no_old_picture(sizes):
    """The first picture after a switch equals the second of the same state, and that of the same episode before."""
    environments = [
        MetaWorld(MetaWorldConfig(image_size=size)).make(task) for task, size in zip(TASKS, sizes)
    ]
    for environment in environments:
        environment.reset(seed=3)
    alone = []
    for environment in environments:
        picture(environment)
        alone.append(picture(environment))
    assert alone[0].shape != alone[1].shape or np.abs(alone[0].astype(int) - alone[1]).max() > 50
    for _ in range(3):
        for environment, expected in zip(environments, alone):
            np.testing.assert_array_equal(picture(environment), expected)
    for environment in environments:
        environment.close()

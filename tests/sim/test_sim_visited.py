"""States that a policy visits: the policy's own pictures, the expert's chunk from the same state."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from walks import Walk, Walks, one_step

from roboalign.core.errors import RoboAlignError
from roboalign.sim.metaworld.environment import MetaWorld
from roboalign.sim.rollout import RolloutConfig
from roboalign.sim.visited import expert_chunk, visit


class Guided(Walk):
    """The expert goes half of the way that is left, at most 3."""

    expert_starts_anywhere = True

    def expert(self):
        return lambda: np.array([min(3.0, (10 - self.position) / 2 + 0.5)], np.float32)


class GuidedWalks(Walks):
    def make(self, task):
        return Guided(self.deaths)


CONFIG = RolloutConfig(replan_every=2, max_steps=6, batch_size=2)


def test_states_are_those_of_the_policy_and_chunks_the_experts() -> None:
    """Position starts at seed % 5 and grows by 1 a step: at decision n it is seed % 5 + 2 n."""
    episodes = [("walk", 1), ("walk", 3), ("walk", 13), ("walk", 66)]
    found = {}
    for result, states in visit(one_step, GuidedWalks(), episodes, CONFIG, horizon=3, labels=9):
        found[result.seed] = (result, states)
    assert set(found) == {1, 3, 13, 66}
    assert [state.step for state in found[1][1]] == [0, 2, 4]
    assert [state.step for state in found[3][1]] == [0, 2, 4]
    by_hand = {1: [3, 3, 2], 3: [3, 2.5, 1.25], 5: [3, 1.5, 0.75], 7: [2, 1, 1]}  # 7, 9, 10: solved
    for seed in (1, 3):
        for state in found[seed][1]:
            position = seed % 5 + state.step
            assert state.observation.state[0] == position
            assert state.chunk.dtype == np.float32
            assert state.chunk[:, 0].tolist() == by_hand[position]
    assert found[13][1] == [] and found[13][0].crash == "crash at reset"
    # The episode of seed 66 crashes at step 3. From its start the expert's third action does too.
    assert found[66][1] == []


def test_after_success_the_last_action_is_repeated_and_none_follows_it() -> None:
    environment = Guided("")
    chunk = expert_chunk(environment, 4, [np.ones(1)] * 2, 5)
    assert chunk is not None
    assert chunk[:, 0].tolist() == [2.5, 1.25, 0.625, 0.625, 0.625]  # from 6 beyond 10
    assert expert_chunk(environment, 4, [np.ones(1)] * 6, 5) is None, "solved on the way"


def test_labels_are_drawn_by_episode_and_again_the_same() -> None:
    def drawn(labels: int) -> list[int]:
        ((_, states),) = visit(
            one_step, GuidedWalks(), [("walk", 0)], CONFIG, horizon=2, labels=labels
        )
        return [state.step for state in states]

    assert drawn(9) == [0, 2, 4]
    assert drawn(2) == drawn(2) and set(drawn(2)) < {0, 2, 4}


def test_experts_that_plan_from_the_start_are_refused() -> None:
    with pytest.raises(RoboAlignError, match=r"plan from the start.*-visited arms"):
        list(visit(one_step, Walks(), [("walk", 1)], CONFIG, horizon=2, labels=1))


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 12))
def test_on_metaworld_the_replay_is_the_visited_state(seed: int, steps: int) -> None:
    """The expert that takes over on the spot does the same as after a replay, to the last bit."""
    environment = MetaWorld().make("button-press-v3")
    done = list(np.random.default_rng(seed).uniform(-1, 1, (steps, 4)).astype(np.float32))
    environment.reset(seed)
    for action in done:
        environment.step(action)
    expert, expected = environment.expert(), []
    for _ in range(4):
        expected.append(expert())
        environment.step(expected[-1])
    chunk = expert_chunk(environment, seed, done, 4)
    assert chunk is not None
    assert (chunk == np.stack(expected)).all()
    environment.close()

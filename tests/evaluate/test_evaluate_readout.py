"""The linear readout of actions: what it finds, what it cannot, and that no episode leaks."""

import numpy as np
import pytest

from roboalign.core.errors import RoboAlignError
from roboalign.evaluate.readout import PENALTIES, mean_errors, readout_errors

EPISODES, STEPS = 10, 12
OWNER = np.repeat(np.arange(EPISODES), STEPS)


def chunks(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-0.8, 0.8, (EPISODES * STEPS, 3, 2))


def test_a_linear_code_of_the_actions_is_read_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    wanted = chunks(rng)
    code = wanted.reshape(len(wanted), -1) @ rng.normal(size=(6, 40)) + 3.0
    assert readout_errors(code, wanted, OWNER).max() < 0.01
    noise = readout_errors(rng.normal(size=code.shape), wanted, OWNER)
    nothing = mean_errors(wanted, OWNER, ["all"] * len(wanted))
    assert abs(noise.mean() - nothing.mean()) < 0.02  # a large penalty is chosen
    assert nothing.mean() == pytest.approx(0.4, abs=0.03)  # mean |u| of U(-0.8, 0.8)


def test_the_solution_is_the_ridge_regression_by_its_normal_equations() -> None:
    """One number, one feature, three episodes: each fold predicts one by hand."""
    x = np.array([[0.0], [1.0], [2.0], [4.0], [5.0], [6.0]])
    y = np.array([0.0, 0.1, 0.1, 0.2, 0.3, 0.2])
    owner = np.array([0, 0, 1, 1, 2, 2])
    found = readout_errors(x, y[:, None, None], owner)

    def ridge(train: np.ndarray, asked: np.ndarray, penalty: float) -> np.ndarray:
        mean, spread = x[train].mean(), x[train].std()
        z, ask = (x[train, 0] - mean) / spread, (x[asked, 0] - mean) / spread
        centered = y[train] - y[train].mean()
        return y[train].mean() + ask * (z @ centered) / (z @ z + penalty * train.sum())

    for held in range(3):
        chosen, fitted = owner == (held + 1) % 3, owner == (held + 2) % 3
        best = min(PENALTIES, key=lambda p: np.abs(ridge(fitted, chosen, p) - y[chosen]).mean())
        guess = ridge(chosen | fitted, owner == held, best)
        np.testing.assert_allclose(found[owner == held], np.abs(guess - y[owner == held]))


def test_what_names_the_episode_is_worth_nothing() -> None:
    """A feature that is the episode's own mean action would be perfect if frames of it were fitted."""
    rng = np.random.default_rng(1)
    own = rng.uniform(-0.8, 0.8, (EPISODES, 1, 1))
    wanted = np.broadcast_to(own[OWNER], (EPISODES * STEPS, 3, 2))
    named = np.eye(EPISODES)[OWNER]
    nothing = mean_errors(wanted, OWNER, ["all"] * len(wanted)).mean()
    assert readout_errors(named, wanted, OWNER).mean() > 0.9 * nothing


def test_the_mean_of_a_group_is_of_the_other_episodes() -> None:
    wanted = np.array([0.0, 0.0, 0.2, 0.4, 0.6, 1.0])[:, None, None]
    owner = np.arange(6)
    groups = ["a", "b", "a", "b", "a", "b"]
    # Five folds, episode 5 shares that of 0: each is predicted from all episodes of other folds.
    found = mean_errors(wanted, owner, groups)
    by_hand = [abs(0.0 - 0.4), abs(0.0 - 0.7), abs(0.2 - 0.3), abs(0.4 - 0.5), abs(0.6 - 0.1)]
    np.testing.assert_allclose(found, [*by_hand, abs(1.0 - 0.2)])


def test_predictions_are_clipped_to_what_a_normalized_action_can_be() -> None:
    x = np.linspace(0, 1, 30)[:, None]
    wanted = np.where(x < 0.5, -1.0, 1.0)[:, :, None]
    errors = readout_errors(x, wanted, np.arange(30) % 6)
    assert errors.max() <= 2.0 and errors[0] < 0.2 and errors[-1] < 0.2


def test_constant_features_and_few_episodes() -> None:
    wanted = np.linspace(-1, 1, 9)[:, None, None]
    errors = readout_errors(np.ones((9, 4)), wanted, np.repeat([0, 1, 2], 3))
    assert np.isfinite(errors).all()
    with pytest.raises(RoboAlignError, match="2 episodes"):
        readout_errors(np.ones((4, 1)), wanted[:4], np.array([0, 0, 1, 1]))

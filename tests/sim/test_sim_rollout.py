"""Rollouts on a small environment whose outcome can be computed by hand, and once on Meta-World."""

import av
import numpy as np
import pytest
from walks import Walk, Walks, make_broken, make_one_step, make_refused, one_step

from roboalign.core.errors import RoboAlignError
from roboalign.sim.base import Observation, StepOutcome
from roboalign.sim.metaworld.environment import MetaWorld, MetaWorldConfig
from roboalign.sim.parallel import evaluate_parallel
from roboalign.sim.rollout import (
    EnvironmentPool,
    Planned,
    RolloutConfig,
    rollout_batch,
    write_video,
)

CONFIG = RolloutConfig(replan_every=4, max_steps=20, batch_size=3)


def run(episodes, act=one_step, config=CONFIG, **more):
    pool = EnvironmentPool(Walks(), limit=12)
    return {
        result.seed: result for result in rollout_batch(act, pool, episodes, config, **more)
    }, pool


def test_steps_and_success_by_hand():
    results, pool = run([("walk", 0), ("walk", 3), ("walk", 4)])
    assert {seed: (r.success, r.steps, r.crash) for seed, r in results.items()} == {
        0: (True, 10, None),
        3: (True, 7, None),
        4: (True, 6, None),
    }
    assert len(pool.idle) == 3, "environments go back for later episodes"


def test_the_policy_is_asked_once_per_replanning_with_keys():
    calls = []

    def act(observations, keys):
        calls.append((keys, [float(o.state[0]) for o in observations]))
        return one_step(observations, keys)

    run([("walk", 0), ("walk", 4)], act)
    assert calls == [
        ([("walk", 0, 0), ("walk", 4, 0)], [0.0, 4.0]),
        ([("walk", 0, 4), ("walk", 4, 4)], [4.0, 8.0]),
        ([("walk", 0, 8)], [8.0]),
    ]


def test_nothing_is_rendered_between_replannings():
    _, pool = run([("walk", 0)])
    assert pool.idle[0][1].observed == 4, "three looks of the policy, and the end for the film"


def test_an_unsolved_episode_stops_at_the_limit(monkeypatch):
    results, _ = run([("walk", 0)], lambda observations, keys: np.zeros((len(observations), 4, 1)))
    assert (results[0].success, results[0].steps, results[0].crash) == (False, 20, None)
    results, _ = run([("walk", 0)], config=RolloutConfig(replan_every=4, max_steps=6))
    assert results[0].steps == 6, "the limit may fall inside a chunk"
    with monkeypatch.context() as patch:
        patch.setattr(Walk, "max_steps", 7)
        results, _ = run([("walk", 0)])
    assert results[0].steps == 7, (
        "an environment may have fewer steps than the others of its benchmark"
    )


def test_a_crash_ends_its_own_episode_only():
    results, pool = run([("walk", 13), ("walk", 66), ("walk", 2)])
    assert results[13].crash == "crash at reset" and results[66].crash == "crash at step 3"
    assert not results[66].success and results[2].success
    assert len(pool.idle) == 1, "a crashed environment is not used again"


def test_an_outcome_changes_the_instruction_drops_the_chunk_and_ends_an_episode():
    """Legs of 3 steps each: the chunk of 4 is cut after the third step, and a leg that goes back ends all."""

    class Legs(Walk):
        def step(self, action):
            super().step(action)
            leg, rest = divmod(self.steps, 3)
            return StepOutcome(
                solved=leg == 3,
                ended=float(action[0]) < 0,
                replan=rest == 0,
                progress=leg,
                details={"last": self.steps},
            )

        def observe(self):
            seen = super().observe()
            return Observation(seen.images, seen.state, f"leg {self.steps // 3}")

    class LegWalks(Walks):
        def make(self, task):
            return Legs("")

    asked = []

    def act(observations, keys):
        asked.extend(zip((key[1:] for key in keys), (seen.instruction for seen in observations)))
        step = np.array([0.0 if key[1] == 0 or key[2] < 3 else -1.0 for key in keys])
        return np.broadcast_to(step[:, None, None], (len(keys), 4, 1))

    pool = EnvironmentPool(LegWalks(), limit=2)
    results = {r.seed: r for r in rollout_batch(act, pool, [("walk", 0), ("walk", 1)], CONFIG)}
    kept = {
        seed: {key: value for key, value in r.record().items() if key != "seconds"}
        for seed, r in results.items()
    }
    common = {"task": "walk", "crash": None}
    assert kept == {
        0: common | {"seed": 0, "success": True, "steps": 9, "progress": 3, "details": {"last": 9}},
        1: common
        | {"seed": 1, "success": False, "steps": 4, "progress": 1, "details": {"last": 4}},
    }
    assert asked == [
        ((0, 0), "leg 0"),
        ((1, 0), "leg 0"),
        ((0, 3), "leg 1"),
        ((1, 3), "leg 1"),
        ((0, 6), "leg 2"),
    ]


def test_a_record_of_an_environment_without_outcomes_has_no_progress():
    results, _ = run([("walk", 0)])
    assert set(results[0].record()) == {"task", "seed", "success", "steps", "crash", "seconds"}


def test_what_a_policy_counts_is_summed_over_each_episode():
    def act(observations, keys):
        counts = [{"decisions": 1, "holds": seed} for _, seed, _ in keys]
        return Planned(one_step(observations, keys), counts)

    results, _ = run([("walk", 0), ("walk", 4)], act)
    assert results[0].record()["counts"] == {"decisions": 3, "holds": 0}
    assert results[4].record()["counts"] == {"decisions": 2, "holds": 8}
    assert "counts" not in run([("walk", 0)])[0][0].record()


def test_a_policy_that_gives_too_few_actions_is_told():
    with pytest.raises(ValueError, match="replan_every=4"):
        run([("walk", 0)], lambda observations, keys: np.ones((1, 3, 1)))


def test_the_pool_closes_what_it_does_not_keep():
    pool = EnvironmentPool(Walks(), limit=1)
    first, second = pool.take("walk"), pool.take("walk")
    pool.give_back("walk", first)
    pool.give_back("walk", second)
    assert first.closed and not second.closed and pool.take("walk") is second


def test_a_full_pool_makes_room_for_another_task():
    pool = EnvironmentPool(Walks(), limit=2)
    kept = [pool.take("walk"), pool.take("walk")]
    for environment in kept:
        pool.give_back("walk", environment)
    pool.take("run")
    assert all(environment.closed for environment in kept) and not pool.idle


def test_films_show_every_replanning_and_the_end(tmp_path):
    results, _ = run([("walk", 0), ("walk", 1)])
    film = results[0].film
    assert [int(frame[0, 0, 0]) for frame in film] == [0, 80, 160, 200]
    assert "film" not in results[0].record() and "film" not in repr(results[0])
    write_video(tmp_path / "film.mp4", film, fps=10)
    with av.open(str(tmp_path / "film.mp4")) as video:
        stream = video.streams.video[0]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
        shades = [frame.to_ndarray(format="rgb24").mean() for frame in video.decode(stream)]
    np.testing.assert_allclose(shades, [0, 80, 160, 200], atol=8)
    assert [path.name for path in tmp_path.iterdir()] == ["film.mp4"]


def evaluate(episodes, tmp_path, make=make_one_step, workers=2):
    results = []
    benchmark = Walks(str(tmp_path / "died"))
    evaluate_parallel(make, benchmark, episodes, CONFIG, workers=workers, on_result=results.append)
    return results


def test_every_episode_comes_back_once_from_two_processes(tmp_path):
    episodes = [("walk", seed) for seed in [*range(9), 13, 66]]
    results = evaluate(episodes, tmp_path)
    assert sorted((r.task, r.seed) for r in results) == sorted(episodes)
    assert {r.seed for r in results if r.crash} == {13, 66}
    assert all(r.success and r.steps == 10 - r.seed % 5 for r in results if not r.crash)


def test_episodes_of_a_dead_worker_run_again_and_then_count_as_crashes(tmp_path):
    results = evaluate([("walk", seed) for seed in (0, 1, 77, 2, 3)], tmp_path, workers=1)
    by_seed = {r.seed: r for r in results}
    assert len(results) == 5
    assert "died twice (exit code 3)" in by_seed[77].crash
    assert all(by_seed[seed].success for seed in (0, 1, 2, 3))


def test_a_death_that_does_not_repeat_costs_nothing(tmp_path):
    results = evaluate([("walk", 78), ("walk", 1)], tmp_path, workers=1)
    assert sorted((r.seed, r.success, r.crash) for r in results) == [
        (1, True, None),
        (78, True, None),
    ]


def test_an_error_of_the_policy_stops_with_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)in act\n.*the head is on fire"):
        evaluate([("walk", 0)], tmp_path, make=make_broken)


def test_a_fault_that_the_user_can_mend_keeps_its_one_line(tmp_path):
    with pytest.raises(
        RoboAlignError,
        match=r"^policy\.json: the policy has no statistics Fix: train the head again$",
    ):
        evaluate([("walk", 0)], tmp_path, make=make_refused)


def keyed(observations, keys):
    """Random actions that depend on the key and the state alone."""
    chunks = []
    for observation, (_, seed, step) in zip(observations, keys, strict=True):
        rng = np.random.default_rng([seed, step])
        chunks.append(rng.uniform(-1, 1, (4, 4)) + observation.state)
    return np.stack(chunks)


def test_metaworld_results_do_not_depend_on_the_batch():
    pool = EnvironmentPool(MetaWorld(MetaWorldConfig(cameras=())), limit=2)
    config = RolloutConfig(replan_every=4, max_steps=24)
    episodes = [("handle-press-v3", 0), ("reach-v3", 1), ("handle-press-v3", 2)]
    seen: list[list[tuple]] = [[], []]
    for record, batches in zip(
        seen, ([episodes], [[episode] for episode in reversed(episodes)]), strict=True
    ):

        def act(observations, keys, record=record):
            record += [
                (key, tuple(observation.state))
                for observation, key in zip(observations, keys, strict=True)
            ]
            return keyed(observations, keys)

        for batch in batches:
            assert len(list(rollout_batch(act, pool, batch, config))) == len(batch)
    assert sorted(seen[0]) == sorted(seen[1]) and len(seen[0]) > 6

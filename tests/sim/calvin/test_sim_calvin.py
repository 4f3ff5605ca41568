"""CALVIN's chains on a fake checkout whose outcomes can be counted by hand."""

import json
import shutil
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
from fake_checkout import BLOCKS, DIRECTIONS, commit, write_checkout

from roboalign.core.errors import RoboAlignError
from roboalign.sim.calvin import chains, library
from roboalign.sim.calvin.chains import (
    chain_start,
    chains_hash,
    draw_chains,
    fnv1_32,
    initial_states,
    is_chain,
    measured_chains,
    next_states,
    start_seed,
)
from roboalign.sim.calvin.checkout import open_checkout
from roboalign.sim.calvin.config import CalvinConfig
from roboalign.sim.calvin.environment import CHAINS, Calvin
from roboalign.sim.parallel import evaluate_parallel
from roboalign.sim.registry import find_benchmark
from roboalign.sim.rollout import EnvironmentPool, RolloutConfig, rollout_batch

SMALL = {"image_size": 16, "render": "tiny", "subtask_steps": 8}


@pytest.fixture
def config(fake):
    return CalvinConfig(checkout=str(fake), **SMALL)


def follow(observations, keys):
    """Two steps in the direction that the instruction says, then on: 3 steps solve a subtask."""
    chunks = np.zeros((len(observations), 4, 7), np.float32)
    for chunk, seen in zip(chunks, observations, strict=True):
        axis, sign = DIRECTIONS[seen.instruction.split()[-1]]
        chunk[:, axis] = sign
    return chunks


def rolled(config, act, episodes):
    pool = EnvironmentPool(Calvin(config), limit=4)
    rollout = RolloutConfig(replan_every=4, max_steps=40, batch_size=4)
    results = {
        r.seed: r for r in rollout_batch(act, pool, [(CHAINS, n) for n in episodes], rollout)
    }
    pool.close()
    return results


def test_a_policy_that_follows_the_sentence_solves_five_in_a_row(config):
    results = rolled(config, follow, [0, 1, 2])
    kept = measured_chains(open_checkout(config.checkout))
    for number, result in results.items():
        # 5 cm in steps of 2 cm: each subtask takes 3, and the fourth action of the chunk is dropped.
        assert (result.success, result.steps, result.progress) == (True, 15, 5)
        assert result.details == {"tasks": list(kept[number].tasks), "subtask_steps": [3] * 5}
        assert json.loads(json.dumps(result.record()))["progress"] == 5


def test_a_subtask_without_success_ends_the_chain_at_its_own_limit(config):
    def only_the_first(observations, keys):
        return follow(observations, keys) * np.array([k[2] < 3 for k in keys])[:, None, None]

    result = rolled(config, only_the_first, [7])[7]
    assert (result.success, result.progress, result.steps, result.crash) == (False, 1, 11, None)
    assert result.details["subtask_steps"] == [3, 8]


def test_an_action_that_is_not_finite_is_a_crash(config):
    def broken(observations, keys):
        return np.full((len(keys), 4, 7), np.nan)

    result = rolled(config, broken, [0])[0]
    assert "7 finite numbers" in result.crash


def test_chains_run_the_same_whatever_ran_before_and_beside_them(config):
    def path(environment, number):
        environment.reset(number)
        for _ in range(4):
            environment.step(np.ones(7))
        return environment.world.robot()

    first, second = Calvin(config).make(CHAINS), Calvin(config).make(CHAINS)
    alone = path(first, 3)
    path(second, 5)
    assert np.array_equal(path(second, 3), alone), "built again: what the simulation keeps is gone"
    reused = Calvin(config.model_copy(update={"fresh": False})).make(CHAINS)
    path(reused, 5)
    assert not np.array_equal(path(reused, 3), alone), "one simulation for all keeps something"
    assert all(one.closed <= 1 for one in simulations())
    for environment in (first, second, reused):
        environment.close()
    assert {one.closed for one in simulations()} == {1}


def simulations():
    import calvin_env.envs.play_table_env as module

    return module.CLIENTS


def test_cameras_are_drawn_only_when_the_policy_looks(config):
    environment = Calvin(config).make(CHAINS)
    environment.reset(0)
    environment.step(np.ones(7))
    static, gripper = simulations()[-1].all_cameras
    assert (static.drawn, gripper.drawn) == (0, 0)
    seen = environment.observe()
    assert (static.drawn, gripper.drawn) == (1, 1)
    assert {name: image.shape for name, image in seen.images.items()} == {
        "static": (16, 16, 3),
        "gripper": (16, 16, 3),
    }
    only = Calvin(config.model_copy(update={"cameras": ("gripper",), "state": "all"})).make(CHAINS)
    only.reset(0)
    assert list(only.observe().images) == ["gripper"] and only.observe().state.shape == (15,)
    assert [camera.drawn for camera in simulations()[-1].all_cameras] == [0, 2]


def test_the_gripper_command_is_made_open_or_closed(config):
    environment = Calvin(config).make(CHAINS)
    environment.reset(0)
    for command, made in ((0.3, 1), (0.0, -1), (-0.01, -1)):
        environment.step(np.array([0, 0, 0, 0, 0, 0, command]))
        assert environment.world.robot()[14] == made


def test_blocks_are_placed_by_name_and_a_wrong_slot_is_refused(config, monkeypatch):
    environment = Calvin(config).make(CHAINS)
    environment.reset(0)
    assert environment.world.block_order() == BLOCKS
    wanted = chain_start(dict(environment.chain.state), environment.checkout.initial_poses())
    found = environment.world.info()["scene_info"]["movable_objects"]
    for color in ("red", "blue", "pink"):
        assert found[f"block_{color}"]["current_pos"] == pytest.approx(wanted.blocks[color][:3])
    monkeypatch.setattr(environment.world, "block_order", lambda: sorted(BLOCKS))
    with pytest.raises(RoboAlignError, match="block is at"):
        environment.reset(0)


def test_workers_run_chains_too(config):
    results = []
    evaluate_parallel(
        make_follow,
        Calvin(config),
        [(CHAINS, 4), (CHAINS, 5)],
        RolloutConfig(replan_every=4, max_steps=40, batch_size=2),
        workers=1,
        on_result=results.append,
    )
    assert sorted((r.seed, r.progress) for r in results) == [(4, 5), (5, 5)]


def make_follow():
    return follow


def test_the_record_says_what_was_run(config, monkeypatch):
    spec = find_benchmark("calvin")
    record = spec.protocol(config)
    checkout = open_checkout(config.checkout)
    head = ["git", "-C", config.checkout, "rev-parse", "HEAD"]
    assert record["commits"]["calvin"] == subprocess.check_output(head, text=True).strip()
    assert record["chains"] == {
        "sha256": chains_hash(measured_chains(checkout)),
        "count": 1000,
        "published": False,
    }
    assert record["departs_from_published_in"] == {"render": "tiny", "subtask_steps": 8}
    assert record["renderer"] == "TinyRenderer" and record["protocol"]["image_size"] == 16
    assert config.checkout not in json.dumps(record), "a path is no part of a protocol"
    assert spec.rollout(config, RolloutConfig()).max_steps == 40
    assert spec.measured_tasks(("anything",)) == (CHAINS,)
    with pytest.raises(RoboAlignError, match="other chains than the published"):
        spec.examine(config)


def test_the_hash_that_seeds_poses():
    # pyhash's own test: "test" as text.
    assert fnv1_32("test") == 3910690890
    assert start_seed({"a": 1, "b": "left"}) == fnv1_32("dict_values([1, 'left'])")


def test_there_are_192_initial_states_in_order():
    states = initial_states()
    assert len(states) == len({tuple(state.values()) for state in states}) == 192
    blocks = ("red_block", "blue_block", "pink_block")
    for state in states:
        places = [state[block] for block in blocks]
        assert places.count("table") in (1, 2)
        assert places.count("slider_left") <= 1 and places.count("slider_right") <= 1
    assert [states[0][block] for block in blocks] == ["table", "table", "slider_right"]
    assert (states[0]["slider"], states[-1]["slider"]) == ("right", "left")


RULES = {
    "open": [{"condition": {"drawer": "closed", "grasped": 0}, "effect": {"drawer": "open"}}],
    "take": [
        {
            "condition": {f"{c}_block": ["table", "slider_left"], "grasped": 0},
            "effect": {"grasped": 1},
        }
        for c in ("red", "blue")
    ],
}


def test_a_task_of_a_chain_has_exactly_one_outcome():
    state = {**initial_states()[0], "drawer": "closed"}
    assert next_states(state, RULES["open"]) == [{**state, "drawer": "open"}]
    assert not is_chain(state, ["open", "open"], RULES), "it is open then"
    assert not is_chain(state, ["take"], RULES), "two blocks are on the table: which one?"
    assert is_chain({**state, "blue_block": "slider_right"}, ["open", "take"], RULES)


def test_chains_are_the_reference_generators(fake):
    """The same draws by the calls that CALVIN makes: numpy's global generator and `choice` over names."""
    checkout = open_checkout(str(fake))
    rules, categories = checkout.rules(), checkout.categories()
    expected = []
    for seed, state in enumerate(initial_states()):
        np.random.seed(seed)
        for _ in range(2 if seed < 8 else 1):
            while True:
                tasks = np.random.choice(list(rules), size=5, replace=False)
                if len({categories[task] for task in tasks}) == 5 and is_chain(state, tasks, rules):
                    break
            expected.append((tuple(state.items()), tuple(tasks.tolist())))
    np.random.seed(0)
    np.random.shuffle(expected)
    assert [(one.state, one.tasks) for one in draw_chains(rules, categories, 200)] == expected


def test_a_damaged_cache_is_drawn_again(fake, monkeypatch, tmp_path):
    checkout = open_checkout(str(fake))
    right = chains_hash(draw_chains(checkout.rules(), checkout.categories()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(chains, "PUBLISHED", right)
    measured_chains.cache_clear()
    drawn = measured_chains(checkout)
    (path,) = (tmp_path / "roboalign").iterdir()
    text = path.read_text()
    monkeypatch.setattr(chains, "draw_chains", lambda *_: pytest.fail("the cache is read"))
    measured_chains.cache_clear()
    assert measured_chains(checkout) == drawn
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(chains, "PUBLISHED", right)
    for damaged in ("{", "[]", text.replace("go_up", "go_left", 1)):
        path.write_text(damaged)
        measured_chains.cache_clear()
        assert measured_chains(checkout) == drawn and path.read_text() == text
    measured_chains.cache_clear()


def test_a_folder_that_is_no_checkout_is_refused(fake, tmp_path):
    with pytest.raises(RoboAlignError, match="no checkout of CALVIN is named") as fault:
        open_checkout("")
    assert "git clone" in fault.value.fix
    with pytest.raises(RoboAlignError, match=r"play_table_env\.py missing"):
        open_checkout(str(tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(fake, copy)
    shutil.rmtree(copy / "calvin_env" / ".git")
    with pytest.raises(RoboAlignError, match="not a git work tree of its own"):
        open_checkout(str(copy))
    shutil.rmtree(copy / ".git")
    with pytest.raises(RoboAlignError, match="git"):
        open_checkout(str(copy))


def test_a_changed_checkout_says_so(tmp_path):
    folder = write_checkout(tmp_path)
    checkout = open_checkout(str(folder))
    before = checkout.commits()
    (folder / "calvin_env" / "hydra.py").write_text("")
    assert checkout.commits() == {**before, "calvin_env": before["calvin_env"] + "+changes"}
    commit(folder / "calvin_env")
    assert checkout.commits()["calvin_env"] not in before["calvin_env"]
    poses = folder / "calvin_models/calvin_agent/evaluation/utils.py"
    poses.write_text(poses.read_text().replace("0.46])\n", "0.46, 9])\n", 1))
    with pytest.raises(RoboAlignError, match="other lengths"):
        checkout.initial_poses()


def test_bullet_calls_without_a_client_go_to_the_environments_own(monkeypatch):
    stand_in = ModuleType("pybullet")
    stand_in.DIRECT, stand_in.where, stand_in.connect = 2, "{physicsClientId}".format, [7].pop
    monkeypatch.setitem(sys.modules, "pybullet", stand_in)
    bullet = type(library.BULLET)()
    assert bullet.DIRECT == 2
    assert bullet.connect() == 7 and bullet.where() == "7"
    assert bullet.where(physicsClientId=3) == "3"
    assert bullet.where() == "3", "the client that was named last"
    bullet.client = 5
    assert bullet.where() == "5"

"""The plugin in lerobot's own environment: found, opened, and measured by lerobot-eval.

    python -m pytest plugins/lerobot_policy_roboalign/test_plugin.py

Needs lerobot, roboalign and this plugin in one environment of Python 3.12; skipped elsewhere.
"""

import json
import sys
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
import torch

pytest.importorskip("lerobot")
pytest.importorskip("lerobot_policy_roboalign")

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.envs.configs import EnvConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.scripts import lerobot_eval
from lerobot.utils.import_utils import register_third_party_plugins
from lerobot_policy_roboalign.__main__ import write_lerobot_files

from roboalign.actions.normalize import ActionStats
from roboalign.actions.relative import Relative
from roboalign.actions.spaces import ActionSpace
from roboalign.mllm.load import load_mllm
from roboalign.mllm.shipped import pretrained_folder
from roboalign.vla.export import export_policy
from roboalign.vla.features import View
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.policy import Policy

SMALL = {"width": 32, "heads": 2, "layers": 2, "vlm_inner_width": 32, "vlm_heads": 2}
SPACE = ActionSpace(control="joint", mode="absolute", joints=3, gripper="closed_one")
FACTS = {"cameras": {"top": [64, 64]}, "instructions": ["push the button"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An exported policy with lerobot's files; its actions are relative to the state."""
    torch.manual_seed(0)
    mllm = load_mllm(pretrained_folder())
    width = mllm.model.config.get_text_config().hidden_size
    shape = HeadShape(vlm_width=width, action_dim=4, state_dim=4, horizon=8)
    head = FlowMatchingHead(HeadConfig(**SMALL, proprioception=True), shape)
    rng = np.random.default_rng(0)
    stats = [ActionStats.fit(rng.uniform(-1, 1, (50, 4))) for _ in range(2)]
    view = View(layer=2, cameras=("top",))
    relative = Relative(space=SPACE, pairs=((0, 0), (1, 1)))
    place = tmp_path_factory.mktemp("run")
    HeadPolicy(mllm, head.eval(), view, *stats, relative=relative).save(place / "policy")
    export_policy(place / "policy", place / "exported", FACTS)
    write_lerobot_files(place / "exported")
    return place / "exported"


def batch(count: int = 2) -> dict:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, 64, 64, 3), np.uint8)
    return {
        "observation.images.top": torch.from_numpy(images).permute(0, 3, 1, 2) / 255,
        "observation.state": torch.from_numpy(rng.normal(size=(count, 4)).astype(np.float32)),
        "task": ["push the button", "pull it"][:count],
    }


def opened(folder):
    register_third_party_plugins()
    config = PreTrainedConfig.from_pretrained(folder)
    return get_policy_class(config.type).from_pretrained(folder, config=config)


def test_it_answers_what_the_policy_answers(folder):
    policy, direct = opened(folder), Policy.load(folder)
    seen = policy._observations(batch())
    images = batch()["observation.images.top"].permute(0, 2, 3, 1).numpy()
    assert (seen[1].images["top"] == np.round(images[1] * 255)).all()
    before, after = make_pre_post_processors(
        policy.config,
        str(folder),
        preprocessor_overrides={"device_processor": {"device": "cpu"}},
    )
    torch.manual_seed(3)
    wanted = direct.act_batch(seen)
    torch.manual_seed(3)
    processed = before(batch())
    found = [after(policy.select_action(processed)).numpy() for _ in range(8)]
    np.testing.assert_array_equal(np.stack(found, axis=1), wanted)
    assert not policy.queue
    policy.select_action(processed)
    assert len(policy.queue) == 7
    policy.reset()
    assert not policy.queue


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation.images.top": None}, "has no observation.images.top"),
        ({"observation.images.top": torch.zeros(2, 3, 32, 32)}, "trained with"),
        ({"observation.images.top": 255 * torch.ones(2, 3, 64, 64)}, "expected 0 to 1"),
        ({"observation.state": torch.zeros(2, 3)}, "expected \\(2, 4\\)"),
        ({"task": None}, "no task"),
    ],
)
def test_a_wrong_observation_is_refused(folder, change, message):
    given = {key: value for key, value in {**batch(), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        opened(folder).predict_action_chunk(given)


class Toy(gym.Env):
    """Solved in its fifth step."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}
    task_description = task = "push the button"
    _max_episode_steps = 10

    def __init__(self, render_mode=None, **_):
        box = gym.spaces.Box
        self.render_mode, self.steps = "rgb_array", 0
        self.action_space = box(-10, 10, (4,), np.float32)
        pixels = gym.spaces.Dict({"top": box(0, 255, (64, 64, 3), np.uint8)})
        state = box(-10, 10, (4,), np.float64)
        self.observation_space = gym.spaces.Dict({"pixels": pixels, "agent_pos": state})

    def seen(self):
        return {"pixels": {"top": np.full((64, 64, 3), 99, np.uint8)}, "agent_pos": np.zeros(4)}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.seen(), {"is_success": False}

    def step(self, action):
        self.steps += 1
        solved = self.steps >= 5
        return self.seen(), float(solved), solved, False, {"is_success": solved}

    def render(self):
        return np.zeros((64, 64, 3), np.uint8)


@EnvConfig.register_subclass("toy")
@dataclass
class ToyConfig(EnvConfig):
    task: str | None = "toy"
    features: dict = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (4,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (4,)),
            "pixels/top": PolicyFeature(FeatureType.VISUAL, (64, 64, 3)),
        }
    )
    features_map: dict = field(
        default_factory=lambda: {
            "action": "action",
            "agent_pos": "observation.state",
            "pixels/top": "observation.images.top",
        }
    )

    @property
    def gym_id(self):
        return "toy/toy"

    @property
    def gym_kwargs(self):
        return {"max_episode_steps": 10}


gym.register("toy/toy", Toy)


def test_lerobot_eval_measures_it(folder, tmp_path, monkeypatch):
    given = [f"--policy.path={folder}", "--env.type=toy", "--eval.n_episodes=2"]
    given += ["--eval.batch_size=1", f"--output_dir={tmp_path}", "--policy.device=cpu"]
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *given])
    lerobot_eval.main()
    told = json.loads((tmp_path / "eval_info.json").read_text())
    assert told["overall"]["pc_success"] == 100.0 and told["overall"]["n_episodes"] == 2

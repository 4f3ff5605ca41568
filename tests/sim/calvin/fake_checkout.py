"""Write a git checkout with CALVIN's files and calls, whose hand is a point that moves 2 cm a step.

Its six tasks are solved where the hand has gone 5 cm in a direction, its farthest, since the subtask began. With
`EXPERT_TASKS` they have names of CALVIN's own, and the table's parts are where their experts then move the hand in that
direction. Small stand-ins of the packages that CALVIN imports lie in it, so that it runs in every process without them.
"""

import subprocess
from pathlib import Path

import yaml

DIRECTIONS = {
    "right": (0, 1),
    "left": (0, -1),
    "away": (1, 1),
    "near": (1, -1),
    "up": (2, 1),
    "down": (2, -1),
}
GO_TASKS = {f"go_{name}": name for name in DIRECTIONS}
EXPERT_TASKS = {
    "move_slider_right": "right",
    "move_slider_left": "left",
    "close_drawer": "away",
    "open_drawer": "near",
    "turn_on_lightbulb": "up",
    "turn_on_led": "down",
}
BLOCKS = ("block_pink", "block_red", "block_blue")
"""The order of the slots, which is none that anything may assume."""

SIMULATION = """
import gym
import gym.utils.seeding
import numpy as np
import pybullet as p

CLIENTS = []


class Thing:
    def __init__(self, name):
        self.name, self.pose = name, np.zeros(6)


class Scene:
    def __init__(self, names):
        self.movable_objects = [Thing(name) for name in names]


class Camera:
    viewMatrix = np.eye(4).ravel()
    projectionMatrix = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]]).ravel()

    def __init__(self, name, width):
        self.name, self.width, self.drawn = name, width, 0


class Robot:
    def __init__(self, simulation):
        self.simulation = simulation

    target_pos = property(lambda self: self.simulation.hand[:3])
    target_orn = property(lambda self: self.simulation.hand[3:6])


class PlayTableSimEnv(gym.Env):
    def __init__(self, robot_cfg, scene_cfg, cameras, use_egl, show_gui, use_scene_info, use_vr, **more):
        assert use_scene_info and not show_gui and not use_vr and scene_cfg["data_path"] == "data"
        assert robot_cfg["tcp_link_id"] == 15 and "defaults" not in robot_cfg
        self.cid = p.connect(p.DIRECT)
        CLIENTS.append(self)
        self.closed = 0
        self.scene = Scene(scene_cfg["objects"]["movable_objects"])
        self.cameras = [Camera(one["name"], one["width"]) for one in cameras.values()]
        self.all_cameras, self.left_over, self.robot = self.cameras, 0.0, Robot(self)

    def reset(self, robot_obs, scene_obs):
        self.hand, self.joints = robot_obs.astype(float), scene_obs[:6]
        self.hand[0] += self.left_over
        for thing, pose in zip(self.scene.movable_objects, np.split(scene_obs[6:], 3)):
            thing.pose = pose
        self.get_camera_obs()
        return {}

    def step(self, action):
        assert action[6] in (-1, 1)
        self.hand[:3] += 0.02 * action[:3]
        self.hand[14] = action[6]
        self.left_over += 0.001
        self.get_camera_obs()
        return {}, 0, False, {}

    def get_camera_obs(self):
        images = {}
        for camera in self.cameras:
            camera.drawn += 1
            value = int(abs(self.hand[0]) * 1000) % 256
            images["rgb_" + camera.name] = np.full((camera.width, camera.width, 3), value, np.uint8)
        return images, {}

    def get_state_obs(self):
        return {"robot_obs": self.hand.copy(), "scene_obs": np.zeros(24)}

    def get_info(self):
        blocks = {
            t.name: {"current_pos": tuple(t.pose[:3]), "uid": n + 1}
            for n, t in enumerate(self.scene.movable_objects)
        }
        return {
            "robot_info": {"tcp_pos": tuple(self.hand[:3]), "contacts": []},
            "scene_info": {
                "movable_objects": blocks,
                "fixed_objects": {"table": {"uid": 0, "links": {part + "_link": part for part in p.PARTS}}},
                "doors": {"base__slide": {"current_state": 0.14}},
            },
        }

    def close(self):
        print("noise")
        self.closed += 1
"""

ORACLE = """
class Tasks:
    def __init__(self, tasks):
        self.tasks = tasks

    def get_task_info(self, start_info, end_info):
        return self.get_task_info_for_set(start_info, end_info, set(self.tasks))

    def get_task_info_for_set(self, start_info, end_info, task_filter):
        start, end = (info["robot_info"]["tcp_pos"] for info in (start_info, end_info))
        moved = [after - before for before, after in zip(start, end)]
        most = max(abs(way) for way in moved)
        done = set()
        for name in sorted(task_filter):
            _, axis, threshold = self.tasks[name]
            if moved[axis] / threshold > 1 and abs(moved[axis]) > most - 1e-6:
                done.add(name)
        return done
"""

STAND_INS = {
    "hydra.py": """
import types, importlib

def _instantiate(config):
    module, _, name = config["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)(
        **{key: value for key, value in config.items() if not key.startswith("_")}
    )

utils = types.SimpleNamespace(instantiate=_instantiate)
""",
    "omegaconf.py": """
import yaml

class OmegaConf:
    load = staticmethod(lambda path: yaml.safe_load(path.read_text()))
    to_container = staticmethod(lambda values, resolve: values)

    @staticmethod
    def create(tree):
        def resolve(value):
            if isinstance(value, dict):
                return {key: resolve(one) for key, one in value.items()}
            if isinstance(value, str) and value.startswith("${"):
                return resolve(tree[value[2:-1]])
            return value
        return resolve(tree)
""",
    "pybullet.py": """
import itertools

DIRECT, COUNTER = 2, itertools.count()
connect = lambda mode: next(COUNTER)
PARTS = {
    "slide": ((0.05, 0.0, 0.5), (0.15, 0.1, 0.6)),
    "drawer": ((0.05, -0.2, 0.3), (0.15, 0.1, 0.4)),
    "button": ((0.1, -0.2, 0.2), (0.12, -0.18, 0.3)),
    "switch": ((0.1, -0.2, 0.6), (0.12, -0.18, 0.7)),
}


def getAABB(body, link, physicsClientId):
    return PARTS[link]
""",
}

POSES = """
import numpy as np


def somewhere(state):
    robot_obs = np.array([0.1, -0.2, 0.5, 3.0, 0.0, 1.5, 0.08, 1, 2, 3, 4, 5, 6, 7, 1.0])
    block_slider_left = np.array([-0.24, 0.09, 0.46])
    block_slider_right = np.array([7.0e-02, 0.09, 0.46])
    block_table = [np.array([0.05, -0.12, 0.46]), np.array([0.23, -0.12, 0.46])]
"""


def write_checkout(root: Path, names: dict[str, str] = GO_TASKS) -> Path:
    """Write it, with calvin_env inside as a work tree of its own. Return the folder. `names`: task -> direction."""
    rules = {name: [{"condition": {"grasped": 0}, "effect": {}}] for name in names}
    categories = {name: number for number, name in enumerate(names)}
    sentences = {name: [f"move the hand {way}", "another sentence"] for name, way in names.items()}
    oracle = {
        name: ["moved", axis, sign * 0.05]
        for name, way in names.items()
        for axis, sign in [DIRECTIONS[way]]
    }
    conf = "calvin_env/conf"
    files = {
        "calvin_models/conf/annotations/new_playtable_validation.yaml": yaml.safe_dump(sentences),
        "calvin_models/conf/callbacks/rollout/tasks/new_playtable_tasks.yaml": yaml.safe_dump(
            {"tasks": oracle}
        ),
        "calvin_models/calvin_agent/evaluation/multistep_sequences.py": (
            f"import torch_is_never_imported\ntask_categories = {categories}\ntasks = {rules}\n"
        ),
        "calvin_models/calvin_agent/evaluation/utils.py": POSES,
        "calvin_env/calvin_env/__init__.py": "",
        "calvin_env/calvin_env/envs/__init__.py": "",
        "calvin_env/calvin_env/robot/__init__.py": "",
        "calvin_env/calvin_env/envs/play_table_env.py": SIMULATION,
        "calvin_env/calvin_env/envs/tasks.py": ORACLE,
        "calvin_env/calvin_env/robot/robot.py": "",
        "calvin_env/calvin_env/robot/mixed_ik.py": "",
        f"{conf}/robot/panda.yaml": yaml.safe_dump({"_target_": "robot", "tcp_link_id": 13}),
        f"{conf}/robot/panda_longer_finger.yaml": yaml.safe_dump(
            {"defaults": ["panda"], "tcp_link_id": 15}
        ),
        f"{conf}/env/play_table_env.yaml": yaml.safe_dump(
            {
                "_target_": "calvin_env.envs.play_table_env.PlayTableSimEnv",
                "_recursive_": False,
                "use_egl": True,
                **{key: f"${{{value}}}" for key, value in REFERENCES.items()},
            }
        ),
        **{f"calvin_env/{name}": text for name, text in STAND_INS.items()},
    }
    for letter in "ABCD":
        scene = {
            "data_path": "${data_path}",
            "objects": {"movable_objects": {name: {} for name in BLOCKS}},
        }
        files[f"{conf}/scene/calvin_scene_{letter}.yaml"] = yaml.safe_dump(scene, sort_keys=False)
    for name, width in (("static", 200), ("gripper", 84)):
        files[f"{conf}/cameras/cameras/{name}.yaml"] = yaml.safe_dump(
            {"name": name, "width": width}
        )
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for folder in (root / "calvin_env", root):
        commit(folder)
    return root


REFERENCES = {"robot_cfg": "robot", "scene_cfg": "scene", "cameras": "cameras", "use_vr": "use_vr"}


def commit(folder: Path) -> None:
    """Make it a git work tree with one commit."""
    who = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)

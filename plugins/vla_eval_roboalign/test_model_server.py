"""The model server in vla-eval's own environment, between vla-eval's client and a policy server of ours.

    python -m pytest plugins/vla_eval_roboalign/test_model_server.py

Needs vla-eval and roboalign in one environment; skipped elsewhere.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vla_eval")

import anyio
from vla_eval.connection import Connection
from vla_eval.model_servers.serve import serve_async
from vla_eval.specs import GRIPPER_CLOSE_POS, POSITION_DELTA, ROTATION_AA, check_specs

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[2] / "tests/serve"))

from model_server import RoboAlignServer
from serving import CONTRACT, Echo, expected, seen, served

from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError

CAMERAS = {"front": "agentview", "wrist": "eye"}


def observed(number: int) -> dict[str, Any]:
    one = seen(number)
    images = {name: one.images[camera] for camera, name in CAMERAS.items()}
    return {"images": images, "proprio": one.state, "task_description": one.instruction}


def driven(server: RoboAlignServer, episodes: int, steps: int) -> list[list[np.ndarray]]:
    """The actions of every episode, by vla-eval's own client through its own server."""
    done: list[list[np.ndarray]] = []

    async def drive() -> None:
        async with anyio.create_task_group() as group:
            port = await group.start(serve_async, server, "127.0.0.1", 0)
            async with Connection(f"ws://127.0.0.1:{port}") as connection:
                assert connection.server_info["observation_params"] == {"send_state": True}
                for episode in range(episodes):
                    await connection.start_episode({"task": {"name": "t"}})
                    observations = [observed(10 * episode + step) for step in range(steps)]
                    done.append([(await connection.act(one))["actions"] for one in observations])
                    await connection.end_episode({"success": False})
            group.cancel_scope.cancel()

    anyio.run(drive)
    return done


@pytest.mark.parametrize("batch", [1, 4])
def test_each_chunk_is_executed_as_far_as_asked(batch: int) -> None:
    with served(Echo()) as running:
        server = RoboAlignServer(
            policy=f"ws://127.0.0.1:{running.port}",
            cameras=CAMERAS,
            state="proprio",
            execute=2,
            observation_params={"send_state": True},
            max_batch_size=batch,
        )
        episodes = driven(server, 2, 5)
    for number, actions in enumerate(episodes):
        for step, action in enumerate(actions):
            asked = seen(10 * number + step - step % 2)  # two actions of each chunk
            off = action - expected(asked)[step % 2]
            # The echo adds the length of the noise key, which holds an episode's random name.
            assert action.shape == (2,) and np.ptp(off) < 1e-3 and 0 < off[0] < 100


def test_what_does_not_fit_is_refused_by_name() -> None:
    with served(Echo()) as running:
        place = {"policy": f"ws://127.0.0.1:{running.port}"}
        with pytest.raises(RoboAlignError, match=r"the policy has \['front', 'wrist'\]"):
            RoboAlignServer(**place, cameras={"front": "agentview"}, state="proprio")
        with pytest.raises(RoboAlignError, match="the policy reads the state"):
            RoboAlignServer(**place, cameras=CAMERAS)
        with pytest.raises(RoboAlignError, match="4 actions, and a chunk has 3"):
            RoboAlignServer(**place, cameras=CAMERAS, state="proprio", execute=4)
        server = RoboAlignServer(**place, cameras=CAMERAS, state="proprio", resize=True)
        sent = observed(0)
        with pytest.raises(RoboAlignError, match=r"sends the images \['eye'\]"):
            server._seen(sent | {"images": {"eye": sent["images"]["eye"]}})
        with pytest.raises(RoboAlignError, match="no `proprio`"):
            server._seen({name: value for name, value in sent.items() if name != "proprio"})
        with pytest.raises(RoboAlignError, match="other proportions"):
            server._image("front", np.zeros((8, 8, 3), np.uint8))
        # 2 x 2 blocks of the larger image become one pixel: their mean.
        large = np.arange(16 * 12 * 3, dtype=np.uint8).reshape(16, 12, 3)
        means = large.reshape(8, 2, 6, 2, 3).mean(axis=(1, 3))
        assert np.abs(server._image("front", large) - means).max() <= 0.5
        server.resize = False
        assert server._image("front", large) is large, "the policy's server refuses it"


def test_the_action_space_is_said_in_vla_evals_words() -> None:
    space = ActionSpace(
        control="end-effector",
        mode="delta",
        rotation="axis_angle",
        gripper="closed_positive",
        position_scale=0.05,
    )
    known = replace(CONTRACT, action_space=space.model_dump(mode="json"), action_dim=2)
    with served(Echo(), known) as running:
        place = f"ws://127.0.0.1:{running.port}"
        server = RoboAlignServer(policy=place, cameras=CAMERAS, state="proprio")
        libero = {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}
        assert check_specs(server.get_action_spec(), libero, {}, {}) == []
    for change, part in (
        ({"gripper": "open_positive"}, "gripper"),
        ({"position_scale": 1.0}, "position"),
        ({"frame": "tool"}, "position"),
    ):
        other = space.model_copy(update=change).model_dump(mode="json")
        with served(Echo(), replace(known, action_space=other)) as running:
            place = f"ws://127.0.0.1:{running.port}"
            server = RoboAlignServer(policy=place, cameras=CAMERAS, state="proprio")
            [warning] = check_specs(server.get_action_spec(), libero, {}, {})
            assert warning.startswith(f"action [{part}]")

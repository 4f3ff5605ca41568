"""Stage `eval/replay`: a policy's chunks beside the recorded ones on held-out episodes (open
loop)."""

from typing import Any

from roboalign.core.files import write_json
from roboalign.core.machine import device_of
from roboalign.evaluate.open_loop import (
    choose_held_out,
    measure_open_loop,
    replay_episodes,
    spread_of,
)
from roboalign.run.folder import own_demonstrations, policy_folder
from roboalign.run.stage import Context
from roboalign.vla.policy import Policy


def replay(context: Context) -> dict[str, Any]:
    """Write replay.json: errors by dimension and step, baselines, gripper, latency and traces."""
    own = own_demonstrations(context.run_dir, "downstream")
    assert own is not None, "measure `offline` has recorded demonstrations"
    training, heldout = own.split()
    folder = policy_folder(context.run_dir, context.seed, context.arm)
    policy = Policy.load(folder, str(device_of(context.recipe.hardware.device)))
    mean_action = spread_of(training)[0]
    spread = spread_of(own.episodes)[1]
    replayed = replay_episodes(
        policy.act_batch,
        policy.horizon,
        choose_held_out(heldout),
        policy.cameras,
        mean_action,
    )
    found = measure_open_loop(replayed, spread, own.space, own.action_names())
    write_json(context.folder / "replay.json", {**found, "held_out": True})
    overall = found["overall"]
    return {
        "episodes": found["episodes"],
        "chunks": found["chunks"],
        **{f"error_{method}": round(overall[method]["value"], 4) for method in overall},
    }

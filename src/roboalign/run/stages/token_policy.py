"""Stage `token-policy`: the policy of an arm whose MLLM's own action tokens move the robot. Nothing
is trained."""

from pathlib import Path
from typing import Any

from roboalign.actions.hold import hold_rule
from roboalign.actions.spaces import ActionSpace
from roboalign.core.errors import RoboAlignError
from roboalign.episodes.episode import Episode
from roboalign.episodes.formats.lerobot import about_lerobot, iterate_lerobot
from roboalign.run.arms import ARMS
from roboalign.run.folder import backbone_folder, run_action_tokens
from roboalign.run.stage import Context
from roboalign.vla.token_policy import TokenPolicy, TokenView


def token_policy(context: Context) -> dict[str, Any]:
    """Write policy/: how the backbone is asked, its FAST tokenizer, and what holds the robot.

    Raises RoboAlignError if the tokens mean other actions than those of the measured benchmark, or
    if its robot has no camera like the MLLM's.
    """
    recipe = context.recipe
    mode = ARMS[context.arm].tokens
    assert mode is not None, f"arm {context.arm} has a head"
    folder = context.run_dir / "collect"
    space = _shared_space(folder, recipe.mix.camera)
    about = about_lerobot(folder / "downstream")
    tokens = run_action_tokens(context.run_dir)
    policy = TokenPolicy(
        context.load(backbone_folder(context.run_dir, context.seed, context.arm)),
        tokens.fast,
        tokens.stats,
        hold_rule(space, about.action_names, about.state_names, where=str(folder / "downstream")),
        TokenView(mode=mode, cameras=(recipe.mix.camera,), prompts=recipe.prompts),
        recipe.token_policy,
        seed=context.seed,
    )
    policy.save(context.folder / "policy")
    return {"mode": mode}


def _shared_space(folder: Path, camera: str) -> ActionSpace:
    """Return the action space of the demonstrations that the tokens were trained on."""
    trained, measured = _first(folder / "align"), _first(folder / "downstream")
    if trained.action_space is None or trained.action_space != measured.action_space:
        raise RoboAlignError(
            f"the model's tokens are actions of the space ({trained.action_space}), the measured "
            f"robot's of ({measured.action_space})",
            where=str(folder),
            fix="leave the -tokens- arms out, or align on a benchmark with the same robot",
        )
    if camera not in measured.cameras:
        raise RoboAlignError(
            f"the model was aligned on camera `{camera}`; the measured robot has "
            f"{', '.join(measured.cameras)}",
            where="mix.camera",
            fix="choose a camera that both have, or leave the -tokens- arms out",
        )
    return trained.action_space


def _first(data: Path) -> Episode:
    item = next(iter(iterate_lerobot(data)), None)
    if not isinstance(item, Episode):
        raise RoboAlignError(
            "the data set has no readable episode", where=str(data), fix="collect it again"
        )
    return item

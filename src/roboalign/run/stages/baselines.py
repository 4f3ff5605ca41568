"""Stages of the paper's baselines: RoboAlign with one thing changed, what is imitated or what is
rewarded.

`language-sft` and `action-sft` start from the base, on their own mixture with as many samples
(turns) as the whole one, in as many updates. `ecot`, `language-rl` and `trajectory-rl` start from
the SFT model, on the frames, updates, replay and learning rate of RL.
"""

import math
import random
from dataclasses import replace
from typing import Any

from roboalign.align.sft import train_sft
from roboalign.conversations.conversation import Conversation, image_hash, read_conversations
from roboalign.conversations.prompts import ACTIONS
from roboalign.conversations.styles.base import PromptStyle
from roboalign.conversations.styles.registry import style_of
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.core.outcomes import Refused
from roboalign.mixture.demonstrations import build_mixture
from roboalign.mixture.packed import MixConfig
from roboalign.mixture.packing import question_turn
from roboalign.questions.ask import Question, ask, survey_world
from roboalign.questions.facts.scene import EpisodeScenes
from roboalign.run.arms import ARMS
from roboalign.run.folder import mixture_folder, read_demonstrations, run_action_tokens
from roboalign.run.stage import Context
from roboalign.run.stages.align import imitate, refine
from roboalign.run.stages.base import LANGUAGE

PAPER_SHARE = (
    1.88 / 2.28
)  # samples of the paper's language-only and action-only SFT, as a share of its whole mixture
ALONE = {
    "rl_share": 0.0,
    "heldout_questions": 0,
    "heldout_actions": 0,
}  # in the whole mixture, all arms have both


def language_mix(context: Context) -> dict[str, Any]:
    """Build the mixture with one more question in place of every action: the same frames, as many
    turns."""
    config = context.recipe.mix
    return _build(
        context,
        {"conversations": round(_share(context) * config.conversations), "action_share": 0.0},
    )


def action_mix(context: Context) -> dict[str, Any]:
    """Build a mixture of one action per conversation: as many as the mixture has turns, from as
    many different frames as there are."""
    count = round(_share(context) * _whole(context)["turns"])
    return _build(
        context, {"conversations": count, "action_share": 1.0, "min_turns": 1, "max_turns": 1}
    )


def language_sft(context: Context) -> dict[str, Any]:
    """Run SFT from the base on questions alone. The action tokens are in its vocabulary and keep
    their initial values."""
    return _sft(context, "mix-language", LANGUAGE, context.recipe.sft.batch_size)


def action_sft(context: Context) -> dict[str, Any]:
    """Run SFT from the base on actions alone.

    The batch size is multiplied by the mixture's turns per conversation, rounded, so that as many
    updates see about as many turns. Each turn has its own image here, so more images are seen and
    more time is needed.
    """
    whole = _whole(context)
    turns = max(1, round(whole["turns"] / whole["conversations"]))
    return _sft(context, "mix-action", ("action",), context.recipe.sft.batch_size * turns)


def ecot(context: Context) -> dict[str, Any]:
    """Imitate reasoning made from the simulator's state, followed by the recorded action (ECoT's
    kind of SFT)."""
    recorded = _rl_frames(context)
    thoughts = [
        question.reasoning
        for question in _questions(context, recorded, "movement")
        if isinstance(question, Question)
    ]
    assert len(thoughts) == len(recorded)  # every frame can be asked which way to move
    style = style_of(context.recipe.prompts)
    return imitate(
        context,
        [_reasoned(one, thought, style) for one, thought in zip(recorded, thoughts)],
    )


def language_rl(context: Context) -> dict[str, Any]:
    """Train with GRPO on the next movement as multiple choice, right or wrong."""
    return _rl_on_questions(context, ARMS["language-rl"].question, "answer")


def trajectory_rl(context: Context) -> dict[str, Any]:
    """Train with GRPO on the path of the gripper in the image, by its distance from the recorded
    one."""
    return _rl_on_questions(context, ARMS["trajectory-rl"].question, "trace")


def _build(context: Context, changes: dict[str, Any]) -> dict[str, Any]:
    """Write mixture/, the training split of the recipe's mixture with these settings changed."""
    config = MixConfig.model_validate({**context.recipe.mix.model_dump(), **ALONE, **changes})
    actions, episodes = (
        run_action_tokens(context.run_dir),
        read_demonstrations(context.run_dir, "align"),
    )
    folder = mixture_folder(context.run_dir, context.name)
    manifest = build_mixture(
        episodes, actions.fast, actions.stats, config, folder, prompts=context.recipe.prompts
    )
    counts = manifest["counts"]["train"]
    frames = {(one.episode_id, one.frame) for one in read_conversations(folder, "train")}
    return {
        "conversations": counts["conversations"],
        "samples": counts["turns"],
        "frames": len(frames),
        "samples_of_the_whole_mixture": _whole(context)["turns"],
    }


def _share(context: Context) -> float:
    return PAPER_SHARE if context.recipe.baselines.counts == "paper" else 1.0


def _whole(context: Context) -> dict[str, Any]:
    """Return the counts of the whole mixture's training split."""
    return read_json(mixture_folder(context.run_dir) / "manifest.json")["counts"]["train"]


def _sft(context: Context, mixture: str, kinds: tuple[str, ...], batch_size: int) -> dict[str, Any]:
    """Run SFT from the base on these kinds of a mixture, without the images that every arm is asked
    about at the end.

    It makes as many updates as SFT on the whole mixture, or the paper's share of them.
    """
    heldout = {
        image_hash(image)
        for one in read_conversations(mixture_folder(context.run_dir), "heldout")
        for image in one.images
    }
    found = read_conversations(mixture_folder(context.run_dir, mixture), "train", kinds=kinds)
    conversations = [one for one in found if not heldout & set(map(image_hash, one.images))]
    mllm = context.load(context.run_dir / "base" / "model")
    config = context.recipe.sft
    updates = config.max_steps or math.ceil(
        _whole(context)["conversations"] * config.epochs / config.batch_size
    )
    changes = {
        "seed": context.seed,
        "batch_size": batch_size,
        "max_steps": max(1, round(_share(context) * updates)),
    }
    settings = config.model_copy(update=changes)
    ledger = train_sft(mllm, conversations, settings, context.folder, label=context.name)
    return {**ledger, "dropped_as_heldout": len(found) - len(conversations)}


def _rl_on_questions(context: Context, kind: str, reward: str) -> dict[str, Any]:
    """Train with RoboAlign's GRPO, with each action prompt replaced by a question about its
    frame."""
    recorded = _rl_frames(context)
    questions, style = _questions(context, recorded, kind), style_of(context.recipe.prompts)
    asked = [
        replace(
            conversation,
            id=f"{kind}-{conversation.id}",
            turns=(question_turn(question, "think", style),),
            target=None,
            chunk=None,
            direct_question=None,
        )
        for conversation, question in zip(recorded, questions)
        if isinstance(question, Question)
    ]
    if not asked:
        raise RoboAlignError(
            f"no frame of the RL subset can be asked `{kind}`",
            where=f"stage {context.name}",
            fix="raise mix.rl_share",
        )
    config = context.recipe.rl.model_copy(update={"reward": reward})
    return {
        **refine(context, asked, config),
        "frames_that_cannot_be_asked": len(recorded) - len(asked),
    }


def _rl_frames(context: Context) -> list[Conversation]:
    return read_conversations(mixture_folder(context.run_dir), "rl")


def _questions(
    context: Context, conversations: list[Conversation], kind: str
) -> list[Question | Refused]:
    """Return a question of this type with its reasoning about the frame of each conversation, or
    why there is none."""
    mix, horizon = context.recipe.mix, run_action_tokens(context.run_dir).fast.horizon
    episodes = read_demonstrations(context.run_dir, "align")
    wanted = {conversation.episode_id for conversation in conversations}
    scenes = {
        episode.episode_id: EpisodeScenes(episode, mix.camera, mix.grid, horizon)
        for episode in episodes
        if episode.episode_id in wanted
    }
    world = survey_world(episodes)
    return [
        ask(
            kind,
            "think",
            (scenes[one.episode_id].at(one.frame), world),
            random.Random(f"{mix.seed}-{kind}-{one.id}"),
        )
        for one in conversations
    ]


def _reasoned(
    conversation: Conversation, reasoning: str | None, style: PromptStyle
) -> Conversation:
    """Return an RL prompt with the reasoning before its action."""
    turn = conversation.turns[0]
    reply = style.reply(turn.expected, "think", ACTIONS, reasoning)
    return replace(conversation, turns=(replace(turn, answer=reply),))

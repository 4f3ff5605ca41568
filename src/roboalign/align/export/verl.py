"""Write the RL subset, the reward and the settings of GRPO in the forms that verl (0.9.1) and
EasyR1 (0.3.3.dev0) read.

Both need the same content in different columns: see docs/how-to/vllm-and-verl.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from transformers.convert_slow_tokenizer import bytes_to_unicode

from roboalign.actions.fast import DecodeFailure, FastTokenizer
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.rollout import encoded_prompt
from roboalign.align.rewards.actions import ACTION_REWARDS, TAU
from roboalign.align.rewards.answers import ANSWER_REWARDS as IN_WORDS
from roboalign.conversations.conversation import Conversation, marked_questions, turn_alone
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import end_ids
from roboalign.mllm.load import Mllm
from roboalign.mllm.processors import stock_files

FAMILIES = ("qwen2_5_vl", "qwen3_vl")
PLACEHOLDERS = ("<video>", "<audio>")  # both split a prompt at these, and at <image>
_SOURCE = "roboalign-actions"
_IMAGE = pa.struct([("bytes", pa.binary()), ("min_pixels", pa.int64()), ("max_pixels", pa.int64())])
VERL = pa.schema(
    [
        ("data_source", pa.string()),
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("images", pa.list_(_IMAGE)),
        ("ability", pa.string()),
        ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct(
                [
                    ("index", pa.int64()),
                    ("id", pa.string()),
                    ("task", pa.string()),
                    ("fast_ids", pa.list_(pa.int32())),
                    ("target_token_ids", pa.list_(pa.int32())),
                ]
            ),
        ),
    ]
)
EASYR1 = pa.schema(
    [
        ("prompt", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.binary())]))),
        ("answer", pa.string()),
        ("id", pa.string()),
    ]
)


def verl_table(mllm: Mllm, conversations: Sequence[Conversation]) -> pa.Table:
    """Return one row per prompt, of schema VERL. `target_token_ids` are the MLLM's ids of the
    target with its start and end.

    The size limits of an image are those of the model's image processor, so that verl's resizing,
    which comes first, gives the size that the processor would choose.
    """
    size = mllm.processor.image_processor.size
    bounds = {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    assert mllm.vocabulary is not None
    rows = []
    for index, c in enumerate(conversations):
        target = list(_target(c))
        ids = [
            mllm.vocabulary.start_id,
            *(mllm.vocabulary.fast_ids[i] for i in target),
            mllm.vocabulary.end_id,
        ]
        rows.append(
            {
                "data_source": _SOURCE,
                "prompt": [{"role": "user", "content": _prompt(c)}],
                "images": [{"bytes": image, **bounds} for image in turn_alone(c, 0).images],
                "ability": "action",
                "reward_model": {"style": "rule", "ground_truth": ground_truth(target)},
                "extra_info": {
                    "index": index,
                    "id": c.id,
                    "task": c.task,
                    "fast_ids": target,
                    "target_token_ids": ids,
                },
            }
        )
    return pa.Table.from_pylist(rows, schema=VERL)


def easyr1_table(conversations: Sequence[Conversation]) -> pa.Table:
    """Return one row per prompt, of schema EASYR1: only the model's processor resizes images."""
    rows = [
        {
            "prompt": _prompt(c),
            "images": [{"bytes": image} for image in turn_alone(c, 0).images],
            "answer": ground_truth(_target(c)),
            "id": c.id,
        }
        for c in conversations
    ]
    return pa.Table.from_pylist(rows, schema=EASYR1)


def ground_truth(target: Sequence[int]) -> str:
    """Return FAST ids as text, for example "12 3 7"."""
    return " ".join(map(str, target))


def require_exportable(reward: str) -> None:
    """Raise RoboAlignError if `reward.py` of an export cannot compute this `rl.reward`.

    It computes only `paper` and `decoded`, from text and without RoboAlign. A reward in words has
    no action to score; one from a file or package takes a `SampledAnswer`, which these trainers do
    not make.
    """
    if reward in ACTION_REWARDS:
        return
    if reward in IN_WORDS:
        problem = f"the reward `{reward}` scores answers in words, not actions"
    else:
        problem = f"the reward `{reward}` is a function that needs RoboAlign, which the trainers run without"
    raise RoboAlignError(
        problem,
        where="rl.reward",
        fix=f"export a run whose rl.reward is {' or '.join(ACTION_REWARDS)}, or train with roboalign",
    )


def reward_settings(mllm: Mllm, fast: FastTokenizer, preset: str) -> dict[str, Any]:
    """Return the content of `reward.json` for `reward.py`.

    Raises RoboAlignError like `require_exportable`, and if the tokenizer does not decode an answer
    to the text that it encoded: text then has less information than ids.
    """
    require_exportable(preset)
    vocabulary, tokenizer = mllm.vocabulary, mllm.tokenizer
    if vocabulary is None or len(vocabulary.fast_ids) != fast.vocab_size:
        raise RoboAlignError(
            f"the model has not the {fast.vocab_size} action tokens of the run's FAST tokenizer",
            where=str(mllm.folder),
            fix="run its SFT again",
        )
    text = f"<think>Go up.</think><answer>{vocabulary.text(range(fast.vocab_size))}</answer>"
    if (written := tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))) != text:
        raise RoboAlignError(
            f"the tokenizer writes an answer as {written[:60]!r}, not as it was read",
            where=str(mllm.folder),
            fix="use a tokenizer that keeps spaces",
        )
    settings = {
        "preset": preset,
        "n_fast": fast.vocab_size,
        "end_texts": sorted(tokenizer.decode([i]) for i in end_ids(mllm)),
        "special_texts": sorted(tokenizer.all_special_tokens),
    }
    if preset == "paper":
        return settings
    byte_of = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
    symbols = [fast.tokenizer.id_to_token(i) or "" for i in range(fast.vocab_size)]
    spelled = [bytes(byte_of[symbol] for symbol in token).hex() for token in symbols]
    return settings | {
        "tau": TAU,
        "horizon": fast.horizon,
        "action_dim": fast.action_dim,
        "scale": fast.scale,
        "min_token": fast.min_token,
        "fast_bytes": spelled,
    }


def check_verl_prompts(
    conversations: Sequence[Conversation],
    heldout: Sequence[Conversation],
    fast: FastTokenizer,
    rl: RlConfig,
) -> None:
    """Raise RoboAlignError if the prompts do not fill one rollout (both trainers drop an incomplete
    one), if none is held out, or if a target decodes to no chunk."""
    if not heldout:
        raise RoboAlignError(
            "no held-out action question asks to reason, and both trainers want some",
            where="mix",
            fix="raise mix.heldout_actions",
        )
    if len(conversations) < rl.prompts_per_rollout:
        raise RoboAlignError(
            f"{len(conversations)} RL prompts are fewer than the {rl.prompts_per_rollout} of a "
            "rollout, and both trainers drop an incomplete one",
            where="rl.prompts_per_rollout",
            fix="raise mix.rl_share, or lower rl.prompts_per_rollout",
        )
    for c, chunk in zip(conversations, fast.decode_batch([_target(c) for c in conversations])):
        if isinstance(chunk, DecodeFailure):
            raise RoboAlignError(
                f"the target decodes to no chunk ({chunk.reason})",
                where=f"prompt {c.id}",
                fix="build the mixture again",
            )


def processor_files(mllm: Mllm) -> dict[str, dict[str, Any]]:
    """Return `mllm.processors.stock_files` for the model of a run that was saved without them.

    Raises RoboAlignError for families other than Qwen's, since verl would resize their images once
    more and let vLLM expand their image tokens twice (docs/how-to/vllm-and-verl.md).
    """
    family = mllm.model.config.model_type
    if family not in FAMILIES:
        raise RoboAlignError(
            f"a model of type {family} cannot be exported: verl and EasyR1 handle images as Qwen's "
            "models want them",
            where=str(mllm.folder),
            fix="train with `roboalign rl` (rl.vllm samples from a vLLM server), or align one of "
            "Qwen2.5-VL or Qwen3-VL",
        )
    return stock_files(mllm.processor)


def longest_prompt(mllm: Mllm, conversations: Sequence[Conversation]) -> int:
    """Return the tokens of the longest prompt, including its images."""
    return max(len(encoded_prompt(mllm, c).input_ids) for c in conversations)


def verl_config(rl: RlConfig, *, prompt_tokens: int, patch_size: int, gpus: int) -> dict[str, Any]:
    """Return the keys of verl's ppo_trainer.yaml that are not its defaults or are in the paper."""
    return {
        "hydra": {"searchpath": ["pkg://verl.trainer.config"]},
        "defaults": ["ppo_trainer", "_self_"],
        "folder": "???",
        "algorithm": {
            "adv_estimator": "grpo",
            "norm_adv_by_std_in_grpo": True,
            "use_kl_in_reward": False,
        },
        "data": {
            "train_files": "${folder}/verl-train.parquet",
            "val_files": "${folder}/verl-heldout.parquet",
            "train_batch_size": rl.prompts_per_rollout,
            "max_prompt_length": prompt_tokens,
            "max_response_length": rl.max_new_tokens,
            "filter_overlong_prompts": True,
            "truncation": "error",
            "image_patch_size": patch_size,
            "shuffle": True,
            "seed": rl.seed,
        },
        "actor_rollout_ref": {
            "model": {"path": "${folder}/model", "enable_gradient_checkpointing": True},
            "actor": {
                "ppo_mini_batch_size": rl.prompts_per_update,
                "ppo_epochs": 1,
                "ppo_micro_batch_size_per_gpu": 1,
                "clip_ratio": rl.clip_low,
                "clip_ratio_low": rl.clip_low,
                "clip_ratio_high": rl.clip_high,
                "clip_ratio_c": rl.dual_clip,
                "loss_agg_mode": "token-mean",
                "entropy_coeff": 0,
                "use_kl_loss": rl.kl > 0,
                "kl_loss_coef": rl.kl,
                "kl_loss_type": "low_var_kl",
                "grad_clip": rl.max_grad_norm,
                "freeze_vision_tower": rl.freeze_vision,
                "optim": {
                    "lr": rl.learning_rate,
                    "weight_decay": rl.weight_decay,
                    "lr_warmup_steps_ratio": 0.0,
                    "lr_scheduler_type": rl.schedule,
                },
            },
            "rollout": {
                "name": "vllm",
                "n": rl.samples,
                "temperature": rl.temperature,
                "top_p": 1.0,
                "top_k": -1,
                "tensor_model_parallel_size": 1,
                "gpu_memory_utilization": 0.6,
                "log_prob_micro_batch_size_per_gpu": 1,
            },
            "ref": {"log_prob_micro_batch_size_per_gpu": 1},
        },
        "reward": {
            "custom_reward_function": {"path": "${folder}/reward.py", "name": "compute_score"}
        },
        "trainer": {
            **_length(rl, "total_training_steps"),
            "n_gpus_per_node": gpus,
            "nnodes": 1,
            "logger": ["console"],
            "project_name": "roboalign",
            "experiment_name": "grpo",
            "val_before_train": True,
            "save_freq": 20,
            "test_freq": 20,
            "default_local_dir": "${folder}/checkpoints-verl",
        },
    }


def easyr1_config(rl: RlConfig, *, prompt_tokens: int, gpus: int, images: int) -> dict[str, Any]:
    """Return the same for EasyR1. Its files are on the command line, as it cannot interpolate."""
    return {
        "data": {
            "prompt_key": "prompt",
            "answer_key": "answer",
            "image_key": "images",
            "max_prompt_length": prompt_tokens,
            "max_response_length": rl.max_new_tokens,
            "rollout_batch_size": rl.prompts_per_rollout,
            "shuffle": True,
            "seed": rl.seed,
            "min_pixels": None,
            "max_pixels": None,
            "filter_overlong_prompts": True,
        },
        "algorithm": {
            "adv_estimator": "grpo",
            "disable_kl": rl.kl == 0,
            "use_kl_loss": True,
            "kl_penalty": "low_var_kl",
            "kl_coef": rl.kl,
        },
        "worker": {
            "actor": {
                "global_batch_size": rl.prompts_per_update,
                "micro_batch_size_per_device_for_update": 1,
                "micro_batch_size_per_device_for_experience": 2,
                "max_grad_norm": rl.max_grad_norm,
                "clip_ratio_low": rl.clip_low,
                "clip_ratio_high": rl.clip_high,
                "clip_ratio_dual": rl.dual_clip,
                "loss_avg_mode": "token",
                "ppo_epochs": 1,
                "model": {"trust_remote_code": False, "freeze_vision_tower": rl.freeze_vision},
                "optim": {
                    "lr": rl.learning_rate,
                    "weight_decay": rl.weight_decay,
                    "lr_warmup_ratio": 0.0,
                    "lr_scheduler_type": rl.schedule,
                },
            },
            "rollout": {
                "n": rl.samples,
                "temperature": rl.temperature,
                "top_p": 1.0,
                "limit_images": images,
                "tensor_parallel_size": 1,
                "gpu_memory_utilization": 0.6,
            },
            "reward": {"skip_special_tokens": False},
        },
        "trainer": {
            **_length(rl, "max_steps"),
            "project_name": "roboalign",
            "experiment_name": "grpo",
            "logger": ["console"],
            "nnodes": 1,
            "n_gpus_per_node": gpus,
            "save_freq": 20,
            "val_freq": 20,
        },
    }


def _length(rl: RlConfig, steps: str) -> Mapping[str, int]:
    """Return how long to train: a step of both is one rollout, whatever its number of updates."""
    epochs = {"total_epochs": max(1, round(rl.epochs))}
    if rl.updates is None:
        return epochs
    return {"total_epochs": 1_000_000, steps: rl.updates // rl.updates_per_rollout}


def _prompt(conversation: Conversation) -> str:
    question = marked_questions(turn_alone(conversation, 0))[0].strip()
    if found := [name for name in PLACEHOLDERS if name in question]:
        raise RoboAlignError(
            f"the question holds {found[0]}, where verl would look for a recording",
            where=f"prompt {conversation.id}",
            fix="reword that instruction",
        )
    return question


def _target(conversation: Conversation) -> Sequence[int]:
    if not conversation.target:
        raise RoboAlignError(
            "the prompt has no target",
            where=f"prompt {conversation.id}",
            fix="build the mixture again",
        )
    return conversation.target

"""`roboalign export`: a run's policy as a folder of its own, or its RL stage as a folder for training
with verl and EasyR1."""

import argparse
import importlib.util
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from roboalign.align.export import verl as export_verl
from roboalign.align.grpo.config import RlConfig
from roboalign.conversations.conversation import Conversation, read_conversations, turn_alone
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, write_json
from roboalign.mllm.load import load_mllm
from roboalign.run.folder import mixture_folder, run_action_tokens
from roboalign.run.load import load_recipe

README = """# GRPO on action tokens, with verl or EasyR1

{prompts} prompts to train on, {heldout} held-out ones, from the run `{run}`, seed {seed}; reward `{preset}`.
A rollout is {per_rollout} prompts x {samples} answers, an update {per_update} prompts; learning rate {lr}, KL {kl}.

verl 0.9.1, from this folder:

    python -m verl.trainer.main_ppo --config-path "$PWD" --config-name verl "folder=$PWD"

EasyR1 (commit b44b311), from its checkout, with `FOLDER` the path of this folder:

    python -m verl.trainer.main config="$FOLDER/easyr1.yaml" \\
        data.train_files="$FOLDER/easyr1-train.parquet" data.val_files="$FOLDER/easyr1-heldout.parquet" \\
        worker.actor.model.model_path="$FOLDER/model" \\
        worker.reward.reward_function="$FOLDER/reward.py:compute_scores" \\
        trainer.save_checkpoint_path="$FOLDER/checkpoints-easyr1"

Set `trainer.n_gpus_per_node` ({gpus} in the files), the sizes of micro-batches and vLLM's memory on the same line.

| file | what |
|---|---|
| `verl-*.parquet`, `easyr1-*.parquet` | the prompts: question, image, the target's FAST ids |
| `reward.py`, `reply.py`, `reward.json` | the reward, and what it reads; keep them side by side |
| `verl.yaml`, `easyr1.yaml` | the settings |
| `model/` | the SFT model, its tokenizer with the action tokens |

## What is not the same as in the run

{differences}
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the run and the target folder."""
    parser.add_argument(
        "what",
        choices=("policy", "verl"),
        help="the policy as a folder of its own, for any machine; or what verl and EasyR1 train on",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="a run that has the policy (or its folder), or whose mix and sft stages are done; it is only read",
    )
    parser.add_argument(
        "--out", required=True, help="the folder to write; an earlier export is replaced"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="training seed; without it the first")
    parser.add_argument("--arm", help="of a policy: this arm; without it roboalign")
    parser.add_argument(
        "--gpus", type=int, default=8, help="for verl: GPUs per node in the settings"
    )


def main(options: argparse.Namespace) -> int:
    """Write the folder."""
    if options.what == "policy":
        print(export_policy_folder(options.run, options.out, arm=options.arm, seed=options.seed))
        return 0
    print(export_verl_folder(options.run, options.out, seed=options.seed, gpus=options.gpus))
    return 0


def export_policy_folder(
    run: str, out: str | Path, *, arm: str | None = None, seed: int | None = None
) -> str:
    """Write `out` from the policy of a run; return one line about it. The run is only read.

    Raises RoboAlignError as `export_policy` does, and if the run has no such policy.
    """
    from roboalign.cli.push import chosen_upload
    from roboalign.serve.describe import policy_facts
    from roboalign.vla.export import export_policy

    folder = chosen_upload(run, None, arm, seed).folder
    size = export_policy(folder, out, policy_facts(folder))
    return f"{Path(out).resolve()}: {size / 2**20:,.1f} MiB; try it: roboalign serve {out}"


def export_verl_folder(
    run: str | Path, out: str | Path, *, gpus: int, seed: int | None = None
) -> str:
    """Write `out` from the mix and SFT stages of `run`; return one line about it. `run` is only
    read.

    An existing folder at `out` is replaced if an export wrote it, else refused. Raises
    RoboAlignError if a stage is missing, or these trainers cannot reward its data.
    """
    run, out = Path(run), Path(out)
    if not (run / "recipe.yaml").is_file():
        raise RoboAlignError(
            "no run here: recipe.yaml does not exist", where=str(run), fix="give a run's folder"
        )
    if out.exists() and not (out / "reward.json").is_file():
        raise RoboAlignError(
            "this folder contains something other than an export",
            where=str(out),
            fix="give a new folder",
        )
    recipe = load_recipe(run / "recipe.yaml")
    export_verl.require_exportable(recipe.rl.reward)
    seed = recipe.seeds[0] if seed is None else seed
    model = run / f"seed-{seed}" / "sft" / "model"
    if not (model.parent / "stage.json").is_file():
        raise RoboAlignError(
            f"the SFT stage of seed {seed} is not done",
            where=str(run),
            fix=f"roboalign sft {run / 'recipe.yaml'} --out {run}",
        )
    rl = recipe.rl.model_copy(update={"seed": seed})
    prompts = read_conversations(mixture_folder(run), "rl")
    heldout = [
        c
        for c in read_conversations(mixture_folder(run), "heldout", kinds=["action"])
        if c.target and c.turns[0].mode == "think"
    ]
    mllm, fast = load_mllm(model), run_action_tokens(run).fast
    processor_files = export_verl.processor_files(mllm)
    export_verl.check_verl_prompts(prompts, heldout, fast, rl)
    asked = [*prompts, *heldout]
    size = {"prompt_tokens": export_verl.longest_prompt(mllm, asked), "gpus": gpus}
    images = max(len(turn_alone(one, 0).images) for one in asked)
    patch = mllm.processor.image_processor.patch_size
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        for name, part in (("train", prompts), ("heldout", heldout)):
            pq.write_table(export_verl.verl_table(mllm, part), folder / f"verl-{name}.parquet")
            pq.write_table(export_verl.easyr1_table(part), folder / f"easyr1-{name}.parquet")
        write_json(folder / "reward.json", export_verl.reward_settings(mllm, fast, rl.reward))
        copy_reward(folder)
        check_reward(folder / "reward.py", prompts)
        for name, config in (
            ("verl", export_verl.verl_config(rl, patch_size=patch, **size)),
            ("easyr1", export_verl.easyr1_config(rl, **size, images=images)),
        ):
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        shutil.copytree(model, folder / "model")
        for file, settings in processor_files.items():
            write_json(folder / "model" / file, settings)
        (folder / "README.md").write_text(
            README.format(
                prompts=len(prompts),
                heldout=len(heldout),
                run=run.name,
                seed=seed,
                preset=rl.reward,
                gpus=gpus,
                per_rollout=rl.prompts_per_rollout,
                per_update=rl.prompts_per_update,
                samples=rl.samples,
                lr=rl.learning_rate,
                kl=rl.kl,
                differences="\n".join(f"- {line}" for line in verl_differences(rl)),
            )
        )
    return f"{len(prompts)} prompts, {len(heldout)} held-out ones and the model in {out}; {out / 'README.md'} says how"


def copy_reward(folder: Path) -> None:
    """Copy the reward and the grammar of replies that it reads."""
    package = Path(str(files("roboalign")))
    for source in ("align/export/verl_files/reward.py", "conversations/reply.py"):
        shutil.copy(package / source, folder)


def check_reward(path: Path, prompts: Sequence[Conversation]) -> None:
    """Raise RoboAlignError if the recorded action, with valid reasoning, does not earn 1 from the
    file at `path`."""
    reward = load_file(path)
    for c in prompts:
        block = "".join(f"<FAST_{i}>" for i in c.target or ())
        text = f"<think>Go.</think><answer><ACTION_START>{block}<ACTION_END></answer>"
        earned = reward.compute_score("", text, export_verl.ground_truth(c.target or ()))["score"]
        if earned != 1:
            raise RoboAlignError(
                f"the recorded action earns {earned}, not 1",
                where=f"prompt {c.id}",
                fix="build the mixture again",
            )


def load_file(path: Path) -> Any:
    """Load the module in a file the way verl and EasyR1 load it."""
    spec = importlib.util.spec_from_file_location("exported_reward", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verl_differences(rl: RlConfig) -> list[str]:
    """Return what these trainers do differently from `roboalign rl`, for the README."""
    lines = [
        "The reward sees text, not ids. An action token that a policy spells out of other tokens counts as one.",
        "verl drops special tokens from that text, so a stray one inside an answer costs nothing there; EasyR1 keeps "
        "them.",
        "An answer continues until its end token; `roboalign rl` stops it after `</answer>`.",
        "verl forbids no token; `roboalign rl` and EasyR1 never sample the image token.",
        "An incomplete last rollout is dropped; `roboalign rl` completes it.",
    ]
    if rl.replay_weight:
        lines.append(
            f"`rl.replay_weight` {rl.replay_weight} (an SFT loss in addition to GRPO) has no counterpart: left out."
        )
    if rl.updates is not None:
        lines.append(
            f"{rl.updates} updates are {rl.updates // rl.updates_per_rollout} steps of these trainers."
        )
    return lines

"""What makes "reason, then act" appear after SFT, which shows it nowhere: four trainings that differ in two settings.

    python studies/zero_shot.py runs/quickstart [--frames 200] [--seed 0] [--only labels,neutral] [--json PATH]

Takes the mixture, the pretrained model and the SFT settings of a run (its `mix` and `base` must be done), trains SFT
with `<ACTION_START>` begun as the mean of all tokens or of the label words, with and without `neutral_reasoning`, and
asks the held-out action questions. Greedy decoding; 95% intervals over frames. Minutes a training on one core.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from roboalign.align.sft import train_sft
from roboalign.conversations.conversation import Conversation, read_conversations
from roboalign.core.command import exit_status
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import write_json
from roboalign.evaluate.tokens import TokenEvalConfig, draw_actions, evaluate_mllm, language_priors
from roboalign.mllm.load import load_mllm
from roboalign.run.folder import mixture_folder, run_action_tokens
from roboalign.run.load import load_recipe
from roboalign.run.recipe import Recipe
from roboalign.run.stages.base import source_folder, with_action_tokens
from roboalign.run.stages.report import commit

VARIANTS = {  # action_start, neutral_reasoning
    "neither": ("mean", False),
    "labels": ("labels", False),
    "neutral": ("mean", True),
    "both": ("labels", True),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--frames", type=int, default=200, help="held-out frames asked")
    parser.add_argument("--seed", type=int, default=0, help="order of the SFT samples")
    parser.add_argument("--only", default=",".join(VARIANTS), help="some of " + ", ".join(VARIANTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    return exit_status(lambda: _study(options))


def _study(options: argparse.Namespace) -> int:
    rows = study(options.run, options.only.split(","), options.frames, options.seed)
    print(
        f"\ncommit {commit()}, seed {options.seed}, {options.frames} held-out frames of {options.run}"
    )
    for name, metrics in rows.items():
        print(f"{name:8} {line(metrics)}")
    if options.json:
        write_json(options.json, rows)
    return 0


def study(run_dir: Path, names: list[str], frames: int, seed: int) -> dict[str, Any]:
    """Token metrics of each variant. Raises RoboAlignError on an unknown name or an unfinished run."""
    unknown = sorted(set(names) - set(VARIANTS))
    if unknown:
        raise RoboAlignError(
            f"unknown variants {unknown}", where="--only", fix=f"use some of {', '.join(VARIANTS)}"
        )
    recipe = load_recipe(run_dir / "recipe.yaml")
    mixture = mixture_folder(run_dir)
    training, heldout = (read_conversations(mixture, split) for split in ("train", "heldout"))
    config = TokenEvalConfig(
        max_questions=10, max_actions=frames, max_new_tokens=recipe.tokens.max_new_tokens
    )
    heldout = [*draw_actions(heldout, config), *(c for c in heldout if c.turns[0].kind != "action")]
    return {
        name: measure(run_dir, recipe, *VARIANTS[name], training, heldout, config, seed)
        for name in names
    }


def measure(
    run_dir: Path,
    recipe: Recipe,
    action_start: str,
    neutral: bool,
    training: list[Conversation],
    heldout: list[Conversation],
    config: TokenEvalConfig,
    seed: int,
) -> dict[str, Any]:
    """Train one variant and ask it."""
    actions, trained = run_action_tokens(run_dir), recipe.backbone.source == "train"
    pretrained = (
        run_dir / "base/pretrain/model" if trained else source_folder(recipe.backbone.source)
    )
    mllm = with_action_tokens(
        load_mllm(pretrained), actions.fast.vocab_size, action_start, recipe.mix.weights
    )
    settings = recipe.sft.model_copy(update={"seed": seed, "neutral_reasoning": neutral})
    with TemporaryDirectory() as folder:
        train_sft(mllm, training, settings, folder, label=f"{action_start}, neutral {neutral}")
        return evaluate_mllm(
            load_mllm(Path(folder) / "model"),
            heldout,
            language_priors(training),
            actions.fast,
            actions.stats,
            actions.mean_chunk,
            config,
            Path(folder) / "answers.jsonl",
            grid=recipe.mix.grid,
            run_seed=seed,
        )


def line(metrics: dict[str, Any]) -> str:
    """Share that reasons and then acts, and how good the actions are."""
    think, direct = (metrics["actions"][mode] for mode in ("think", "direct"))

    def shown(estimate: dict[str, Any]) -> str:
        return f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})"

    return (
        f"reasons, then acts {shown(think['format'])}; prefix reasoned {shown(think['prefix'])}, "
        f"direct {shown(direct['prefix'])}; L1 reasoned {shown(think['l1_all'])}, direct {shown(direct['l1_all'])}"
    )


if __name__ == "__main__":
    sys.exit(main())

"""Stage `mix`: the SFT mixture, the RL subset and the held-out set, with the manifest that rebuilds them."""

from typing import Any

from roboalign.data.mixture import build_mixture
from roboalign.stages.data import action_tokens, mixture_folder, read_demonstrations
from roboalign.stages.stage import Context


def mix(context: Context) -> dict[str, Any]:
    """Writes mixture/ (train-*.parquet, rl.parquet, heldout.parquet, manifest.json)."""
    actions = action_tokens(context.run_dir)
    episodes = read_demonstrations(context.run_dir, "align")
    manifest = build_mixture(episodes, actions.fast, actions.stats, context.recipe.mix, mixture_folder(context.run_dir))
    counts = manifest["counts"]
    return {"conversations": counts["train"]["conversations"], "samples": counts["train"]["turns"],
            "rl_samples": counts["rl"]["turns"], "rl_share": manifest["rl_share"],
            "heldout_samples": counts["heldout"]["turns"]}

"""Stage `mix`: the SFT mixture, the RL subset and the held-out set, with the manifest that rebuilds them."""

from pathlib import Path
from typing import Any

from roboalign.conversations.styles.registry import require_style
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import hash_file
from roboalign.core.machine import cores
from roboalign.mixture.demonstrations import build_mixture
from roboalign.mixture.manifest import read_manifest
from roboalign.run.arms import ARMS
from roboalign.run.folder import (
    mixture_folder,
    own_demonstrations,
    read_demonstrations,
    run_action_tokens,
)
from roboalign.run.stage import Context


def mix(context: Context) -> dict[str, Any]:
    """Write mixture/ (train-*.parquet, rl.parquet, heldout.parquet, manifest.json)."""
    if context.recipe.mixture is not None:
        return _given(context, Path(context.recipe.mixture))
    actions = run_action_tokens(context.run_dir)
    own = own_demonstrations(context.run_dir, "align")
    manifest = build_mixture(
        own.episodes if own else read_demonstrations(context.run_dir, "align"),
        actions.fast,
        actions.stats,
        context.recipe.mix,
        mixture_folder(context.run_dir),
        prompts=context.recipe.prompts,
        split=own.split() if own else None,
        workers=context.recipe.parallel or cores(),
    )
    counts = manifest["counts"]
    return {
        "conversations": counts["train"]["conversations"],
        "samples": counts["train"]["turns"],
        "rl_samples": counts["rl"]["turns"],
        "rl_share": (manifest["rl"] or {"share": 0.0})["share"],
        "heldout_samples": counts["heldout"]["turns"],
    }


def given_manifest(mixture: str, prompts: str) -> Path:
    """Return manifest.json of a folder of `roboalign data mix`.

    Raises RoboAlignError if there is none, or if its prompts are of another style.
    """
    path = Path(mixture) / "manifest.json"
    if not path.is_file():
        raise RoboAlignError(
            "there is no manifest.json of a mixture",
            where=f"mixture: {mixture}",
            fix="build one: roboalign data mix FILE --out FOLDER",
        )
    style = read_manifest(mixture).get("prompts")
    require_style(style, prompts, what="mixture", where=f"mixture: {mixture}")
    return path


def _given(context: Context, given: Path) -> dict[str, Any]:
    """Link mixture/ to a folder of `roboalign data mix`, whose files must match its manifest.

    Raises RoboAlignError if a file differs, nothing is held out, or an arm needs RL and there is no
    subset for it.
    """
    manifest = read_manifest(given)
    for name, digest in manifest["shards"].items():
        if not (given / name).is_file() or hash_file(given / name) != digest:
            raise RoboAlignError(
                "it is missing, or not the one that manifest.json lists",
                where=str(given / name),
                fix="build the mixture again with `roboalign data mix`",
            )
    rl_is_asked = any(ARMS[arm].uses_rl_subset for arm in context.recipe.arms)
    for split in ("heldout", "rl") if rl_is_asked else ("heldout",):
        if not manifest["counts"][split]["conversations"]:
            raise RoboAlignError(
                f"the mixture has no {split} samples",
                where=str(given),
                fix=f"give its mixture file `{split}:` and build it again",
            )
    link = mixture_folder(context.run_dir)
    link.unlink(missing_ok=True)
    link.symlink_to(given.resolve(), target_is_directory=True)
    counts = manifest["counts"]
    return {
        "conversations": counts["train"]["conversations"],
        "samples": counts["train"]["turns"],
        "rl_samples": counts["rl"]["turns"],
        "rl_share": (manifest["rl"] or {"share": 0.0})["share"],
        "heldout_samples": counts["heldout"]["turns"],
    }

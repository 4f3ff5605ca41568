"""`roboalign compare` with a folder of `roboalign eval`: a server's policy and a run's, or two servers'."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roboalign.cli.comparison.sides import (
    RunSide,
    Side,
    differing,
    leaves,
    pair_table,
    read_side,
    refuse_differences,
    refuse_other_episodes,
    versions_of,
)
from roboalign.cli.comparison.text import format_compared
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import read_json
from roboalign.core.state import read_records, read_state
from roboalign.evaluate.success import EpisodeState
from roboalign.harness.score import CLIENT, EPISODES, PROTOCOL, ClientState
from roboalign.harness.wires import as_json_values
from roboalign.run.benchmark import protocol_record
from roboalign.run.load import load_recipe

COUNTED_APART = ("episodes_per_task", "departs_from_preset_in")
"""Keys of a protocol that need not agree: episodes are compared one by one, and departures repeat
other keys."""


@dataclass(frozen=True)
class ScoredSide(Side):
    """The episodes of a policy server."""

    client: dict[str, Any]


def is_scored(folder: Path) -> bool:
    """Return whether `roboalign eval` wrote the folder."""
    return (folder / CLIENT).is_file()


def compare_scores(
    folders: Sequence[str],
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    *,
    as_json: bool = False,
) -> str:
    """Compare two folders, at least one of them of `roboalign eval`, as text or JSON.

    A run takes part with one arm and one training seed. Raises RoboAlignError if the two were not
    measured under one protocol on the same initial states.
    """
    if len(folders) != 2 or Path(folders[0]).resolve() == Path(folders[1]).resolve():
        raise RoboAlignError(
            "the scores of a server are compared with those of another folder",
            where="compare",
            fix="give two folders: before, then after",
        )
    if len(arms) > 1:
        raise RoboAlignError("a server has no arms", where="--arm", fix="give one, of the run")
    paths = [Path(folder) for folder in folders]
    run_seed = _run_seed(paths, seeds)
    before, after = (_read(path, arms, run_seed) for path in paths)
    _refuse_other_protocols(before, after)
    refuse_other_episodes(before, after)
    result = {
        **pair_table(before, after),
        "recipes_differ_in": [],
        "servers_differ_in": list(_servers_differ(before, after)),
        "versions": [_versions(before), _versions(after)],
    }
    return json.dumps(result, indent=2) if as_json else format_compared(result)


def _run_seed(folders: Sequence[Path], seeds: Sequence[int]) -> int:
    """Return the training seed of the run; 0 without a run. A server has one policy, so a run with
    several seeds has to choose."""
    runs = [folder for folder in folders if not is_scored(folder)]
    if len(seeds) > 1 or (seeds and not runs):
        raise RoboAlignError("a server has no training seeds", where="--seed", fix="leave it out")
    if seeds or not runs:
        return seeds[0] if seeds else 0
    if not (runs[0] / "recipe.yaml").is_file():
        return 0  # `read_side` says what is missing
    trained = load_recipe(runs[0] / "recipe.yaml").seeds
    if len(trained) > 1:
        raise RoboAlignError(
            f"the run has {len(trained)} training seeds, and a server has one policy",
            where=str(runs[0]),
            fix=f"choose one of {', '.join(map(str, trained))} with --seed",
        )
    return trained[0]


def _read(folder: Path, arms: Sequence[str], run_seed: int) -> RunSide | ScoredSide:
    if not is_scored(folder):
        return read_side(folder, arms[0] if arms else "roboalign", (run_seed,))
    client = read_state(folder / CLIENT, ClientState)
    rows = read_records(folder / EPISODES, EpisodeState)
    wanted = len(client["tasks"]) * read_json(folder / PROTOCOL)["episodes_per_task"]
    if len(rows) < wanted:
        raise RoboAlignError(
            f"{wanted - len(rows)} of {wanted} episodes are missing",
            where=str(folder),
            fix="run the same `roboalign eval` again: it continues",
        )
    records = [{**row, "run_seed": run_seed} for row in rows]
    return ScoredSide(str(folder), folder, records, client)


def _protocol(side: Side) -> dict[str, Any]:
    """Return what has to agree, by dotted key."""
    if isinstance(side, RunSide):
        # What was written down, not what the simulator here would be now.
        values = side.protocol or as_json_values(protocol_record(side.recipe))
    else:
        values = read_json(side.folder / PROTOCOL)
    kept = {key: value for key, value in values.items() if key not in COUNTED_APART}
    return dict(leaves(kept))


def _refuse_other_protocols(before: Side, after: Side) -> None:
    a, b = _protocol(before), _protocol(after)
    refuse_differences(
        a,
        b,
        where=f"{before.folder} and {after.folder}",
        fix="score the server under the run's protocol: --replan-every, --max-steps, --set",
    )


def _servers_differ(before: Side, after: Side) -> Iterator[dict[str, Any]]:
    """Yield the settings in which two clients differ, and the servers' metadata."""
    if not (isinstance(before, ScoredSide) and isinstance(after, ScoredSide)):
        return
    a, b = (
        dict(leaves({"client": side.client["settings"], "server": side.client["server"]}))
        for side in (before, after)
    )
    yield from differing(a, b)


def _versions(side: RunSide | ScoredSide) -> dict[str, str]:
    if isinstance(side, RunSide):
        return versions_of(side)
    found = side.client["versions"].items()
    return {name: version for name, version in found if name != "roboalign"}

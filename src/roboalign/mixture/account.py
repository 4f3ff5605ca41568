"""Account for every sample: counts that must add up, and the list of what was left out."""

import json
import re
from pathlib import Path
from typing import Any

from roboalign.core.files import atomic_path
from roboalign.mixture.config import MixtureConfig
from roboalign.mixture.store import SampleStore

_PARTS = (
    "kept",
    "heldout",
    "heldout_seen",
    "duplicates",
    "leaks",
    "refused",
    "faults",
    "not_drawn",
)
"""The outcomes of a sample that was found; their counts add up to `found`."""
REASONS = 20
"""Maximum number of different reasons counted by name."""


def account(index: SampleStore, config: MixtureConfig) -> dict[str, dict[str, Any]]:
    """Return the outcomes of the samples of each source.

    found = kept + heldout + heldout_seen + duplicates + leaks + refused + faults + not_drawn, and
    asked = kept + repeats + short. A broken episode counts as one sample.
    """
    result = {}
    for number, (source, asked) in enumerate(zip(config.sources, config.asked())):
        counts = index.outcomes(number)
        row = {
            "asked": asked,
            **{name: counts[name] for name in ("found", "kept", "repeats")},
            "short": asked - counts["copies"],
            **{name: counts[name] for name in _PARTS[1:]},
        }
        check_sums(source.name, row)
        result[source.name] = row | {"reasons": reasons(index, number)}
        if source.pack is not None:
            result[source.name]["not_asked"] = index.not_asked(number)
    return result


def check_sums(name: str, row: dict[str, int]) -> None:
    """Check that every sample is accounted for."""
    assert row["found"] == sum(row[part] for part in _PARTS), (name, row)
    assert row["asked"] == row["kept"] + row["repeats"] + row["short"], (name, row)


def reasons(index: SampleStore, source: int) -> dict[str, int]:
    """Return how often each reason for leaving out a sample occurred.

    Names and numbers in a reason are ignored.
    """
    counts: dict[str, int] = {}
    for what, reason, times in index.reasons(source):
        key = f"{what}: {plain_reason(reason)}"
        if key not in counts and len(counts) == REASONS:
            key = "others"
        counts[key] = counts.get(key, 0) + times
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def plain_reason(reason: str) -> str:
    """Return a reason without its quoted parts and numbers."""
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(r"'[^']*'|\"[^\"]*\"|/\S+", "..", reason))[:120]


def list_dropped(index: SampleStore, config: MixtureConfig, path: Path) -> None:
    """Write what was left out, one line per sample, in the order of the sources."""
    with atomic_path(path) as temporary, temporary.open("w") as file:
        for source, *values in index.dropped():
            row = dict(zip(("id", "what", "reason", "other"), values))
            file.write(json.dumps({"source": config.sources[source].name} | row) + "\n")
        for source, id_ in index.seen():
            row = {
                "source": config.sources[source].name,
                "id": id_,
                "what": "heldout seen",
                "reason": "training shows the same picture",
                "other": None,
            }
            file.write(json.dumps(row) + "\n")


def images(index: SampleStore) -> dict[str, int]:
    """Return how many different images are trained on.

    They are counted by their bytes, and by their perceptual hash (frames of one camera share it).
    """
    return dict(zip(("different", "different_hashes"), index.different_images()))


def account_text(manifest: dict[str, Any]) -> str:
    """Return the account as a table.

    asked = kept + repeats + short, and found = the columns after it.
    """
    columns = ("asked", "repeats", "short", "found", *_PARTS)
    width = max(len(name) for name in [*manifest["sources"], "source"])
    lines = [" ".join([f"{'source':{width}}", *(f"{name:>12}" for name in columns)])]
    for name, row in manifest["sources"].items():
        lines.append(" ".join([f"{name:{width}}", *(f"{row[column]:>12}" for column in columns)]))
    for name, row in manifest["sources"].items():
        lines += [f"{name}: {times} x {reason}" for reason, times in row["reasons"].items()]
    if any(row["reasons"] for row in manifest["sources"].values()):
        lines.append(
            "dropped.jsonl names each sample that was left out (N and .. stand for numbers and names)"
        )
    tokenizer = manifest["tokenizer"] or {}
    lines += [f"tokenizer: {note}" for note in tokenizer.get("notes", ())]
    for name, row in manifest["sources"].items():
        if row["short"]:
            lines.append(
                f"{name} is {row['short']} samples short of the {row['asked']} asked: what else it had is "
                "left out, as dropped.jsonl says; set `repeat: true` to go through it again"
            )
    return "\n".join(lines)

"""Account for every sample: counts that must add up, and the list of what was left out."""

import json
import re
import sqlite3
from pathlib import Path
from typing import Any

from roboalign.core.files import atomic_path
from roboalign.mixture import index as store
from roboalign.mixture.config import MixtureConfig
from roboalign.mixture.keys import TOP
from roboalign.mixture.parts import Fate

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


def account(index: sqlite3.Connection, config: MixtureConfig) -> dict[str, dict[str, Any]]:
    """Return the outcomes of the samples of each source.

    found = kept + heldout + heldout_seen + duplicates + leaks + refused + faults + not_drawn, and
    asked = kept + repeats + short. Each is counted independently. A broken episode counts as one
    sample.
    """
    result = {}
    for number, (source, asked) in enumerate(zip(config.sources, config.asked())):

        def ask(query: str, number: int = number) -> int:
            return store.number(index, query, number)

        kept = ask("SELECT count(*) FROM kept WHERE source = ? AND copy = 1")
        lost = "SELECT count(*) FROM dropped WHERE source = ? AND what = "
        refused, faults, leaks = (
            ask(f"{lost} '{what}'") for what in (Fate.REFUSED, Fate.FAULT, Fate.LEAK)
        )
        row = {
            "asked": asked,
            "found": ask("SELECT count(*) FROM items WHERE source = ?")
            + ask(
                "SELECT count(*) FROM dropped d WHERE source = ? AND NOT EXISTS (SELECT 1 FROM items i WHERE "
                "i.source = d.source AND i.part = d.part AND i.place = d.place)"
            ),
            "kept": kept,
            "repeats": ask("SELECT count(*) FROM kept WHERE source = ? AND copy > 1"),
            "short": asked - ask("SELECT count(*) FROM kept WHERE source = ?"),
            "heldout": ask(
                "SELECT count(*) FROM placed p JOIN drawn d ON d.item = p.item WHERE d.source = ? AND "
                "p.split = 'heldout'"
            ),
            "heldout_seen": ask(
                f"SELECT count(*) FROM drawn WHERE source = ? AND what = '{Fate.SEEN}'"
            ),
            "duplicates": ask(
                f"SELECT count(*) FROM dropped WHERE source = ? AND what = '{Fate.DUPLICATE}'"
            ),
            "leaks": leaks,
            "refused": refused,
            "faults": faults,
            "not_drawn": ask(
                "SELECT count(*) FROM items WHERE source = ? AND item NOT IN (SELECT item FROM drawn)"
            )
            + ask(
                f"SELECT count(*) FROM drawn WHERE source = ? AND what = '{Fate.GOOD}' AND item NOT IN "
                "(SELECT item FROM kept)"
            ),
        }
        check_sums(source.name, row)
        result[source.name] = row | {"reasons": reasons(index, number)}
        if source.pack is not None:
            result[source.name]["not_asked"] = not_asked(index, number)
    return result


def not_asked(index: sqlite3.Connection, source: int) -> dict[str, int]:
    """Return `type: reason` -> how often a question was drawn for a kept sample and did not apply."""
    query = (
        "SELECT question, sum(times) FROM unasked u JOIN kept k ON k.item = u.item WHERE source = ? "
        "AND copy = 1 GROUP BY question ORDER BY question"
    )
    return dict(index.execute(query, (source,)).fetchall())


def check_sums(name: str, row: dict[str, int]) -> None:
    """Check that every sample is accounted for."""
    assert row["found"] == sum(row[part] for part in _PARTS), (name, row)
    assert row["asked"] == row["kept"] + row["repeats"] + row["short"], (name, row)


def reasons(index: sqlite3.Connection, source: int) -> dict[str, int]:
    """Return how often each reason for leaving out a sample occurred.

    Names and numbers in a reason are ignored.
    """
    counts: dict[str, int] = {}
    for what, reason, times in index.execute(
        "SELECT what, reason, count(*) FROM dropped WHERE source = ? AND "
        f"what != '{Fate.DUPLICATE}' GROUP BY what, reason",
        (source,),
    ):
        key = f"{what}: {plain_reason(reason)}"
        if key not in counts and len(counts) == REASONS:
            key = "others"
        counts[key] = counts.get(key, 0) + times
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def plain_reason(reason: str) -> str:
    """Return a reason without its quoted parts and numbers."""
    return re.sub(r"\d+(\.\d+)?", "N", re.sub(r"'[^']*'|\"[^\"]*\"|/\S+", "..", reason))[:120]


def note_duplicates(index: sqlite3.Connection, config: MixtureConfig) -> None:
    """List the samples whose content equals another one's, with that one.

    Samples examined after the last one that a source needed were not drawn, whatever their content.
    """
    for number, asked in enumerate(config.asked()):
        last, kept = index.execute(
            "SELECT max(key), count(*) FROM kept WHERE source = ? AND copy = 1", (number,)
        ).fetchone()
        index.execute(
            f"UPDATE drawn SET what = '{Fate.DUPLICATE}' WHERE source = ? AND what = '{Fate.GOOD}' "
            "AND key <= ? AND item NOT IN (SELECT item FROM kept) AND content IN (SELECT content FROM kept)",
            (number, last if kept == asked else TOP - 1),
        )
    index.execute(
        f"UPDATE drawn SET what = '{Fate.HELD_DUPLICATE}' WHERE what = '{Fate.HELD}' AND item NOT IN (SELECT item FROM "
        "placed WHERE split = 'heldout')"
    )
    others = {
        Fate.DUPLICATE: "SELECT item, content FROM kept WHERE copy = 1",
        Fate.HELD_DUPLICATE: f"SELECT item, content FROM drawn WHERE what IN ('{Fate.HELD}', '{Fate.SEEN}')",
    }
    for what, query in others.items():
        index.execute(
            f"INSERT INTO dropped SELECT d.source, i.part, i.place, d.id, '{Fate.DUPLICATE}', 'same image and turns', "
            f"(SELECT e.id FROM ({query}) o JOIN drawn e ON e.item = o.item WHERE o.content = d.content "
            "ORDER BY o.item LIMIT 1) FROM drawn d JOIN items i ON i.item = d.item WHERE d.what = ?",
            (what,),
        )


def list_dropped(index: sqlite3.Connection, config: MixtureConfig, path: Path) -> None:
    """Write what was left out, one line per sample, in the order of the sources."""
    with atomic_path(path) as temporary, temporary.open("w") as file:
        for source, *values in index.execute(
            "SELECT source, id, what, reason, other FROM dropped ORDER BY source, part, place, what"
        ):
            row = dict(zip(("id", "what", "reason", "other"), values))
            file.write(json.dumps({"source": config.sources[source].name} | row) + "\n")
        for source, id_ in index.execute(
            f"SELECT source, id FROM drawn WHERE what = '{Fate.SEEN}' ORDER BY item"
        ):
            row = {
                "source": config.sources[source].name,
                "id": id_,
                "what": "heldout seen",
                "reason": "training shows the same picture",
                "other": None,
            }
            file.write(json.dumps(row) + "\n")


def images(index: sqlite3.Connection) -> dict[str, int]:
    """Return how many different images are trained on.

    They are counted by their bytes, and by their perceptual hash (frames of one camera share it).
    """
    query = "SELECT count(DISTINCT {}) FROM kept k JOIN shown s ON s.item = k.item"
    return {
        "different": store.number(index, query.format("sha")),
        "different_hashes": store.number(index, query.format("look")),
    }


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

"""`roboalign data mix --dry-run`: what a mixture would be, as a table or JSON."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from roboalign.cli.data_mix import load_words, places, token_length
from roboalign.conversations.conversation import Conversation
from roboalign.core.errors import RoboAlignError
from roboalign.core.hub import Kind, resolve
from roboalign.mixture.config import MixtureConfig, load_mixture
from roboalign.mixture.preview import Preview, TokenCount, preview
from roboalign.report.console import fold

_HEAD = ("source", "state", "asked", "there", "images", "tokens", "disk", "mixture", "hours")
_WIDTHS = (17, 7, 6, 7, 7, 7, 7, 7, 6)
_UNITS = ("", "K", "M", "G", "T")


def preview_mix(
    mixture: str, *, at: Sequence[str], most: int, as_json: bool = False
) -> tuple[str, int]:
    """Return what the mixture would be, and the exit status: 1 if anything is missing."""
    if most < 1:
        raise RoboAlignError(f"{most} records", where="--sample", fix="give 1 or more")
    config, _ = load_mixture(mixture, places(at))
    missing = _missing_paths(config)
    length = None
    if config.model and "model" not in missing:
        try:
            length = _length_of(config)
        except RoboAlignError as error:
            missing["model"] = f"{error.where}: {error.problem}; {error.fix}"
    found = preview(config, most, length)
    status = int(bool(missing) or any(one.missing for one in found))
    if as_json:
        rows = [preview_row(one, tokens=length is not None) for one in found]
        whole = {"sample": most, "complete": not status, "missing": missing, "sources": rows}
        return json.dumps(whole, indent=2), status
    return _text(found, missing, most, tokens=length is not None), status


def _missing_paths(config: MixtureConfig) -> dict[str, str]:
    """Return which paths besides the sources are not there, by their key.

    Data sets of the Hub are not fetched; a tokenizer and a model's settings are small and are.
    """
    given: dict[str, tuple[str, Kind]] = {
        f"evaluation.{n}": (one.path, "data set") for n, one in enumerate(config.evaluation)
    }
    if config.tokenizer and config.tokenizer.path:
        given["tokenizer"] = (config.tokenizer.path, "tokenizer")
    if config.model:
        given["model"] = (config.model, "settings")
    missing = {}
    for key, (path, kind) in given.items():
        if Path(path).exists():
            continue
        problem = "it is not on this machine"
        if kind != "data set":
            try:
                resolve(path, kind, where=key)
                continue
            except RoboAlignError as error:
                problem = error.problem
        missing[key] = f"{path}: {problem}; correct it, or give --at {key}=PATH"
    return missing


def _length_of(config: MixtureConfig) -> TokenCount:
    """Return the function that counts tokens as the mixture's model does."""
    assert config.model
    fitted = config.tokenizer.vocab_size if config.tokenizer and config.tokenizer.fit else None
    words = load_words(config.model, fitted or (2048 if config.tokenizer else None))

    def length(conversation: Conversation) -> int:
        return token_length(words, conversation.turns, conversation.images)

    return length


def preview_row(one: Preview, *, tokens: bool) -> dict[str, Any]:
    """Return the numbers of a source as in the table; None where they are unknown."""
    known = one.good > 0
    countable = math.isfinite(one.records)
    return {
        "source": one.source,
        "state": _state(one),
        "asked": one.asked,
        "records": round(one.records) if one.sampled and countable else None,
        "counted": one.counted,
        "sampled": one.sampled,
        "good": one.good,
        "images": round(one.of_mixture(one.images)) if known else None,
        "tokens": round(one.of_mixture(one.tokens)) if known and tokens else None,
        "disk_bytes": _disk(one) if one.found else None,
        "mixture_bytes": round(one.of_mixture(one.text_bytes + one.image_bytes)) if known else None,
        "build_seconds": round(one.seconds, 3) if known and countable else None,
        "left_out": dict(one.left_out.most_common()),
        "missing": one.missing,
    }


def _state(one: Preview) -> str:
    if not one.found:
        return "missing"
    return "part" if one.missing else "found"


def _disk(one: Preview) -> int:
    """Return the bytes of a source: its files, and the images of its records as if none was
    shared."""
    return round(one.disk + (one.loose_bytes / one.good * one.usable if one.good else 0))


def _text(found: list[Preview], missing: dict[str, str], most: int, *, tokens: bool) -> str:
    rows = [preview_row(one, tokens=tokens) for one in found]
    lines = [_line(_HEAD), *(_line(_cells(row)) for row in rows)]
    if len(rows) > 1:
        lines.append(_line(_cells(_sum_of(rows))))
    lines.append("")
    for one in found:
        lines += [fold(f"{one.source}: missing: {text}") for text in one.missing]
    lines += [fold(f"{key}: missing: {text}") for key, text in missing.items()]
    for row in rows:
        lines += [
            fold(f"{row['source']}: left out, {times} of {row['sampled']} sampled: {reason}")
            for reason, times in row["left_out"].items()
        ]
    lines.append(fold(_notes(rows, most, tokens=tokens)))
    return "\n".join(lines)


def _sum_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums of the columns over the sources that are known."""
    names = ("asked", "records", "images", "tokens", "disk_bytes", "mixture_bytes", "build_seconds")
    sums = {
        name: sum(values)
        if (values := [row[name] for row in rows if row[name] is not None])
        else None
        for name in names
    }
    return {"source": "sum", "state": "", "counted": all(row["counted"] for row in rows), **sums}


def _cells(row: dict[str, Any]) -> list[str]:
    about = "" if row["counted"] else "~"
    seconds = row["build_seconds"]
    return [
        row["source"],
        row["state"],
        _short(row["asked"]),
        _short(row["records"], about),
        *(_short(row[key]) for key in ("images", "tokens", "disk_bytes", "mixture_bytes")),
        "-" if seconds is None else f"{seconds / 3600:.2f}",
    ]


def _line(cells: Sequence[str]) -> str:
    """Return one line of the table, at most 80 columns wide."""
    name, state, *numbers = cells
    width = _WIDTHS[0]
    name = name if len(name) <= width else name[: width - 1] + "…"
    right = [f"{text:>{wide}}" for text, wide in zip(numbers, _WIDTHS[2:])]
    return " ".join([f"{name:{width}}", f"{state:{_WIDTHS[1]}}", *right]).rstrip()


def _short(number: float | None, about: str = "") -> str:
    """Return a number in at most 4 digits and a unit of thousands; - if it is unknown."""
    if number is None:
        return "-"
    for unit in _UNITS:
        if number < 999.5 or unit == _UNITS[-1]:
            break
        number /= 1000
    digits = 0 if unit == "" or number >= 99.5 else 1 if number >= 9.95 else 2
    return f"{about}{number:.{digits}f}{unit}"


def _notes(rows: list[dict[str, Any]], most: int, *, tokens: bool) -> str:
    sampled = ", ".join(f"{row['source']} {row['sampled']}" for row in rows if row["sampled"])
    counted = (
        "with the chat template and images of `model`" if tokens else "not counted: no `model`"
    )
    return (
        f"Sampled, at most {most} each: {sampled or 'nothing'}. ~: estimated from the sample. "
        "images, tokens, mixture: of the samples it would take, from the sample's means; "
        "duplicates, leaks and held-out samples are not known yet. "
        f"tokens: {counted}. disk: bytes of the source, with loose images as if no two records "
        "shared one. hours: of one process on this machine, measured on the sample."
    )

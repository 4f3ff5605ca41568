"""What a task is, and helpers that its file uses."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from roboalign.bench.items import BenchItem
from roboalign.bench.presets import BenchPreset, Protocol
from roboalign.bench.rows import BenchRow

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
LMMS = "lmms-eval 0.7.3"
Headline = Callable[[Mapping[str, Mapping[str, float]]], float]


@dataclass(frozen=True)
class BenchTask:
    """A benchmark: where its files are, how a row becomes an item, and the protocols it has."""

    name: str
    title: str
    repository: str
    """Its data set on the Hugging Face Hub; "" if there is none."""
    files: tuple[str, ...]
    """Patterns of its files, at any depth."""
    columns: tuple[str, ...]
    """Columns that every file has."""
    item: Callable[[BenchRow], BenchItem]
    presets: Mapping[BenchPreset, Protocol]
    headline: str = ""
    """A further number that its source reports, from the table in `summary.HEADLINES`."""


def lettered(options: Sequence[str], mark: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return options, one a line behind `mark` (`{}) `), and where the text of each is."""
    text, spans = "", []
    for letter, option in zip(ALPHABET, options):
        text += mark.format(letter)
        spans.append((len(text), len(text) + len(option)))
        text += f"{option}\n"
    return text.removesuffix("\n"), tuple(spans)


def moved(spans: Sequence[tuple[int, int]], by: int) -> tuple[tuple[int, int], ...]:
    """Return spans of a text that now begins `by` characters later."""
    return tuple((start + by, end + by) for start, end in spans)


def options_in(text: str, letters: str, mark: str, stop: str = "\n") -> tuple[tuple[int, int], ...]:
    """Return where the options are in a text that lists them, each behind `mark` with its letter.

    `mark` is a pattern with `{}` for the letter. An option ends at the next mark, the last one at
    `stop` or at the end; spaces and a comma at its end do not belong to it. () if the marks of all letters do
    not occur in order, once each after the first.
    """
    starts = []
    at = 0
    for letter in letters:
        found = re.compile(mark.format(letter)).search(text, at)
        if found is None:
            return ()
        starts.append(found)
        at = found.end()
    last = text.find(stop, at)
    ends = [found.start() for found in starts[1:]] + [len(text) if last < 0 else last]
    spans = []
    for found, end in zip(starts, ends):
        said = text[found.end() : end].rstrip().removesuffix(",").rstrip()
        spans.append((found.end(), found.end() + len(said)))
    return tuple(spans) if all(start < end for start, end in spans) else ()

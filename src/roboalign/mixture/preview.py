"""Say what a mixture would be, from a sample of each source, before anything is written.

Record counts come from files' own numbers where they have them, otherwise from the bytes of the
sampled records. Images, tokens, bytes and time are means of the sample times the number of samples.
"""

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from roboalign.conversations.conversation import OWN, Conversation
from roboalign.conversations.qa.convert import text_conversation
from roboalign.conversations.qa.images import Folder
from roboalign.conversations.qa.presets import find_preset
from roboalign.conversations.qa.read import LAYOUTS
from roboalign.conversations.qa.records import QaColumns
from roboalign.conversations.qa.sampling import Sampled, spread_records
from roboalign.conversations.styles.registry import style_of
from roboalign.core.errors import RoboAlignError
from roboalign.core.hub import hub_id
from roboalign.core.outcomes import Fault, Refused
from roboalign.episodes.episode import Episode
from roboalign.mixture.account import plain_reason
from roboalign.mixture.config import MixtureConfig
from roboalign.mixture.examine import Looked, look_at, to_text
from roboalign.mixture.parts import FRAME_BITS, Candidate, Dropped, Fate, Part, Wanted
from roboalign.mixture.sources import read as sources
from roboalign.mixture.sources.robot import chunks_at, fetch_robot, opened_robot, read_robot
from roboalign.mixture.tokens import Tokens, load_tokens, make_tokens

_FILES = 16
"""Files of a source that are opened for its sample."""
_EPISODES = 8
"""Episodes of robot data that are read for its sample."""
TokenCount = Callable[[Conversation], int]
"""Returns the tokens of a conversation, its images included."""


@dataclass
class Preview:
    """What one source would give. Numbers of the whole source are estimates unless `counted`."""

    source: str
    asked: int
    repeat: bool = False
    missing: list[str] = field(default_factory=list)
    """What is not there: a file, folder, part or image, with how to get it."""
    found: bool = False
    """Whether the source can be read at all."""
    records: float = 0
    """Its records or frames; infinite if that is not known without reading all."""
    counted: bool = True
    sampled: int = 0
    """Records read for the estimates."""
    good: int = 0
    """Those that the mixture would take."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> how many of the sampled."""
    images: int = 0
    tokens: int = 0
    text_bytes: int = 0
    image_bytes: int = 0
    """Sums over the good samples."""
    disk: int = 0
    """Bytes of the record files, archives and robot data."""
    loose_bytes: int = 0
    """Of `image_bytes`, those in image folders, which are not in `disk`."""
    read_seconds: float = 0
    """To find the sampled records by their text."""
    look_seconds: float = 0
    """To read and examine their images."""

    def of_mixture(self, total: float) -> float:
        """Return what a sum over the good samples is for the samples of the mixture."""
        return total / self.good * self.taken if self.good else 0.0

    @property
    def usable(self) -> float:
        """Return how many records the mixture could take."""
        return self.records * self.good / self.sampled if self.sampled else 0.0

    @property
    def short(self) -> int:
        """Return how many of the samples asked it lacks, by the estimate."""
        return 0 if self.repeat or self.usable >= self.asked else self.asked - round(self.usable)

    @property
    def taken(self) -> float:
        """Return how many samples the mixture would have of this source."""
        return self.asked - self.short if self.good else 0.0

    @property
    def seconds(self) -> float:
        """Return the estimated time of one process: all records are read, those taken examined."""
        if not self.sampled:
            return 0.0
        reading = self.read_seconds / self.sampled * self.records
        return reading + self.of_mixture(self.look_seconds)


def preview(config: MixtureConfig, most: int, length: TokenCount | None = None) -> list[Preview]:
    """Return a `Preview` of every source from at most `most` samples each; write nothing.

    Action tokens are counted with the mixture's tokenizer, or one fitted on the sample. `length`
    counts tokens.
    """
    found = []
    for number, source in enumerate(config.sources):
        one = Preview(source.name, config.asked()[number], source.repeat)
        found.append(one)
        try:
            if source.robot is not None and hub_id(source.robot):
                fix = f"download it and give --at {source.name}=PATH"
                raise RoboAlignError(f"{source.robot} is not on this machine", fix=fix)
            parts, faults = sources.parts_of(number, source)
            sources.require_stored_style(source, config.prompts)
            one.missing += [f"{fault.where}: {fault.problem}; {fault.fix}" for fault in faults]
            one.found = True
            _add_parts(one, config, parts, most, length)
        except RoboAlignError as error:
            text = ": ".join(part for part in (error.where, error.problem) if part)
            one.missing.append(text + (f"; {error.fix}" if error.fix else ""))
        if one.sampled and one.short:
            one.missing.append(
                f"about {one.short} of the {one.asked} samples asked; lower the count, or set "
                "`repeat: true`"
            )
    return found


def _add_parts(
    one: Preview, config: MixtureConfig, parts: list[Part], most: int, length: TokenCount | None
) -> None:
    """Sample some of the parts, count them all."""
    source = config.sources[parts[0].source]
    if source.robot is not None:
        _add_robot(one, config, parts[0], most, length)
        return
    opened = {parts[index * len(parts) // _FILES].number for index in range(_FILES)}
    share = -(-most // min(_FILES, len(parts)))
    archives = {part.images for part in parts if part.images and part.images.is_file()}
    one.disk = sum(path.stat().st_size for path in archives)
    for part in parts:
        one.disk += part.file.stat().st_size
        begun = time.perf_counter()
        sample = _sample(config, part, share if part.number in opened else 0)
        one.records += sample.total
        one.counted &= sample.exact
        if part.number in opened:
            parsing = time.perf_counter() - begun
            begun = time.perf_counter()
            drafts = list(_drafts(config, part, sample))
            one.read_seconds += time.perf_counter() - begun
            one.read_seconds += parsing * len(sample.records) / max(1, sample.parsed)
            _add_drafts(one, drafts, length)


def _sample(config: MixtureConfig, part: Part, most: int) -> Sampled:
    """Return at most `most` records of a part; of conversations only how many are to be read."""
    source = config.sources[part.source]
    if source.conversations is not None:
        count = spread_records(part.file, QaColumns("chat"), 0).total
        return Sampled([None] * min(most, int(count)), count, True, 0)
    preset = find_preset(source.preset) if source.preset else None
    layout = (preset.layout if preset else source.layout) or ""
    return spread_records(part.file, (preset and preset.columns) or LAYOUTS[layout], most)


def _drafts(config: MixtureConfig, part: Part, sample: Sampled) -> Iterator[Candidate | Dropped]:
    """Yield the sampled records of a part as the mixture would read them."""
    source, special = config.sources[part.source], sources.special_of(config)
    if source.conversations is not None:
        rows = sources.conversation_rows(part, OWN, special)
        for _, row in islice(rows, len(sample.records)):
            yield row if isinstance(row, Dropped) else sources.stored_draft(source.name, row)
        return
    take = partial(_already, sample)
    for found in sources.read_samples(config, part, take):
        if isinstance(found, Fault):
            yield Dropped(0, "", Fate.FAULT, found.problem)
        elif isinstance(
            made := text_conversation(found, config.grid, special, config.prompts), Refused
        ):
            yield Dropped(0, found.id, Fate.REFUSED, made.reason)
        else:
            yield Candidate(made, found.images)


def _already(sample: Sampled, path: Path, columns: QaColumns) -> Iterator[object]:
    return iter(sample.records)


def _add_drafts(
    one: Preview, drafts: Iterator[Candidate | Dropped] | list, length: TokenCount | None
) -> None:
    """Examine drafts as the mixture would, and add them to the sums."""
    for draft in drafts:
        one.sampled += 1
        begun = time.perf_counter()
        absent = _absent_image(draft)
        found = draft if absent else look_at(draft, None)
        one.look_seconds += time.perf_counter() - begun
        if absent:
            one.left_out["fault: an image is missing"] += 1
            if one.left_out["fault: an image is missing"] == 1:
                one.missing.append(absent)
        elif isinstance(found, Dropped):
            one.left_out[f"{found.what}: {plain_reason(found.reason)}"] += 1
        elif isinstance(found, Looked):
            one.good += 1
            sizes = [len(image) for image in found.conversation.images]
            one.images += len(sizes)
            one.image_bytes += sum(sizes)
            one.text_bytes += len(to_text(found.conversation).encode())
            if isinstance(draft, Candidate) and any(
                isinstance(image.store, Folder) for image in draft.images
            ):
                one.loose_bytes += sum(sizes)
            one.tokens += length(found.conversation) if length else 0


def _absent_image(draft: Candidate | Dropped) -> str:
    """Return which image of a sample cannot be read, and why; "" if all can."""
    for image in draft.images if isinstance(draft, Candidate) else ():
        if isinstance(data := image.data(), Fault):
            return f"{data.where}: {data.problem}"
    return ""


def _add_robot(
    one: Preview, config: MixtureConfig, part: Part, most: int, length: TokenCount | None
) -> None:
    """Sample frames of the first episodes."""
    source = config.sources[part.source]
    one.disk = sum(path.stat().st_size for path in part.file.rglob("*") if path.is_file())
    expected = opened_robot(source).expected
    begun = time.perf_counter()
    steps, wanted, read, episodes = 0, [], 0, 0
    share = -(-most // _EPISODES)
    for number, episode in islice(read_robot(source), _EPISODES + 1):
        read += 1
        if read > _EPISODES:
            break
        if isinstance(episode, Episode):
            episodes += 1
            steps += len(episode)
            chosen = sorted({index * len(episode) // share for index in range(share)})
            wanted += [Wanted((number << FRAME_BITS) + frame, 0, 0) for frame in chosen]
        else:
            one.left_out[f"fault: {plain_reason(episode.problem)}"] += 1
    # Per frame: the sums below are divided by the number of sampled frames.
    reading = (time.perf_counter() - begun) / max(1, steps)
    if not wanted:
        one.missing.append(f"{part.file}: none of its first {read} episodes can be read")
        return
    one.counted = read <= _EPISODES
    if one.counted:
        one.records = steps
    else:
        one.records = steps / episodes * expected if expected else math.inf
    drafts = fetch_robot(
        source, wanted, _tokens(config, one, wanted), config.seed, style_of(config.prompts)
    )
    _add_drafts(one, (draft for _, draft in drafts), length)
    one.read_seconds = reading * one.sampled


def _tokens(config: MixtureConfig, one: Preview, wanted: list[Wanted]) -> Tokens:
    """Return the action tokens of the mixture, with statistics of the sample."""
    assert config.tokenizer
    source = next(source for source in config.sources if source.name == one.source)
    raw = chunks_at(source, wanted, config.tokenizer.horizon, lambda group: False).chunks
    with tempfile.TemporaryDirectory() as folder:
        make_tokens(config.tokenizer, np.asarray(raw), Path(folder) / "tokenizer")
        return load_tokens(Path(folder) / "tokenizer")

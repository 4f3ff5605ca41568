"""Benchmarks of multiple choice: BLINK's relative depth, ERQA, EmbSpatial, CV-Bench, SAT."""

import re
from collections.abc import Mapping

from roboalign.bench.items import BenchItem
from roboalign.bench.presets import BenchPreset, Protocol, around, as_written, note_letters
from roboalign.bench.rows import BenchRow
from roboalign.bench.tasks.base import ALPHABET, LMMS, BenchTask, lettered, moved, options_in

_FOUR = "ABCD"


def _for_all_models(
    lmms: Protocol, more: Mapping[BenchPreset, Protocol] | None = None
) -> dict[BenchPreset, Protocol]:
    """Return the presets of a task without points: coordinates make no difference to it."""
    trained = Protocol("this package", as_written)
    models: tuple[BenchPreset, ...] = ("qwen2.5-vl", "qwen3-vl", "robobrain2")
    return {"lmms-eval": lmms, **(more or {}), **dict.fromkeys(models, lmms), "trained": trained}


def _letters_of(row: BenchRow, column: str) -> str:
    count = len(row.texts(column))
    if not 2 <= count <= len(ALPHABET):
        raise row.wrong(column, "2 to 26 options")
    return ALPHABET[:count]


def _blink(row: BenchRow) -> BenchItem:
    letters, text = _letters_of(row, "choices"), row.text("prompt")
    columns = [f"image_{number}" for number in range(1, 5)]
    return BenchItem(
        id=row.text("idx"),
        kind="letter",
        images=tuple(
            row.picture(column) for column in columns if row.values.get(column) is not None
        ),
        text=text,
        answer=row.letter("answer", letters),
        options=options_in(text, letters, r"\({}\) "),
        letters=letters,
        group=row.text("sub_task"),
    )


def _erqa(row: BenchRow) -> BenchItem:
    text = row.text("question")
    start = max(text.rfind("Choices:"), 0)
    return BenchItem(
        id=row.text("question_id"),
        kind="letter",
        images=row.pictures("images"),
        text=text,
        answer=row.letter("answer", _FOUR),
        options=moved(options_in(text[start:], _FOUR, r"(?<!\w){}\. ", " Please "), start),
        letters=_FOUR,
        group=row.text("question_type"),
    )


def _embspatial(row: BenchRow) -> BenchItem:
    letters = _letters_of(row, "answer_options")
    listed, spans = lettered(row.texts("answer_options"), "{}) ")
    question = f"{row.text('question')}\n"
    return BenchItem(
        id=row.text("question_id"),
        kind="letter",
        images=(row.picture("image"),),
        text=question + listed,
        answer=letters[row.whole("answer", len(letters))],
        options=moved(spans, len(question)),
        letters=letters,
        group=row.text("relation"),
        subgroup=str(row.values.get("data_source") or ""),
    )


def _embspatial_note(item: BenchItem) -> str:
    """Return lmms-eval's wording, whose note names four letters whatever there is to choose from."""
    note = "Note: You only need to respond with A, B, C, D without providing any additional information."
    return f"{note}\n{item.text}"


def _cv_bench(row: BenchRow) -> BenchItem:
    letters, text = _letters_of(row, "choices"), row.text("prompt")
    return BenchItem(
        id=row.text("idx"),
        kind="letter",
        images=(row.picture("image"),),
        text=text,
        answer=row.letter("answer", letters),
        options=options_in(text, letters, r"\({}\) "),
        letters=letters,
        group=row.text("task"),
        subgroup=row.text("source"),
    )


_SAT_HINT = (
    "When multiple images are provided, You want to realize that when camera moves left, the objects in the image "
    "move right, and vice versa. And when you are asked about the movement of the same object captured in different "
    "images, you can compare the position of the object relative to other objects in the image to answer the "
    "question."
)
_SAT_ANSWER = "Only output the letter of the correct option and nothing else."


def _sat(row: BenchRow) -> BenchItem:
    letters = _letters_of(row, "answers")
    listed, spans = lettered(row.texts("answers"), "{}. ")
    question = f"{row.text('question').strip()}\n{_SAT_HINT}\n\n"
    return BenchItem(
        id=f"{row.split}-{row.number}",
        kind="letter",
        images=row.pictures("image_bytes"),
        text=question + listed,
        answer=letters[row.whole("correct_answer_idx", len(letters))],
        options=moved(spans, len(question)),
        letters=letters,
        group=str(row.values.get("question_type") or ""),
    )


def _sat_wording(item: BenchItem) -> str:
    return f"{item.text}\n\n{_SAT_ANSWER}"


def _sat_trained(item: BenchItem) -> str:
    """Return the question without the hint about moving cameras."""
    return re.sub(rf"\n{re.escape(_SAT_HINT)}\n", "", item.text)


BLINK_DEPTH = BenchTask(
    name="blink_relative_depth",
    title="BLINK, relative depth",
    repository="BLINK-Benchmark/BLINK",
    files=("Relative_Depth/val-*.parquet",),
    columns=("idx", "sub_task", "prompt", "image_1", "choices", "answer"),
    item=_blink,
    presets=_for_all_models(
        Protocol(f"{LMMS}, blink_relative_depth", note_letters(), letter="stated"),
        {
            "flageval": Protocol(
                "FlagEvalMM fef27ec, blink_val",
                around(
                    after="\nThe last line of your response should be of the following format: 'Answer: $LETTER' "
                    "(without quotes) where LETTER is one of options."
                ),
                letter="stated",
            )
        },
    ),
)
ERQA = BenchTask(
    name="erqa",
    title="ERQA",
    repository="FlagEval/ERQA",
    files=("test-*.parquet",),
    columns=("question_id", "question", "question_type", "images", "answer"),
    item=_erqa,
    presets=_for_all_models(Protocol(f"{LMMS}, erqa", as_written)),
)
EMBSPATIAL = BenchTask(
    name="embspatial",
    title="EmbSpatial-Bench",
    repository="FlagEval/EmbSpatial-Bench",
    files=("test-*.parquet",),
    columns=("question_id", "question", "answer_options", "answer", "relation", "image"),
    item=_embspatial,
    presets=_for_all_models(Protocol(f"{LMMS}, embspatial", _embspatial_note, letter="leading")),
)
CV_BENCH = BenchTask(
    name="cv_bench",
    title="CV-Bench",
    repository="nyu-visionx/CV-Bench",
    files=("test*.parquet",),
    columns=("idx", "task", "image", "choices", "answer", "prompt", "source"),
    item=_cv_bench,
    presets=_for_all_models(Protocol(f"{LMMS}, cv_bench", note_letters("\n"), letter="leading")),
    headline="half ADE20K and COCO, half Omni3D",
)
SAT = BenchTask(
    name="sat",
    title="SAT",
    repository="nv-njb/SAT",
    files=("test*.parquet", "SAT_test*.parquet"),
    columns=("image_bytes", "question", "answers", "correct_answer_idx"),
    item=_sat,
    presets={
        **_for_all_models(Protocol(f"{LMMS}, sat", _sat_wording, letter="first-word")),
        "trained": Protocol("this package", _sat_trained),
    },
)

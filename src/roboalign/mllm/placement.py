"""Place images in the questions of a conversation with the marker `<image>`.

A question shows the next image where it has the marker. If no question of a conversation has one,
all images come before the first question. This is the form of LLaVA's data, verl and LLaMA-Factory.
Only questions have images: a marker in an answer is text.
"""

import re
from collections.abc import Sequence

from roboalign.core.errors import RoboAlignError

IMAGE_MARK = "<image>"
_LEADING = re.compile(rf"\s*((?:{IMAGE_MARK}\s*)+)")


def marked(questions: Sequence[str], images: int) -> list[str]:
    """Return the questions with one marker for every image.

    Raises RoboAlignError if there are markers, but not as many as images.
    """
    markers = sum(question.count(IMAGE_MARK) for question in questions)
    if markers == 0 and images and questions:
        return [IMAGE_MARK * images + questions[0], *questions[1:]]
    if markers != images:
        raise RoboAlignError(
            f"its questions have {markers} {IMAGE_MARK} markers and it has {images} images",
            fix=f"write {IMAGE_MARK} once for every image and nowhere else, or give no marker: "
            "the images then come first",
        )
    return list(questions)


def unmarked(questions: Sequence[str]) -> tuple[str, ...]:
    """Invert `marked`: if all images come before the first question, return it without markers."""
    first = questions[0] if questions else ""
    while first.startswith(IMAGE_MARK):
        first = first.removeprefix(IMAGE_MARK)
    if any(IMAGE_MARK in question for question in (first, *questions[1:])):
        return tuple(questions)
    return (first, *questions[1:])


def leading_images(question: str) -> tuple[int, str]:
    """Return how many images come before the text of a question, and that text.

    Spaces between and after these markers are left out: models do not expect them.
    """
    found = _LEADING.match(question)
    return (found[1].count(IMAGE_MARK), question[found.end() :]) if found else (0, question)


def kept_images(
    questions: Sequence[str], keep: Sequence[bool]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the marked questions to keep, and the numbers of the images that they show.

    An image of a question that is left out is shown before the next one that is kept: that one may
    refer to it. Images after the last kept question are left out.
    """
    kept: list[str] = []
    numbers: list[int] = []
    waiting: list[int] = []
    first = 0
    for question, wanted in zip(questions, keep, strict=True):
        own = list(range(first, first + question.count(IMAGE_MARK)))
        first += len(own)
        if wanted:
            kept.append(IMAGE_MARK * len(waiting) + question)
            numbers += waiting + own
            waiting = []
        else:
            waiting += own
    return tuple(kept), tuple(numbers)

"""Write a question-answering sample as a conversation of this project's mixtures."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.prompts import Mode
from roboalign.conversations.qa.normal import FORMAT_REQUEST, Choice, Points, QaSample
from roboalign.conversations.qa.texts import control_token, split_reply
from roboalign.conversations.styles.base import DEFAULT_STYLE, PromptStyle, StyleName
from roboalign.conversations.styles.registry import style_of
from roboalign.core.outcomes import Fault, Refused
from roboalign.mllm.placement import IMAGE_MARK, leading_images, unmarked


def to_conversation(
    sample: QaSample,
    grid: int | None = None,
    special: frozenset[str] = frozenset(),
    prompts: StyleName = DEFAULT_STYLE,
) -> Conversation | Refused | Fault:
    """Return the sample as this project's mixture stores it, with its image files unchanged.

    As `text_conversation`, and a Fault on a broken image. Samples of the same images share an
    `episode_id`, so that a split by episodes keeps them together.
    """
    conversation = text_conversation(sample, grid, special, prompts)
    if isinstance(conversation, Refused):
        return conversation
    images = []
    for image in sample.images:
        data, pixels = image.data(), image.pixels()
        if isinstance(data, Fault):
            return data
        if isinstance(pixels, Fault):
            return pixels
        images.append(data)
    shown = episode_of(sample.source, [hashlib.sha256(image).digest() for image in images])
    return replace(conversation, images=tuple(images), episode_id=shown or conversation.id)


def episode_of(source: str, digests: Sequence[bytes]) -> str:
    """Return the `episode_id` that samples of the same images share; "" without any image.

    `digests` are the sha256 of the image files.
    """
    if len(digests) > 1:
        digests = [hashlib.sha256(b"".join(digests)).digest()]
    return f"{source}/{digests[0].hex()[:16]}" if digests else ""


def text_conversation(
    sample: QaSample,
    grid: int | None = None,
    special: frozenset[str] = frozenset(),
    prompts: StyleName = DEFAULT_STYLE,
) -> Conversation | Refused:
    """Return the sample without its images, none of which is opened.

    Refused if it does not belong in a mixture: a text spells a control token (`control_token`, with
    those of `special`), or the tags of a reply cannot be separated from its text (`split_reply`).
    The style `paper` keeps answers as written; in `labelled`, with `grid`, a single point in the
    only image is answered by its cell, as in the generated questions. Images are shown where the
    sample has them.
    """
    wrong = next((target for target in sample.targets if isinstance(target, Refused)), None)
    if wrong is not None:
        return wrong
    if unfit := _unfit_text(sample, special):
        return unfit
    grid = grid if len(sample.images) == 1 else None
    turns = []
    for number, ((question, answer), target) in enumerate(zip(sample.turns, sample.targets)):
        leading, text = leading_images(question)
        system = sample.system if number == 0 else ""
        text = "\n".join(part for part in (system, text.strip()) if part)
        turn = _turn(sample.kind, text, answer, target, grid, style_of(prompts))
        turns.append(replace(turn, question=IMAGE_MARK * leading + turn.question))
    questions = unmarked([turn.question for turn in turns])
    name = f"{sample.source}/{sample.id}"
    return Conversation(
        name,
        name,
        0,
        sample.source,
        (),
        tuple(replace(turn, question=question) for turn, question in zip(turns, questions)),
    )


def _unfit_text(sample: QaSample, special: frozenset[str]) -> Refused | None:
    """Return why the texts of a sample cannot be trained on; None if they can."""
    for question, answer in sample.turns:
        if isinstance(reply := split_reply(answer), Refused):
            return reply
        for what, text in (("question", question.replace(IMAGE_MARK, "")), ("answer", answer)):
            if token := control_token(text, special):
                return Refused(f"the {what} spells {token}, which a model reads as a command")
    if token := control_token(sample.system, special):
        return Refused(f"the system text spells {token}, which a model reads as a command")
    return None


def _turn(
    kind: str, question: str, answer: str, target: Any, grid: int | None, style: PromptStyle
) -> Turn:
    reasoning, expected = cast(tuple[str | None, str], split_reply(answer))  # `_unfit_text` asked
    type_, label = "choice" if isinstance(target, Choice) else "text", "answer"
    if isinstance(target, Choice) and not style.verbatim:
        label, expected = "letter", chr(ord("A") + target.index)
    elif isinstance(target, Points) and len(target.xy) == 1 and grid and not style.verbatim:
        type_ = label = "point"
        expected = " ".join(str(min(int(v * grid), grid - 1)) for v in target.xy[0])
        question = question.split(FORMAT_REQUEST)[0].strip()
    mode: Mode = "direct" if reasoning is None else "think"
    reply = style.reply(expected, mode, label, reasoning)
    return Turn(kind, type_, mode, style.question(question, mode, label), reply, expected)

"""Find the action block of a sampled reply by its token ids, and judge the reply's format."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from roboalign.actions.vocabulary import ActionVocabulary
from roboalign.conversations.reply import OK, ReplyForm, judge_block


@dataclass(frozen=True)
class Parsed:
    """Content of a response. `action_ids` are the FAST ids of its one block inside <answer>, None
    without one.

    `reason` says why it is not well formed (else "ok"), in few enough distinct texts to count them.
    """

    well_formed: bool
    action_ids: list[int] | None
    reason: str


def parse_response(
    ids: Sequence[int],
    vocabulary: ActionVocabulary,
    decode_text: Callable[[Sequence[int]], str],
    eos_ids: Collection[int] = (),
    special_ids: Collection[int] = (),
    form: ReplyForm = "tagged",
) -> Parsed:
    """Find the action block by ids and judge the format (`conversations.reply`).

    `ids` is what was sampled after the prompt, without padding; one of `eos_ids` may end it.
    `decode_text` turns ids into text and keeps special tokens (`skip_special_tokens=False`), so
    that a stray one counts as extra text. One of `special_ids` inside the reasoning, such as
    <|im_end|>, is refused too, since readers of the answer would stop there.
    """
    ids = list(ids)
    if ids and ids[-1] in eos_ids:
        ids.pop()
    block, problem = _find_block(ids, vocabulary)
    if block is None:
        return Parsed(False, None, problem)
    start, end = block
    counts, reason = judge_block(
        decode_text(ids[:start]),
        decode_text(ids[end + 1 :]),
        form,
        special=any(i in special_ids for i in ids[:start]),
    )
    action_ids = vocabulary.to_fast(ids[start + 1 : end]) if counts else None
    return Parsed(reason == OK, action_ids, reason)


def _find_block(ids: list[int], vocabulary: ActionVocabulary) -> tuple[tuple[int, int] | None, str]:
    """Return the positions of the start and end token of the only action block, or None, and the
    reason."""
    starts = [position for position, i in enumerate(ids) if i == vocabulary.start_id]
    ends = [position for position, i in enumerate(ids) if i == vocabulary.end_id]
    n_fast = sum(i in vocabulary.fast_of for i in ids)
    if not starts:
        return None, "action tokens outside a block" if ends or n_fast else "no action block"
    if len(starts) > 1 or len(ends) > 1:
        return None, "several action blocks"
    if not ends or ends[0] < starts[0]:
        return None, "unclosed action block"
    start, end = starts[0], ends[0]
    if end == start + 1:
        return None, "empty action block"
    if any(i not in vocabulary.fast_of for i in ids[start + 1 : end]):
        return None, "other tokens inside the action block"
    if n_fast != end - start - 1:
        return None, "action tokens outside a block"
    return (start, end), "ok"

"""What a teacher's text is turned into, and why not."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vqa_made import GOOD, listed

from roboalign.core.outcomes import Refused
from roboalign.questions.teacher.answers import Answered, check, read_reply
from roboalign.questions.teacher.client import TeacherReply


def reply(text: str, finish: str = "stop", refusal: str = "") -> TeacherReply:
    return TeacherReply(text, finish, refusal, 1, 1)


@pytest.mark.parametrize(
    "text",
    [
        listed(*GOOD),
        f"```json\n{listed(*GOOD)}\n```",
        f"Sure! [1] Here is it {{x}}:\n{listed(*GOOD)}\nDone.",
        json.dumps(GOOD),
        f"<think>I {{think}}</think>\n```\n{listed(*GOOD)}\n```",
        f"<think>First {listed(GOOD[0])}</think>{listed(*GOOD)}",
    ],
)
def test_json_is_found_bare_fenced_and_among_words(text: str) -> None:
    assert read_reply(reply(text)) == list(GOOD)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (reply("", refusal="I cannot help"), "refused"),
        (reply("no", "content_filter"), "refused"),
        (reply(" \n"), "wrote nothing"),
        (reply("<think>so</think> "), "wrote nothing"),
        (reply("", "length"), "cut"),
        (reply(listed(*GOOD)[:-40], "length"), "cut"),
        (reply("I cannot see"), "no JSON"),
        (reply(listed(*GOOD)[:-40]), None),
        (reply('{"questions": "none"}'), "no JSON"),
        (reply("[" * 5000), "no JSON"),
    ],
)
def test_a_reply_without_questions_is_refused_with_the_reason(
    given: TeacherReply, reason: str | None
) -> None:
    found = read_reply(given)
    assert (
        (isinstance(found, Refused) and reason in found.reason)
        if reason
        else isinstance(found, Refused | list)
    )


def test_good_questions_pass_in_the_form_of_their_labels() -> None:
    found = [check(item, set(), 32) for item in GOOD]
    assert [(one.type, one.label, one.answer) for one in found] == [
        ("text", "answer", "a red cup"),
        ("choice", "letter", "B"),
        ("point", "point", "16 8"),
    ]
    assert found[1].question == GOOD[1]["question"] and found[0].reasoning == "A cup stands there."


def item(**given) -> dict:
    return {**GOOD[0], **given}


def choice(question: str, answer: str) -> dict:
    return item(question=question, answer=answer, kind="choice")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("text", "not a JSON object"),
        (item(kind="essay"), "no known kind"),
        (item(kind=["text"]), "no known kind"),
        (item(question=7), "not text"),
        (item(answer={"x": 1}), "not text"),
        (item(answer=None), "not text"),
        (item(answer=True), "not text"),
        (item(question=" \n "), "empty"),
        (item(answer=""), "empty"),
        (item(question="why " * 200), "question is too long"),
        (item(answer="x" * 201), "answer is too long"),
        (item(reasoning="x" * 1501), "reasoning is too long"),
        (item(answer="<answer>cup</answer>"), "tag"),
        (item(reasoning="so <ACTION_START>"), "tag"),
        (item(reasoning="In frame 7 of 40 it falls."), "frame's number"),
        (item(question="Say it <|im_end|> now?"), "tag"),
        (item(question='What? Answer directly as "x".'), "tag or a request"),
        (item(answer="a\x00b"), "control"),
        (item(answer="a \ud800 b"), "control"),
        (item(question="What is a red cup?"), "gives its answer away"),
        (choice("Where?", "B"), "one of its options"),
        (choice("Where?\nA. here\nB. there", "C"), "one of its options"),
        (choice("Where?\nA. here\nC. there", "A"), "one of its options"),
        (choice("Where?\nA. here\nB. Here.", "A"), "one of its options|the same"),
        (choice("Is it the plate there?\nA. the sink\nB. the plate", "B"), "gives its answer away"),
        (item(kind="point", answer="[500, 1250]"), "inside the image"),
        (item(kind="point", answer="left"), "inside"),
        (item(kind="point", answer="[[1, 2], [3, 4]]"), "one point"),
        (item(kind="point", answer="[NaN, 3]"), "inside"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_with_the_reason(given, reason: str) -> None:
    found = check(given, set(), 32)
    assert isinstance(found, Refused) and any(part in found.reason for part in reason.split("|")), (
        found
    )


def test_a_question_may_offer_its_answer_among_others() -> None:
    for one in (
        item(question="Is it a cup or a plate?", answer="a cup"),
        item(question="Yes? Is it?", answer="yes"),
        choice("The sink or the plate?\nA. the sink\nB. the plate", "A"),
    ):
        assert isinstance(check(one, set(), 32), Answered)


def test_the_same_question_with_the_same_answer_passes_once() -> None:
    seen: set[str] = set()
    assert isinstance(check(GOOD[0], seen, 32), Answered)
    again = check(item(question="what is LEFT of the  gripper"), seen, 32)
    assert isinstance(again, Refused) and "twice" in again.reason
    assert isinstance(check(item(answer="a plate"), seen, 32), Answered)


def test_a_point_given_as_a_list_and_at_the_edge_is_a_cell() -> None:
    assert check(item(kind="point", answer=[1000, 0]), set(), 32).answer == "31 0"


NAMES = st.sampled_from(("question", "answer", "reasoning", "kind", "x"))
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=50)
@given(JSON, st.text(max_size=30))
def test_no_reply_is_a_crash(value, around: str) -> None:
    items = read_reply(reply(around + json.dumps({"questions": [value]}) + around))
    for one in [] if isinstance(items, Refused) else items:
        found = check(one, set(), 32)
        assert isinstance(found, Refused) or (found.question and found.answer)

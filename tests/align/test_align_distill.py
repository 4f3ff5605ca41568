"""Which sampled answers become training data: each rule on texts written by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from roboalign.align.distill import (
    DistillConfig,
    as_prompt,
    as_trace,
    judge,
    judge_alone,
    leaks,
    states,
)
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.reply import ParsedReply
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.outcomes import Refused
from roboalign.questions.registry import label_of, score_answer

LABELLED = STYLES["labelled"]

CONFIG = DistillConfig()


def asked(kind: str, expected: str) -> Conversation:
    text = LABELLED.question("Where is it?", "direct", label_of(kind), lead=True)
    turn = Turn(
        "embodied",
        kind,
        "direct",
        text,
        LABELLED.reply(expected, "direct", label_of(kind)),
        expected,
    )
    return as_prompt(
        Conversation("train-7", "episode-1", 5, "reach", (b"png",), (turn, turn)), 1, LABELLED
    )


def test_a_prompt_asks_to_reason_whatever_the_mixture_asked() -> None:
    (turn,) = asked("choice", "B").turns
    assert asked("choice", "B").id == "train-7-1" and asked("choice", "B").frame == 5
    assert turn == Turn(
        "reasoning",
        "choice",
        "think",
        'Where is it? Think first, then answer as "letter".',
        "",
        "B",
    )


# Leaks. The conclusion may say the answer, sentences before it may not.


@pytest.mark.parametrize(
    ("reasoning", "value", "label"),
    [
        ("Point 12 20. It is above the table.", "12 20", "point"),
        ("12 20. It is above the table.", "12 20", "point"),
        ("The point is at 12, 20. It is above the table.", "12 20", "point"),
        ("So the answer is left. The cup is left.", "left", "side"),
        ("Left! The cup is there.", "left", "side"),
        ("The correct answer is right\nThe cup is there.", "right", "side"),
        (
            "The image is dark. Answer: right, forward. The cup is there.",
            "right, forward",
            "relation",
        ),
        ("B. The image shows the cup.", "B", "letter"),
        ("letter B. The image shows the cup.", "B", "letter"),
        ("Option B is the cup. The image shows the cup.", "B", "letter"),
        ("It must be option b. The image shows the cup.", "b.", "letter"),
        ("A: cup. B: mug. The image shows the mug. So B.", "B", "letter"),
        ("Neither C nor (B) is red. The image shows the cup.", "B", "letter"),
        ("The answer is A because of the cup. So it is A.", "A", "letter"),
        ("A. The image shows the cup.", "A", "letter"),
        ("Look at (A) first. So the cup.", "A", "letter"),
        ("Between A, B and C. So the cup.", "A", "letter"),
        ("I think of option I here. So the cup.", "I", "letter"),
        ("Left, because the cup is there. So left.", "left", "side"),
        ("12, 20: there is the cup. It is at 12 20.", "12 20", "point"),
        ("The answer is left because of the cup. So left.", "left", "side"),
        (
            "The right choice should be right, forward of it. So there.",
            "right, forward",
            "relation",
        ),
        ("The answer is the point 12 20, where the cup is. It is there.", "12 20", "point"),
    ],
)
def test_leaks(reasoning: str, value: str, label: str) -> None:
    assert leaks(reasoning, value, label)


@pytest.mark.parametrize(
    ("reasoning", "value", "label"),
    [
        ("The image shows the cup. Option B is the cup.", "B", "letter"),
        ("Option A is the mug. The image shows the cup. So option B.", "B", "letter"),
        ("A cup stands here. So option A.", "A", "letter"),
        ("A red cup is on the table. I see no mug. Option A is the cup.", "A", "letter"),
        ("I see a cup. The answer is I.", "I", "letter"),
        ("Bring the cup, says vitamin B12. So B.", "B", "letter"),
        (
            "The cup is at 12 20. The gripper is open. It is at 12 20.",
            "12 20",
            "point",
        ),  # a statement about the cup
        ("The gripper is at 3 4. The cup is at 12 20.", "12 20", "point"),
        ("The cup is left of the gripper. So left.", "left", "side"),
        ("Left of the gripper is the cup. So left.", "left", "side"),
        ("The answer depends on the cup, which is left. So left.", "left", "side"),
        ("12 20 is where the cup is. The answer is near. It is at 12 20.", "12 20", "point"),
        ("Point 12 20.", "12 20", "point"),  # nothing stands behind it: no statement, not a leak
        ("", "12 20", "point"),
    ],
)
def test_no_leak(reasoning: str, value: str, label: str) -> None:
    assert not leaks(reasoning, value, label)


@pytest.mark.parametrize(
    ("reasoning", "found"),
    [
        ("The cup is left. So left.", True),
        ("The cup is left\nSo left", True),
        ("The cup is left of the gripper and near.", False),  # the conclusion alone
        ("The cup is left. The cup is left.", False),  # said again
        ("The  cup is LEFT! The cup is left.", False),
        ("Hm. Well then. The cup is left.", False),  # too short to state anything
        ("It is at 1.5 metres height.", False),  # the point in a number ends no sentence
        ("", False),
    ],
)
def test_a_statement_stands_before_the_conclusion(reasoning: str, found: bool) -> None:
    assert states(reasoning) == found


# Verdicts.


def text_of(reasoning: str, inside: str) -> str:
    return f"<think>{reasoning}</think><answer>{inside}</answer>"


REASONING = "The cup is left of it. So it is there."


def test_a_trace_spells_no_special_token() -> None:
    prompt, spelled = (
        asked("choice", "B"),
        text_of("The cup <|image_pad|> is left. So it is there.", "letter B"),
    )
    assert judge(prompt, [spelled], CONFIG, LABELLED, ["<|image_pad|>"]) == [
        Refused("format: a special token")
    ]
    assert isinstance(judge(prompt, [spelled], CONFIG, LABELLED)[0], ParsedReply)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (text_of("", "letter B"), "format: empty reasoning"),
        (text_of(REASONING, "point B"), "format: another label than the question's"),
        (text_of(REASONING, "letter A"), "wrong answer"),
        (text_of("So. B.", "letter B"), "too short"),
        (text_of("It is left. " * 101, "letter B"), "too long"),
        (text_of("Option B is left of it. So it is there.", "letter B"), "leak of the answer"),
        (
            text_of("The cup is left of it and so there.", "letter B"),
            "no statement before the conclusion",
        ),
    ],
)
def test_the_first_rule_that_fails_is_the_reason(text: str, reason: str) -> None:
    assert judge_alone(text, asked("choice", "B").turns[0], CONFIG, LABELLED) == Refused(reason)


def test_what_is_kept_of_one_question() -> None:
    prompt = asked("choice", "B")
    other, third = REASONING.replace("cup", "mug"), REASONING.replace("cup", "can")
    texts = [
        text_of(REASONING, "letter A"),
        text_of(REASONING, "letter B"),
        text_of(REASONING.upper() + " ", "letter b"),
        text_of(other, "letter B"),
        text_of(third, "letter B"),
    ]
    verdicts = judge(prompt, texts, DistillConfig(max_per_question=2), LABELLED)
    assert [v.reason for v in verdicts] == [
        "wrong answer",
        "ok",
        "duplicate",
        "ok",
        "the question has enough",
    ]
    assert [type(v) for v in verdicts] == [Refused, ParsedReply, Refused, ParsedReply, Refused]
    one = [v.reason for v in judge(prompt, texts, CONFIG, LABELLED)]
    assert one == [
        "wrong answer",
        "ok",
        "duplicate",
        "the question has enough",
        "the question has enough",
    ]
    # Right where another reasoning was wrong: the wrong one does not make it a duplicate.
    assert isinstance(judge(prompt, texts[:2], CONFIG, LABELLED)[1], ParsedReply)


def test_a_trace_keeps_the_answer_that_was_given() -> None:
    prompt = asked("point", "12 20")
    (verdict,) = judge(
        prompt, [text_of(REASONING + "\n", "point: 13 19")], CONFIG, LABELLED
    )  # within the tolerance
    assert isinstance(verdict, ParsedReply)
    trace = as_trace(prompt, verdict, 3, LABELLED)
    (turn,) = trace.turns
    assert (
        turn.answer == f"<think>{REASONING}</think><answer>point 13 19</answer>"
        and turn.expected == "12 20"
    )
    assert (turn.kind, turn.mode, turn.question) == ("reasoning", "think", prompt.turns[0].question)
    assert (trace.id, trace.episode_id, trace.frame, trace.images) == (
        "distilled-train-7-1-3",
        "episode-1",
        5,
        (b"png",),
    )


PIECES = st.lists(
    st.sampled_from(["The cup is left.", "So B.", "Option B is it.", "It is A.", "A cup. ", "\n"]),
    max_size=5,
).map(" ".join)


@given(PIECES, st.sampled_from(["letter B", "letter A", "letter b", "letter"]))
def test_what_is_kept_is_right_well_formed_and_has_no_letter_before_its_end(
    reasoning: str, inside: str
) -> None:
    prompt = asked("choice", "B")
    (verdict,) = judge(prompt, [text_of(reasoning, inside)], CONFIG, LABELLED)
    if isinstance(verdict, ParsedReply):
        stored = as_trace(prompt, verdict, 0, LABELLED).turns[0]
        again = LABELLED.parse(stored.answer, "think", "letter")
        assert again.well_formed and score_answer("choice", "B", again.answer) == 1.0
        assert "B" not in verdict.reasoning[: verdict.reasoning.rindex(".", 0, -1)]
        assert judge(prompt, [stored.answer], CONFIG, LABELLED) == [
            ParsedReply(True, again.reasoning, again.answer, "ok")
        ]


def test_settings_that_contradict_are_named() -> None:
    for change, match in (
        ({"groups": {"choice": ("choise",)}}, "unknown question type 'choise'"),
        ({"groups": {"choice": ("order",), "spatial": ("order",)}}, "no type twice"),
        ({"groups": {"choice": ()}}, "each name types"),
        ({"groups": {}}, "each name types"),
        (
            {"groups": {"a": ("order",), "b": ("point",), "c": ("closer",)}, "questions": 2},
            "each of the 3 groups",
        ),
        ({"rl": {"reward": "paper"}}, "reward `answer`"),
        ({"rl": {"reward": "answer", "replay_weight": 0.1}}, "no replay"),
        ({"min_words": 9, "max_words": 8}, "min_words 9 is above max_words 8"),
    ):
        with pytest.raises(ValidationError, match=match):
            DistillConfig.model_validate(change)

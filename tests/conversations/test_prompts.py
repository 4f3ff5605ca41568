"""Prompts: the texts, and that what is written around a question or an answer can be taken off again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.actions.vocabulary import ActionVocabulary
from roboalign.conversations import prompts
from roboalign.conversations.reply import write_tagged
from roboalign.conversations.styles.registry import STYLES
from roboalign.questions.registry import QUESTION_TYPES, label_of

LABELLED = STYLES["labelled"]

LABELS = sorted({label_of(name) for name in QUESTION_TYPES})


def test_texts_by_hand():
    assert LABELLED.question("Is the gripper open?", "direct", "gripper") == (
        'Is the gripper open? Answer directly as "gripper".'
    )
    assert LABELLED.question("Is the gripper open?", "think", "gripper", lead=True) == (
        'Think first, then answer as "gripper". Is the gripper open?'
    )
    assert LABELLED.action_question("Open the drawer.", "think") == (
        'Task: Open the drawer. What should the robot do next? Think first, then answer as "<ACTION_START>".'
    )
    assert LABELLED.action_question("Open the drawer", "direct", 1, lead=True) == (
        'Answer directly as "<ACTION_START>". Task: Open the drawer. What is the next movement?'
    )
    assert write_tagged("letter B") == "<think></think><answer>letter B</answer>"
    assert write_tagged("letter B", "It is.") == "<think>It is.</think><answer>letter B</answer>"
    assert prompts.action_answer([3, 0]) == "<ACTION_START><FAST_3><FAST_0><ACTION_END>"


def test_an_action_answer_is_the_vocabularys_text_and_opens_with_its_label():
    vocabulary = ActionVocabulary(start_id=7, end_id=8, fast_ids=(9, 10, 11))
    assert prompts.action_answer([2, 0]) == vocabulary.text([2, 0])
    assert vocabulary.text([2, 0]).startswith(prompts.ACTIONS)


@given(st.text(), st.sampled_from(LABELS), st.sampled_from(LABELS))
def test_answer_text_is_the_inverse_of_answer(text, label, other):
    answered = f"{label} {text}"
    assert LABELLED.answer_text(answered, label) == text.strip()
    assert label == other or LABELLED.answer_text(answered, other) is None


@pytest.mark.parametrize(
    "answered",
    [
        "",
        "B",
        "letter",
        "letterB",
        "B letter B",
        "letters B",
        "Letter B",
        ": B",
        "<ACTION_START><FAST_1><ACTION_END>",
    ],
)
def test_an_answer_without_its_label_is_none(answered):
    assert LABELLED.answer_text(answered, "letter") is None


def test_a_colon_behind_the_label_is_let_pass():
    assert (
        LABELLED.answer_text("letter: B", "letter")
        == LABELLED.answer_text("letter B", "letter")
        == "B"
    )


@pytest.mark.parametrize("mode", prompts.MODES)
@pytest.mark.parametrize("lead", [False, True])
@given(text=st.text().map(str.strip), label=st.sampled_from([*LABELS, prompts.ACTIONS]))
def test_bare_takes_the_request_off(mode, lead, text, label):
    asked = LABELLED.question(text, mode, label, lead=lead)
    assert asked != text and LABELLED.bare(asked) == text
    assert LABELLED.bare(text) == text

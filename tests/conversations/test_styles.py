"""Prompt styles: golden texts of every kind, what is written is read again, hostile replies, refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roboalign.conversations.prompts import ACTIONS, MODES, NEXT_STEP, action_answer
from roboalign.conversations.reply import MARK, ParsedReply, has_reasoning, judge_block, read_words
from roboalign.conversations.styles.registry import STYLES, require_style, style_of
from roboalign.core.errors import RoboAlignError
from roboalign.questions.registry import QUESTION_TYPES, label_of

PAPER, LABELLED = STYLES["paper"], STYLES["labelled"]
LABELS = sorted({label_of(name) for name in QUESTION_TYPES} | {"answer"})
THINK = (
    "Think before you answer. Write your reasoning between <think> and </think>, and then the final "
    "answer between <answer> and </answer>: <think> reasoning </think><answer> final answer </answer>"
)
OPTIONS = "Which is larger?\nA. cat\nB. dog"
styles = pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)


def test_paper_by_hand() -> None:
    assert PAPER.question("What is this?", "direct", "answer") == "What is this?"
    assert PAPER.reply("Umbrella", "direct", "answer") == "Umbrella"
    assert (
        PAPER.question("What is this?", "think", "answer", lead=True) == f"What is this?\n{THINK}"
    )
    assert PAPER.reply("A cup.", "think", "answer", "It is round.") == (
        "<think>It is round.</think><answer>A cup.</answer>"
    )
    assert PAPER.question(OPTIONS, "direct", "letter") == (
        f"{OPTIONS}\nAnswer with the letter of the right option."
    )
    assert PAPER.question("Where is the cup?", "think", "point") == (
        f"Where is the cup?\nAnswer with the column and the row of the point.\n{THINK}"
    )
    assert PAPER.reply("12 20", "direct", "point") == "12 20"
    assert PAPER.action_question("Open the drawer.", "direct") == (
        "Task: Open the drawer. Predict the robot's next actions."
    )
    assert PAPER.reply(action_answer([3, 0]), "direct", ACTIONS) == (
        "<ACTION_START><FAST_3><FAST_0><ACTION_END>"
    )
    assert PAPER.action_question("Open the drawer", "think", 1, lead=True) == (
        f"Task: Open the drawer. Which actions should the robot take next?\n{THINK}"
    )
    assert PAPER.reply(action_answer([3]), "think", ACTIONS, "Go up.") == (
        "<think>Go up.</think><answer><ACTION_START><FAST_3><ACTION_END></answer>"
    )


def test_labelled_by_hand() -> None:
    assert LABELLED.question(OPTIONS, "direct", "letter") == (
        f'{OPTIONS}\nAnswer directly as "letter".'
    )
    assert LABELLED.reply("B", "direct", "letter") == "<think></think><answer>letter B</answer>"
    assert LABELLED.reply("12 20", "think", "point", "It is there.") == (
        "<think>It is there.</think><answer>point 12 20</answer>"
    )
    assert LABELLED.action_question("Open the drawer.", "think") == (
        "Task: Open the drawer. What should the robot do next? "
        'Think first, then answer as "<ACTION_START>".'
    )
    for mode in MODES:
        assert LABELLED.reply(action_answer([3]), mode, ACTIONS) == (
            "<think></think><answer><ACTION_START><FAST_3><ACTION_END></answer>"
        )


def test_how_answers_open() -> None:
    assert [LABELLED.opening(label) for label in ("side", ACTIONS)] == ["side", "<ACTION_START>"]
    assert [PAPER.opening(label) for label in ("side", ACTIONS)] == ["", "<ACTION_START>"]


def test_in_paper_no_question_in_words_asks_what_an_action_question_asks() -> None:
    """Without labels, the wording alone says that actions are wanted."""
    actions = {PAPER.action_question("open it", "direct", n) for n in range(len(NEXT_STEP))}
    assert len(actions) == len(NEXT_STEP)
    asked = {
        PAPER.question(f"Task: open it. {wording}", "direct", label)
        for wording in NEXT_STEP
        for label in LABELS
    }
    assert not actions & asked
    # the questions about the next movement share one text, and are told apart by what they ask for
    movement = ("movement", "letter", "sideways", "depth", "vertical", "fingers", "point", "trace")
    assert len({PAPER.question(NEXT_STEP[0], "direct", label) for label in movement}) == 8


UNTAGGED = st.text(max_size=40).filter(lambda text: not MARK.search(text))


@styles
@given(text=UNTAGGED, reasoning=UNTAGGED, label=st.sampled_from(LABELS))
def test_what_is_written_is_read_again(style, text, reasoning, label) -> None:
    assert style.answer_text(style.reply(text, "direct", label), label) is None or style is PAPER
    thought = style.parse(style.reply(text, "think", label, reasoning), "think", label)
    direct = style.parse(style.reply(text, "direct", label), "direct", label)
    assert (thought.answer or "") == (direct.answer or "") == text.strip() or not text.strip()
    if text.strip() and reasoning.strip():
        assert thought == ParsedReply(True, reasoning.strip(), text.strip(), "ok")
    assert direct.well_formed == (style is PAPER and bool(text.strip()))


@styles
@given(text=UNTAGGED.map(str.strip), label=st.sampled_from([*LABELS, ACTIONS]))
def test_the_mode_is_all_that_changes(style, text, label) -> None:
    direct, think = (style.question(text, mode, label) for mode in MODES)
    assert style.asked(direct, "think", label) == think
    assert style.asked(think, "direct", label) == direct
    assert style.bare(direct) == style.bare(think)
    assert direct != think


GOOD = "<think>It is left.</think><answer>left</answer>"


@pytest.mark.parametrize(
    ("text", "mode", "answer", "reason"),
    [
        (GOOD, "think", "left", "ok"),
        ("left", "direct", "left", "ok"),
        (" left\n", "direct", "left", "ok"),
        ("", "direct", None, "an empty answer"),
        (" \n", "direct", None, "an empty answer"),
        (GOOD, "direct", "left", "a tag in a direct answer"),
        ("<think></think><answer>left</answer>", "direct", "left", "a tag in a direct answer"),
        ("<think>It is left.", "direct", None, "a tag in a direct answer"),
        ("left</answer>", "direct", None, "a tag in a direct answer"),
        (
            "<ACTION_START><FAST_1><ACTION_END>",
            "direct",
            "<ACTION_START><FAST_1><ACTION_END>",
            "action tokens in an answer in words",
        ),
        ("left <|im_end|>", "direct", "left <|im_end|>", "a special token"),
        ("left", "think", None, "not one <answer>"),
        (
            "<think>a</think><think>b</think><answer>left</answer>",
            "think",
            "left",
            "text around <think>reasoning</think><answer>",
        ),
        (
            "<think>It is left.<answer>left</answer>",
            "think",
            "left",
            "text around <think>reasoning</think><answer>",
        ),
        ("<think>It is left.</think><answer>left", "think", None, "not one <answer>"),
        (GOOD + " done", "think", "left", "text around <think>reasoning</think><answer>"),
        (GOOD + GOOD, "think", None, "not one <answer>"),
        ("<think> </think><answer>left</answer>", "think", "left", "empty reasoning"),
        ("<think>It is.</think><answer> </answer>", "think", "", "nothing behind the label"),
        (
            "<think><ACTION_START><FAST_1><ACTION_END></think><answer>left</answer>",
            "think",
            "left",
            "action tokens in an answer in words",
        ),
    ],
)
def test_hostile_replies_in_words(text, mode, answer, reason) -> None:
    found = PAPER.parse(text, mode, "answer", ["<|im_end|>"])
    assert (found.answer, found.reason, found.well_formed) == (answer, reason, reason == "ok")
    assert found.reasoning == ("It is left." if text == GOOD and mode == "think" else "")


OUTSIDE = "action block outside <answer>"
BEFORE = "text before the action block is not <think>reasoning</think><answer>"
AFTER = "text after the action block is not </answer>"
AROUND = "text around the action block"


@pytest.mark.parametrize(
    ("before", "after", "tagged", "plain"),
    [
        ("", "", (False, OUTSIDE), (True, "ok")),
        (" \n", "\n", (False, OUTSIDE), (True, "ok")),
        ("<think>up</think><answer>", "</answer>", (True, "ok"), (True, AROUND)),
        ("<think></think><answer>", "</answer>", (True, BEFORE), (True, AROUND)),
        ("<think>a</think><think>b</think><answer>", "</answer>", (True, BEFORE), (True, AROUND)),
        ("<think>up<answer>", "</answer>", (True, BEFORE), (True, AROUND)),
        ("<think>up</think><answer>", "", (True, AFTER), (True, AROUND)),
        ("<think>up</think><answer>", "</answer> done", (True, AFTER), (True, AROUND)),
        ("<think>", "</think><answer>up</answer>", (False, OUTSIDE), (False, OUTSIDE)),
        ("<think>up</think>", "", (False, OUTSIDE), (False, OUTSIDE)),
        ("<think>up", "", (False, OUTSIDE), (False, OUTSIDE)),
        ("The actions: ", "", (False, OUTSIDE), (True, AROUND)),
        ("", " done", (False, OUTSIDE), (True, AROUND)),
        ("<think>up</think><answer>so ", "</answer>", (True, BEFORE), (True, AROUND)),
    ],
)
def test_hostile_replies_with_a_block(before, after, tagged, plain) -> None:
    assert judge_block(before, after, "tagged") == tagged
    assert judge_block(before, after, "plain") == plain


def test_a_special_token_before_the_block_breaks_a_tagged_reply() -> None:
    found = judge_block("<think>up</think><answer>", "</answer>", "tagged", special=True)
    assert found == (True, "a special token in the reasoning")


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("<think>up</think>", True),
        (" <think>up</think><answer>", True),
        ("<think>up</think></think>", True),
        ("<think> </think>", False),
        ("<think>up", False),
        ("so <think>up</think>", False),
        ("", False),
    ],
)
def test_a_reply_that_reasons(text, reasons) -> None:
    assert has_reasoning(text) is reasons


def test_the_form_alone_says_how_words_are_read() -> None:
    assert read_words("left", "plain").well_formed and not read_words("left", "tagged").well_formed
    assert [[style.form(mode) for mode in MODES] for style in (PAPER, LABELLED)] == [
        ["plain", "tagged"],
        ["tagged", "tagged"],
    ]


def test_another_style_is_refused_by_name() -> None:
    require_style("paper", "paper", what="mixture", where="m")
    require_style(None, "labelled", what="mixture", where="m")
    with pytest.raises(RoboAlignError) as error:
        require_style(None, "paper", what="mixture", where="mixtures/old")
    assert error.value.problem == "the mixture has prompts of the style `labelled`, not `paper`"
    assert error.value.where == "mixtures/old"
    assert error.value.fix == ("set `prompts: labelled`, or make the mixture in the style `paper`")
    with pytest.raises(
        RoboAlignError, match=r"no prompt style `chat`\. Available: labelled, paper"
    ):
        style_of("chat")

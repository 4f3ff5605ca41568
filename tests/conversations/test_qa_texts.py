"""Replies in other people's forms, and texts that spell control tokens."""

import json
from pathlib import Path

import pytest

from roboalign.conversations.qa.convert import to_conversation
from roboalign.conversations.qa.images import LazyImage
from roboalign.conversations.qa.normal import QaSample
from roboalign.conversations.qa.texts import control_token, folder_special_tokens, split_reply
from roboalign.conversations.styles.registry import STYLES
from roboalign.core.outcomes import Refused

LABELLED = STYLES["labelled"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("blue", (None, "blue")),
        ("<answer>blue</answer>", (None, "blue")),
        ("<think>It is blue.</think>\nblue", ("It is blue.", "blue")),
        ("<think>It is blue.</think><answer>blue</answer>", ("It is blue.", "blue")),
        ("<think></think><answer>blue</answer>", (None, "blue")),
        ("<Thinking>It is.</Thinking> blue", ("It is.", "blue")),
        ("<reasoning>It is.</reasoning>\n<answer> blue </answer>\n", ("It is.", "blue")),
        ("It is blue.\n</think>\n\nblue", ("It is blue.", "blue")),
        ("a < b and b > c", (None, "a < b and b > c")),
    ],
)
def test_replies_of_several_forms_are_understood(text, expected):
    assert split_reply(text) == expected


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("<think>It is blue", "<think>"),
        ("<answer>blue</answer> or not", "<answer>"),
        ("<think>a</think><answer><answer>b</answer></answer>", "<answer>"),
        ("blue <think>I think</think>", "<think>"),
        ("<think>a <answer>b</answer></think>c", "<answer>"),
    ],
)
def test_tags_inside_are_refused_by_name(text, tag):
    found = split_reply(text)
    assert (
        isinstance(found, Refused)
        and found.reason == f"the answer has the tag {tag} inside its text"
    )


def test_reasoning_without_an_answer_is_refused():
    assert split_reply("<think>hm</think>") == Refused("there is no answer behind the reasoning")


def made(question: str, answer: str, system: str = "") -> QaSample:
    image = LazyImage("x", "r", held=PNG)
    return QaSample("1", "own", (image,), ((question, answer),), "general", (None,), system)


PNG = bytes.fromhex(  # one gray pixel
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c636800000082008177cd72b60000000049454e44ae426082"
)


@pytest.mark.parametrize("token", ["<|im_end|>", "<|vision_start|>", "<video>", "<end_of_turn>"])
def test_a_control_token_is_refused_wherever_it_is(token):
    for what, sample in (
        ("question", made(f"<image>\nWhat does {token} do?", "It ends.")),
        ("answer", made("<image>\nWhat?", f"It is {token}.")),
        ("system text", made("<image>\nWhat?", "Blue.", f"{token}system")),
    ):
        found = to_conversation(sample)
        assert found == Refused(f"the {what} spells {token}, which a model reads as a command")


def test_a_models_own_tokens_are_refused_where_it_is_known(tmp_path: Path):
    added = [{"content": "</s>", "special": True}, {"content": "<FAST_1>", "special": False}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    special = folder_special_tokens(tmp_path)
    assert special == {"</s>"} and folder_special_tokens(tmp_path / "none") == frozenset()
    assert control_token("strike </s>", special) == "</s>"
    assert control_token("strike </s> and x<y|z>") is None


def test_the_reasoning_of_another_form_becomes_ours():
    turn = to_conversation(made("<image>\nWhat?", "<think>It is blue.</think>\nblue")).turns[0]
    assert turn.mode == "think"
    assert turn.answer == "<think>It is blue.</think><answer>answer blue</answer>"


@pytest.mark.parametrize("options", ["A. cat\nB. dog", "(A) cat\n(B) dog", "A) cat\nB) a dog."])
def test_the_request_is_not_part_of_the_last_option(options):
    asked = LABELLED.question(f"Which is larger?\n{options}", "direct", "letter")
    assert asked == f'Which is larger?\n{options}\nAnswer directly as "letter".'
    assert LABELLED.bare(asked) == f"Which is larger?\n{options}"


def test_the_request_behind_other_texts_is_as_before():
    for text in ("What is shown?", "Which? A: cat. B: dog.", "A. cat"):
        assert LABELLED.question(text, "direct", "letter") == f'{text} Answer directly as "letter".'

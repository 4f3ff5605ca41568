import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from roboalign.actions.fast import DecodeFailure, FastTokenizer
from roboalign.actions.vocabulary import ActionVocabulary
from roboalign.align.rewards.actions import (
    ACTION_REWARDS,
    TAU,
    decoded_reward,
    paper_reward,
    prefix_accuracy,
    score_responses,
)
from roboalign.conversations.blocks import Parsed, parse_response
from roboalign.conversations.reply import answer_of

# Characters are their own ids; action tokens lie far above, FAST ids out of order and with gaps.
START, END, EOS = 2_000_001, 2_000_000, 2_000_009
VOCABULARY = ActionVocabulary(START, END, tuple(3_000_000 - 7 * i for i in range(8)))
TEXT_OF = {START: "<ACTION_START>", END: "<ACTION_END>", EOS: "<|im_end|>"} | {
    llm: f"<FAST_{i}>" for i, llm in enumerate(VOCABULARY.fast_ids)
}


def decode_text(ids) -> str:
    return "".join(TEXT_OF.get(i) or chr(i) for i in ids)


def ids_of(text: str) -> list[int]:
    """`S`, `E`, `$` and digits after `@` stand for start, end, eos and FAST tokens: "@S35E" -> start, 3, 5, end."""
    ids, action = [], False
    for char in text:
        if char == "@":
            action = not action
        elif action:
            ids.append({"S": START, "E": END, "$": EOS}.get(char) or VOCABULARY.fast_ids[int(char)])
        else:
            ids.append(ord(char))
    return ids


def parse(text: str) -> Parsed:
    return parse_response(ids_of(text), VOCABULARY, decode_text, eos_ids=(EOS,))


GOOD = "<think>go left</think><answer>@S35E@</answer>"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD + "@$@",
        "\n<think>\n go < left > \n</think>\n <answer> @S35E@ \n</answer>\n",
        "<think>a b\n\nc</think><answer>@S35E@</answer> @$@",
    ],
)
def test_well_formed(text):
    assert parse(text) == Parsed(True, [3, 5], "ok")


@pytest.mark.parametrize(
    "text",
    [
        "<answer>@S35E@</answer>",  # no reasoning
        "<think></think><answer>@S35E@</answer>",
        "<think> \n </think><answer>@S35E@</answer>",  # blank reasoning
        "go left</think><answer>@S35E@</answer>",
        "<think>go left<answer>@S35E@</answer>",  # unclosed
        "<think>go<think>left</think></think><answer>@S35E@</answer>",  # nested
        "<think>go</think><think>left</think><answer>@S35E@</answer>",
        "<think>go <answer>x</answer></think><answer>@S35E@</answer>",
        "<think>spelt <FAST_3></think><answer>@S35E@</answer>",  # action tokens spelt out as text
        "so: <think>go left</think><answer>@S35E@</answer>",
        "<think>go left</think> so <answer>@S35E@</answer>",
        "<think>go left</think><answer>it is @S35E@</answer>",
        "<think>go left</think><answer>@S35E@ done</answer>",
        "<think>go left</think><answer>@S35E@",  # cut off
        GOOD + " thanks",
        GOOD + "@$$@",  # two ends of sequence
        GOOD + "</answer>",
    ],
)
def test_a_bad_format_still_names_the_one_block(text):
    parsed = parse(text)
    assert (
        not parsed.well_formed and parsed.action_ids == [3, 5] and parsed.reason.startswith("text ")
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no action block"),
        ("@$@", "no action block"),
        ("<think>go left</think><answer>left</answer>", "no action block"),
        ("<think>go</think><answer>@35@</answer>", "action tokens outside a block"),
        ("<think>go</think><answer>@35E@</answer>", "action tokens outside a block"),
        ("<think>go</think><answer>@S35@</answer>", "unclosed action block"),
        ("<think>go</think><answer>@S3535353535@", "unclosed action block"),
        ("<think>go</think><answer>@E35S@</answer>", "unclosed action block"),
        ("<think>go</think><answer>@SE@</answer>", "empty action block"),
        ("<think>go</think><answer>@S3@ @5E@</answer>", "other tokens inside the action block"),
        ("<think>go</think><answer>@S35ES35E@</answer>", "several action blocks"),
        ("<think>@S35E@</think><answer>@S35E@</answer>", "several action blocks"),
        ("<think>go</think><answer>@SS35E@</answer>", "several action blocks"),
        ("<think>go</think><answer>@S35EE@</answer>", "several action blocks"),
        ("<think>go @3@</think><answer>@S35E@</answer>", "action tokens outside a block"),
        ("<think>go</think><answer>@S35E5@</answer>", "action tokens outside a block"),
        ("<think>@S35E@</think><answer>left</answer>", "action block outside <answer>"),
        ("<think>go</think>@S35E@", "action block outside <answer>"),
        ("<think>go</think><answer>left</answer>@S35E@", "action block outside <answer>"),
        ("@S35E@", "action block outside <answer>"),
    ],
)
def test_no_block_to_score(text, reason):
    assert parse(text) == Parsed(False, None, reason)


def test_eos_must_be_named_and_comes_last():
    assert not parse_response(ids_of(GOOD + "@$@"), VOCABULARY, decode_text).well_formed
    assert not parse("@$@" + GOOD).well_formed


def test_prefix_accuracy_by_hand():
    assert prefix_accuracy([1, 2, 3, 4], [1, 2, 3, 4]) == 1.0
    assert prefix_accuracy([1, 2, 9, 4], [1, 2, 3, 4]) == 0.5
    assert (
        prefix_accuracy([9, 2, 3, 4], [1, 2, 3, 4]) == 0.0
    )  # no match: the formula's set is empty
    assert prefix_accuracy([], [1, 2]) == 0.0
    assert prefix_accuracy([1], [1, 2, 3, 4]) == 0.25  # shorter
    assert prefix_accuracy([1, 2, 5, 5, 5], [1, 2]) == 1.0  # longer
    with pytest.raises(ValueError, match="empty"):
        prefix_accuracy([1], [])


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3), min_size=1))
def test_prefix_accuracy_is_the_formula(generated, target):
    matching = [i for i in range(1, len(target) + 1) if generated[:i] == target[:i]]
    assert prefix_accuracy(generated, target) == max(matching, default=0) / len(target)


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "go", " "]), max_size=6
).map("".join)


@settings(max_examples=500)
@given(PIECES, PIECES)
@example("<think>go</think> <answer>", " </answer>")
def test_only_one_sequence_of_tags_is_well_formed(before, after):
    block = [START, VOCABULARY.fast_ids[0], END]
    parsed = parse_response([*map(ord, before), *block, *map(ord, after)], VOCABULARY, decode_text)
    squeezed = (
        before.replace(" ", "").replace("go", "x") + "|" + after.replace(" ", "").replace("go", "x")
    )
    reasoning = len(squeezed) - len("<think></think><answer>|</answer>")
    expected = (
        reasoning > 0 and squeezed == "<think>" + "x" * reasoning + "</think><answer>|</answer>"
    )
    assert parsed.well_formed == expected


TARGET_CHUNK = np.zeros((2, 2), np.float32)
NEAR = np.array([[0.1, -0.1], [0.3, 0.1]], np.float32)  # L1 0.15
FAILED = DecodeFailure("wrong number of coefficients", 3, 4)


@pytest.mark.parametrize(
    ("parsed", "chunk", "total"),
    [
        (Parsed(True, [1, 2, 3, 4], "ok"), TARGET_CHUNK, 1.0),
        (Parsed(True, [1, 2, 9, 9], "ok"), NEAR, (1 + 0.5) / 2),
        (Parsed(True, [1, 2, 3, 4, 5], "ok"), FAILED, 1.0),  # longer: the formula as written
        (Parsed(True, [9], "ok"), FAILED, 0.5),
        (Parsed(False, [1, 2, 3, 4], "text"), TARGET_CHUNK, 0.5),
        (Parsed(False, None, "no action block"), None, 0.0),
    ],
)
def test_paper_reward_by_hand(parsed, chunk, total):
    reward = paper_reward(parsed, [1, 2, 3, 4], chunk, TARGET_CHUNK)
    assert (
        reward.total == total
        and reward.action == reward.prefix
        and reward.format == float(parsed.well_formed)
    )
    assert reward.length == len(parsed.action_ids or []) and reward.reason == parsed.reason
    assert reward.decoded == isinstance(chunk, np.ndarray) == (reward.l1 is not None)


def test_decoded_reward_by_hand():
    parsed = Parsed(True, [1, 2, 9, 9], "ok")
    reward = decoded_reward(parsed, [1, 2, 3, 4], NEAR, TARGET_CHUNK)
    assert reward.l1 == pytest.approx(0.15) and reward.prefix == 0.5
    assert reward.action == pytest.approx((0.5 + math.exp(-0.15 / TAU)) / 2)
    assert reward.total == pytest.approx((1 + reward.action) / 2)
    assert decoded_reward(
        parsed, [1, 2, 3, 4], NEAR, TARGET_CHUNK, tau=0.6
    ).action == pytest.approx((0.5 + math.exp(-0.25)) / 2)
    failed = decoded_reward(Parsed(True, [1, 2, 3, 4, 5], "ok"), [1, 2, 3, 4], FAILED, TARGET_CHUNK)
    assert (failed.action, failed.prefix, failed.total, failed.l1, failed.decoded) == (
        0.0,
        1.0,
        0.5,
        None,
        False,
    )


def test_only_paper_pays_the_actions_of_an_ill_formed_answer():
    exact = Parsed(
        False, [1, 2, 3, 4], "text before the action block is not <think>reasoning</think><answer>"
    )
    paid = paper_reward(exact, [1, 2, 3, 4], TARGET_CHUNK, TARGET_CHUNK)
    unpaid = decoded_reward(exact, [1, 2, 3, 4], TARGET_CHUNK, TARGET_CHUNK)
    assert (paid.total, paid.action) == (0.5, 1.0)
    assert (unpaid.total, unpaid.action) == (0.0, 0.0)
    assert (unpaid.prefix, unpaid.l1, unpaid.decoded) == (1.0, 0.0, True)  # logged all the same


def test_the_mean_action_earns_little():
    near, mean_action = (
        decoded_reward(Parsed(True, [9], "ok"), [1], TARGET_CHUNK + l1, TARGET_CHUNK).action
        for l1 in (0.1, 0.5)
    )
    assert mean_action < 0.1 and near > 3 * mean_action


@pytest.fixture(scope="module")
def fast() -> FastTokenizer:
    rng = np.random.default_rng(0)
    steps = rng.uniform(-1, 1, size=(200, 1, 2)) * np.linspace(0.2, 1, 4)[None, :, None]
    return FastTokenizer.fit(steps, scale=3, vocab_size=40)


def test_score_responses_with_a_real_tokenizer(fast):
    vocabulary = ActionVocabulary(
        START, END, tuple(3_000_000 - 7 * i for i in range(fast.vocab_size))
    )
    targets = fast.encode(np.array([[[0.5, -0.5]] * 4, [[-0.9, 0.1]] * 4]))

    def answer(fast_ids, reasoning="go"):
        block = [START, *(vocabulary.fast_ids[i] for i in fast_ids), END]
        return [
            *map(ord, f"<think>{reasoning}</think><answer>"),
            *block,
            *map(ord, "</answer>"),
            EOS,
        ]

    responses = [
        answer(targets[0]),
        answer(targets[1]),
        answer([*targets[0], *targets[0]]),
        list(map(ord, "hm")),
    ]
    responses.append(answer(targets[1], reasoning=""))
    aims = [targets[0], targets[0], targets[0], targets[1], targets[1]]
    common = {"vocabulary": vocabulary, "fast": fast, "decode_text": decode_text, "eos_ids": (EOS,)}
    paper = score_responses(responses, aims, preset="paper", **common)
    decoded = score_responses(responses, aims, preset="decoded", **common)
    assert paper[0].total == decoded[0].total == 1.0 and paper[0].l1 == 0.0
    expected = np.abs(fast.decode(targets[1]) - fast.decode(targets[0])).mean()
    assert paper[1].l1 == decoded[1].l1 == pytest.approx(expected) and decoded[1].action < 0.3
    assert (paper[2].total, decoded[2].total, paper[2].decoded) == (1.0, 0.5, False)
    assert paper[2].length == 2 * len(targets[0])
    assert paper[3].total == decoded[3].total == 0.0 and paper[3].reason == "no action block"
    assert (paper[4].total, decoded[4].total, decoded[4].prefix, decoded[4].l1) == (
        0.5,
        0.0,
        1.0,
        0.0,
    )
    with pytest.raises(ValueError, match="decodes to no chunk"):
        score_responses(responses[:1], [[0]], preset="paper", **common)
    with pytest.raises(ValueError):
        score_responses(responses, aims[:2], preset="paper", **common)
    assert set(ACTION_REWARDS) == {"paper", "decoded"}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> left </answer>", "left"),
        ("<think>a</think><answer>(3, 4)\n</answer><|im_end|>", "(3, 4)"),
        ("<answer></answer>", ""),
        ("left", None),
        ("<answer>left", None),
        ("<answer>a</answer><answer>b</answer>", None),
        ("<answer><answer>a</answer>", None),
    ],
)
def test_answer_of(text, answer):
    assert answer_of(text) == answer


@pytest.mark.parametrize(
    "text", ["<think>go@$@</think>", "<think>go</think>@$@", "@$@<think>go</think>"]
)
def test_a_special_token_before_the_block_is_no_reasoning(text):
    """Decoded with `skip_special_tokens` it would look well formed, and a chat would end there."""
    ids = ids_of(text + "<answer>@S35E@</answer>")
    parsed = parse_response(ids, VOCABULARY, decode_text, special_ids=(EOS,))
    assert not parsed.well_formed and parsed.action_ids == [3, 5]
    plain = ids_of("<think>go</think><answer>@S35E@</answer>@$@")
    assert parse_response(plain, VOCABULARY, decode_text, (EOS,), special_ids=(EOS,)).well_formed


def test_a_direct_reply_of_the_style_paper_is_the_block_alone():
    def plain(text: str) -> Parsed:
        return parse_response(ids_of(text), VOCABULARY, decode_text, eos_ids=(EOS,), form="plain")

    assert plain("@S35E$@") == plain(" @S35E@\n") == Parsed(True, [3, 5], "ok")
    assert plain(GOOD) == Parsed(False, [3, 5], "text around the action block")
    assert plain("@S35E@ done") == Parsed(False, [3, 5], "text around the action block")
    assert plain("<think>@S35E@</think>") == Parsed(False, None, "action block outside <answer>")
    assert plain("@S35ES35E@") == Parsed(False, None, "several action blocks")


def test_rl_pays_a_bare_block_nothing_whatever_the_style():
    """RL asks to reason. A block alone, which SFT shows for direct questions, must not be paid."""
    rewards = [
        reward(parse(text), [3, 5], np.zeros((1, 1)), np.zeros((1, 1)))
        for text in (GOOD, "@S35E@")
        for reward in (paper_reward, decoded_reward)
    ]
    assert [(r.total, r.format) for r in rewards] == [(1, 1), (1, 1), (0, 0), (0, 0)]

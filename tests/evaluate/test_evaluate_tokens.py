"""Token and VQA metrics: golden values on scripted answers, forced reasoning, and a run of a real random model."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import roboalign.evaluate.tokens as tokens
from roboalign.actions.fast import FastTokenizer
from roboalign.actions.normalize import ActionStats
from roboalign.actions.vocabulary import extend_model, extend_tokenizer
from roboalign.conversations import prompts
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.reply import write_tagged
from roboalign.conversations.styles.registry import STYLES
from roboalign.evaluate.priors import language_priors
from roboalign.evaluate.token_metrics import compare_metrics
from roboalign.evaluate.tokens import (
    TokenEvalConfig,
    evaluate_mllm,
    other_episode,
)
from roboalign.mllm.continuation import continue_from
from roboalign.mllm.encode import encode_prompt
from roboalign.mllm.generate import Generation
from roboalign.mllm.tiny import TinyConfig, build_tiny

LABELLED, PAPER = STYLES["labelled"], STYLES["paper"]

TINY = TinyConfig(
    width=48,
    heads=4,
    kv_heads=2,
    mlp_width=96,
    depth=2,
    vision_width=32,
    vision_depth=2,
    vision_heads=2,
    deepstack=(0,),
    image_size=32,
    vocab_size=500,
)
HORIZON, EPISODES = 4, 6


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), shade, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def question(number: int, episode: int, mode: str, expected: str) -> Conversation:
    text = LABELLED.question("Is the gripper open or closed?", mode, "gripper")
    kind = "reasoning" if mode == "think" else "embodied"
    reply = write_tagged(f"gripper {expected}", "It is." if mode == "think" else None)
    turn = Turn(kind, "gripper_state", mode, text, reply, expected)
    return Conversation(
        f"q-{number}-{mode}", f"episode-{episode}", number, "reach", (png(10 * episode),), (turn,)
    )


def action(number: int, episode: int, mode: str, chunk: np.ndarray, ids: list[int]) -> Conversation:
    text = LABELLED.action_question(f"reach {episode}", mode)
    expected = prompts.action_answer(ids)
    turn = Turn("action", "action", mode, text, write_tagged(expected), expected)
    steps = tuple(map(tuple, chunk.tolist()))
    return Conversation(
        f"a-{number}-{mode}",
        f"episode-{episode}",
        number,
        "reach",
        (png(10 * episode),),
        (turn,),
        tuple(ids),
        steps,
    )


@pytest.fixture(scope="module")
def world():
    """(mllm, fast, stats, mean chunk, held-out conversations): two samples an episode, half the grippers open."""
    rng = np.random.default_rng(0)
    raw = rng.uniform(-1, 1, (60, HORIZON, 2)).astype(np.float32)
    stats = ActionStats.fit(raw.reshape(-1, 2))
    chunks = stats.normalize(raw)
    fast = FastTokenizer.fit(chunks, scale=2.0, vocab_size=64)
    ids = fast.encode(chunks[: 2 * EPISODES])
    heldout = []
    for number in range(2 * EPISODES):
        for mode in ("direct", "think"):
            heldout.append(question(number, number // 2, mode, "open" if number % 2 else "closed"))
            heldout.append(action(number, number // 2, mode, chunks[number], ids[number]))
    texts = [turn.question + turn.answer for c in heldout for turn in c.turns] * 3
    mllm = build_tiny(TINY, texts)
    mllm.vocabulary = extend_tokenizer(mllm.tokenizer, fast.vocab_size)
    extend_model(mllm.model, mllm.tokenizer, mllm.vocabulary)
    return mllm, fast, stats, chunks.mean(axis=0), heldout


@pytest.fixture
def run(world, tmp_path, monkeypatch):
    """Evaluate a model that answers what `script(question, forced text, image shade)` says."""
    mllm, fast, stats, mean_chunk, heldout = world

    def evaluate(script, heldout=heldout, priors=None):
        def scripted(mllm, encoded, **settings):
            assert settings["temperature"] == 0.0
            answers = []
            for one in encoded:
                text = mllm.tokenizer.decode(one.input_ids.tolist())
                asked, _, forced = text.partition("<|im_end|>\n<|im_start|>assistant\n")
                reply = script(
                    asked.split("<|vision_end|>")[1], forced, int(one.images[0][0, 0, 0])
                )
                answers.append(
                    [
                        [
                            *mllm.tokenizer(reply, add_special_tokens=False)["input_ids"],
                            mllm.tokenizer.eos_token_id,
                        ]
                    ]
                )
            return Generation(answers, [], [], 1, 1)

        monkeypatch.setattr(tokens, "generate", scripted)
        path = tmp_path / "records.jsonl"
        priors = priors or language_priors(
            [c for c in heldout if c.turns[0].kind != "action"], LABELLED
        )
        metrics = evaluate_mllm(
            mllm, heldout, priors, fast, stats, mean_chunk, TokenEvalConfig(), path
        )
        return metrics, [json.loads(line) for line in path.read_text().splitlines()]

    return evaluate


def test_a_perfect_model_scores_one(run, world):
    # The frames of an episode look alike here: only one of each is asked, so that a question has one right answer.
    single = [c for c in world[4] if c.target is None or c.frame % 2 == 0]
    wanted = {c.turns[0].question: c.target for c in single if c.target is not None}

    def script(asked, forced, shade):
        thought = "<think></think>" if "directly" in asked else "<think>I see.</think>"
        answer = prompts.action_answer(wanted[asked]) if "Task" in asked else "gripper open"
        return (thought + f"<answer>{answer}</answer>") if not forced else f"{answer}</answer>"

    metrics, records = run(script, single)
    for mode in ("direct", "think"):
        assert metrics["actions"][mode]["prefix"]["value"] == 1.0
        assert metrics["actions"][mode]["format"]["value"] == 1.0
        assert metrics["actions"][mode]["wrong_length"]["value"] == 0.0
        assert metrics["actions"][mode]["l1_all"]["value"] < 0.2  # what rounding at scale 2 costs
        assert metrics["vqa"][mode]["accuracy"]["value"] == pytest.approx(0.5)
    assert metrics["actions"]["direct"]["reasoned"]["value"] == 0.0
    assert metrics["actions"]["think"]["reasoned"]["value"] == 1.0
    assert metrics["actions"]["think"]["l1_all_minus_mean_action"]["high"] < 0
    assert metrics["reasoning"]["kept"]["value"] == metrics["reasoning"]["swapped"]["value"] == 1.0
    assert {r["probe"] for r in records} == {
        "vqa",
        "vqa-shuffled",
        "action",
        "kept",
        "emptied",
        "swapped",
    }


def test_forced_reasoning_is_own_empty_and_anothers(run, world):
    seen = []

    def script(asked, forced, shade):
        seen.append((shade, forced))
        if "Task" not in asked or "directly" in asked:
            return "<answer>gripper open</answer>"
        block = prompts.action_answer([1])
        return (
            f"{block}</answer>"
            if forced
            else f"<think>shade {shade}</think><answer>{block}</answer>"
        )

    run(script)
    forced = [(shade, text) for shade, text in seen if text]
    n = 2 * EPISODES
    assert sum(text == f"<think>shade {shade}</think><answer>" for shade, text in forced) == n
    assert sum(text == "<think></think><answer>" for _, text in forced) == n
    swapped = [
        (shade, text)
        for shade, text in forced
        if text not in ("<think></think><answer>", f"<think>shade {shade}</think><answer>")
    ]
    assert len(swapped) == n


def test_shuffled_images_bring_a_seeing_model_to_chance(run, world):
    right = {10 * i: "open" if i % 2 else "closed" for i in range(EPISODES)}
    heldout = [
        question(i, i // 4, mode, right[10 * (i // 4)])
        for i in range(4 * EPISODES)
        for mode in ("direct", "think")
    ]
    metrics, _ = run(
        lambda asked, forced, shade: f"<answer>gripper {right[shade]}</answer>", heldout
    )
    shuffle = metrics["image_shuffle"]
    assert shuffle["unshuffled"]["value"] == 1.0
    assert shuffle["accuracy"]["value"] < 1.0
    assert shuffle["drop"]["value"] == pytest.approx(shuffle["accuracy"]["value"] - 1.0)
    assert metrics["vqa"]["direct"]["prior"]["value"] == 0.5
    assert metrics["actions"]["direct"] is None


def test_a_blind_model_does_not_fall(run):
    metrics, _ = run(lambda asked, forced, shade: "<answer>gripper open</answer>")
    assert metrics["image_shuffle"]["drop"]["value"] == 0.0
    assert metrics["vqa"]["direct"]["accuracy"]["value"] == 0.5


@pytest.mark.parametrize(
    ("said", "answered"), [("gripper open", 1.0), ("open", 0.0), ("side open", 0.0)]
)
def test_an_answer_needs_its_label(run, said, answered):
    metrics, records = run(lambda asked, forced, shade: f"<answer>{said}</answer>")
    assert metrics["vqa"]["direct"]["accuracy"]["value"] == answered / 2
    assert {r["answered"] for r in records if r["probe"] == "vqa"} == {bool(answered)}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("gibberish", {"no_action": 1.0, "format": 0.0, "prefix": 0.0}),
        (
            "<think>so</think><answer>{one}</answer>",
            {"no_action": 0.0, "format": 1.0, "decode_failure": 1.0},
        ),
        ("<answer>{one}</answer>", {"no_action": 0.0, "format": 0.0, "reasoned": 0.0}),
        (
            "<think>so</think><answer>{one}{one}</answer>",
            {"no_action": 1.0, "format": 0.0, "reasoned": 1.0},
        ),
    ],
)
def test_failures_are_counted(run, reply, expected):
    one = prompts.action_answer([1])
    metrics, records = run(lambda asked, forced, shade: reply.format(one=one))
    think = metrics["actions"]["think"]
    assert {key: think[key]["value"] for key in expected} == expected
    # Nothing decodes, so over all answers L1 is the mean action's, and over decoded ones there is none.
    assert think["l1_decoded"]["n"] == 0 and think["l1_decoded"]["value"] is None
    assert think["l1_all"]["value"] == pytest.approx(
        metrics["baselines"]["mean_action_l1"]["value"]
    )
    assert sum(think["reasons"].values()) == sum(
        not r["well_formed"] for r in records if r["probe"] == "action" and r["mode"] == "think"
    )


def test_baselines_by_hand(run, world):
    _, _, stats, mean_chunk, heldout = world
    chunks = np.array(
        [c.chunk for c in heldout if c.target is not None and c.turns[0].mode == "direct"]
    )
    metrics, _ = run(lambda asked, forced, shade: "x")
    baselines = metrics["baselines"]
    assert baselines["mean_action_l1"]["value"] == pytest.approx(
        np.abs(chunks - mean_chunk).mean(), abs=1e-6
    )
    zero = np.abs(chunks - stats.normalize(np.zeros(2))).mean()
    assert baselines["zero_l1"]["value"] == pytest.approx(zero, abs=1e-6)
    assert baselines["zero_l1"]["n"] == 2 * EPISODES


def test_compare_is_paired_by_sample_and_mode(run):
    _, before = run(lambda asked, forced, shade: "<answer>gripper open</answer>")

    def right(asked, forced, shade):
        return "<answer>gripper open</answer>" if "directly" in asked else "no"

    _, after = run(right)
    differences = compare_metrics(before, after)
    assert differences["vqa_direct"]["value"] == 0.0
    assert differences["vqa_think"]["value"] == -0.5
    assert differences["vqa_think"]["n"] == 2 * EPISODES


def test_priors_are_the_most_frequent_training_answers():
    training = [
        question(i, 0, "direct", answer) for i, answer in enumerate(["open", "closed", "open"])
    ]
    priors = language_priors(training, LABELLED)
    assert priors.of_type("gripper_state") == "open"
    assert priors.of_text("Is the gripper open or closed?", "gripper_state") == "open"
    assert priors.of_text("another wording", "gripper_state") == "open"
    assert priors.of_type("unseen") is None


def test_priors_of_a_text_that_two_types_share_are_kept_apart():
    (turn,) = question(0, 0, "direct", "open").turns
    fingers = turn.question.replace('"gripper"', '"fingers"')
    other = replace(turn, type="gripper_command", expected="keep", question=fingers)
    training = [
        replace(question(i, 0, "direct", "open"), turns=turns)
        for i, turns in enumerate(
            [(turn,), (replace(turn, expected="closed"),), (turn,), (other,), (other,), (other,)]
        )
    ]
    priors, text = language_priors(training, LABELLED), "Is the gripper open or closed?"
    assert (priors.of_text(text, "gripper_state"), priors.of_text(text, "gripper_command")) == (
        "open",
        "keep",
    )


def test_other_episode_is_a_permutation_without_own_episodes():
    ids = ["a", "a", "a", "b", "b", "c", "d", "d"]
    donors = other_episode(ids, seed=3)
    assert sorted(donors) == list(range(len(ids)))
    assert all(ids[i] != ids[donor] for i, donor in enumerate(donors))
    assert other_episode(["a", "a", "b"], seed=0) is None
    assert other_episode([], seed=0) is None


def test_real_model_end_to_end_and_forced_continuation(world, tmp_path):
    mllm, fast, stats, mean_chunk, heldout = world
    config = TokenEvalConfig(max_new_tokens=8, max_questions=16, max_actions=10)
    inputs = (mllm, heldout, language_priors(heldout, LABELLED), fast, stats, mean_chunk, config)
    metrics = evaluate_mllm(*inputs, tmp_path / "a.jsonl", run_seed=3)
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert metrics == json.loads(json.dumps(metrics, allow_nan=False))
    assert metrics["actions"]["think"]["prefix"]["n"] == 10
    assert sum(r["probe"] == "vqa" for r in records) == 16
    assert {r["run_seed"] for r in records} == {3}
    again = evaluate_mllm(*inputs, tmp_path / "b.jsonl", run_seed=3)
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()
    assert again["cost"]["generated_tokens"] == metrics["cost"]["generated_tokens"] > 0
    # A forced beginning of the model's own greedy answer is continued with the rest of that answer.
    prompt = encode_prompt(
        mllm, "Task: reach. What next?", [np.full((32, 32, 3), 90, dtype=np.uint8)]
    )
    asker = tokens.Asker(mllm, config)
    (whole,) = asker("test", [prompt])
    (rest,) = asker("test", [continue_from(prompt, whole[:3])])
    assert len(whole) > 3
    assert whole[3:] == rest[: len(whole) - 3]


def as_paper(conversation: Conversation) -> Conversation:
    """The same sample in the style `paper`."""
    turn = conversation.turns[0]
    if turn.kind == "action":
        question = PAPER.action_question(f"reach {conversation.episode_id[-1]}", turn.mode)
    else:
        question = PAPER.question("Is the gripper open or closed?", turn.mode, "gripper")
    return replace(conversation, turns=(replace(turn, question=question),))


def test_a_perfect_model_scores_one_in_the_style_paper(run, world, monkeypatch):
    mllm, single = world[0], [as_paper(c) for c in world[4] if c.target is None or c.frame % 2 == 0]
    wanted = {c.turns[0].question: c.target for c in single if c.target is not None}
    monkeypatch.setattr(mllm.model.config, "prompt_style", "paper", raising=False)

    def script(asked, forced, shade):
        answer = prompts.action_answer(wanted[asked]) if "Task" in asked else "open"
        if forced:
            return f"{answer}</answer>"
        thinks = asked.endswith(PAPER.requests[0])
        return f"<think>I see.</think><answer>{answer}</answer>" if thinks else answer

    metrics, records = run(script, single)
    for mode in ("direct", "think"):
        assert metrics["actions"][mode]["prefix"]["value"] == 1.0
        assert metrics["actions"][mode]["format"]["value"] == 1.0
        assert metrics["vqa"][mode]["accuracy"]["value"] == pytest.approx(0.5)
    assert metrics["actions"]["direct"]["reasoned"]["value"] == 0.0
    assert metrics["actions"]["think"]["reasoned"]["value"] == 1.0
    # What is right in the other style is not well formed here.
    metrics, records = run(lambda *_: "<think></think><answer>gripper open</answer>", single)
    assert metrics["vqa"]["direct"]["accuracy"]["value"] == 0.0
    assert {r["reason"] for r in records if r["probe"] == "action"} == {"no action block"}

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import normalizers

from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import IGNORED, collate, encode_conversation, encode_prompt
from roboalign.mllm.tiny_classes import build_class

FRAME = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
TURNS = [
    {"question": "Where is the red block?", "answer": "<answer> 12 7</answer>"},
    {"question": "And the gripper?", "answer": "<think>it moves left</think><answer>left</answer>"},
    {"question": "Move 64 cells.", "answer": "<answer>down</answer>"},
]


def as_messages(turns, image):
    """The Hugging Face form of a conversation."""
    messages = []
    for number, turn in enumerate(turns):
        content = [{"type": "text", "text": turn["question"]}]
        messages.append(
            {
                "role": "user",
                "content": [{"type": "image", "image": image}] * (number == 0) + content,
            }
        )
        messages.append(
            {"role": "assistant", "content": [{"type": "text", "text": turn["answer"]}]}
        )
    return messages


def processed(mllm, messages, **options):
    """The processor's own result, the reference."""
    text = mllm.processor.apply_chat_template(messages, tokenize=False, **options)
    return mllm.processor(
        text=[text], images=[[messages[0]["content"][0]["image"]]], return_tensors="pt"
    )


@pytest.mark.parametrize("n_turns", [1, 2, 3])
@pytest.mark.parametrize("shape", [(32, 32), (48, 64)])
def test_ids_and_pixels_equal_the_processors_own(any_mllm, n_turns, shape):
    image = np.resize(FRAME, (*shape, 3))
    batch = collate(any_mllm, [encode_conversation(any_mllm, TURNS[:n_turns], [image])])
    labels = batch.pop("labels")
    reference = processed(any_mllm, as_messages(TURNS[:n_turns], image))
    assert set(batch) == set(reference)
    for key, value in reference.items():
        assert torch.equal(batch[key], value), key
    assert labels.shape == batch["input_ids"].shape


def test_labels_are_the_assistants_words_and_its_end_token(any_mllm):
    encoded = encode_conversation(any_mllm, TURNS, [FRAME])
    spoken = encoded.labels != IGNORED
    assert (encoded.labels[spoken] == encoded.input_ids[spoken]).all()
    expected = "".join(turn["answer"] + "<|im_end|>" for turn in TURNS)
    assert any_mllm.tokenizer.decode(encoded.labels[spoken]) == expected


REASONED = "<think>it moves left</think><answer>letter B</answer>"
UNREASONED = [
    "<think></think><answer>point 12 20</answer>",
    "<think> \n</think><answer>left</answer>",
    "<answer>left</answer>",
    "left</think><answer>left</answer>",
    "<think>never ended",
]


def test_after_reasoning_is_what_is_said_behind_it(any_mllm):
    answers = [UNREASONED[0], REASONED, UNREASONED[0], REASONED]
    turns = [
        {"question": f"Where to, {number}?", "answer": answer}
        for number, answer in enumerate(answers)
    ]
    encoded = encode_conversation(any_mllm, turns, [FRAME])
    after = encoded.after_reasoning
    assert after.dtype == bool and after.shape == encoded.input_ids.shape
    said = any_mllm.tokenizer.decode(encoded.input_ids[after])
    assert said == "<answer>letter B</answer><|im_end|>" * 2
    assert (encoded.labels[after] != IGNORED).all()


@pytest.mark.parametrize("answer", UNREASONED)
def test_nothing_is_after_reasoning_where_there_is_none(any_mllm, answer):
    questions = ["Where to?", "What does <think>so</think> say?"]
    turns = [{"question": question, "answer": answer} for question in questions]
    encoded = encode_conversation(any_mllm, turns, [FRAME])
    assert (
        encoded.after_reasoning.shape == encoded.input_ids.shape
        and not encoded.after_reasoning.any()
    )
    prompt = encode_prompt(any_mllm, REASONED, [FRAME])
    assert (
        prompt.after_reasoning.shape == prompt.input_ids.shape and not prompt.after_reasoning.any()
    )


def test_prompt_is_the_prefix_of_the_training_ids(any_mllm):
    prompt = encode_prompt(any_mllm, TURNS[0]["question"], [FRAME])
    whole = encode_conversation(any_mllm, TURNS[:1], [FRAME])
    n = len(prompt.input_ids)
    assert (whole.input_ids[:n] == prompt.input_ids).all()
    assert (whole.labels[:n] == IGNORED).all() and whole.labels[n] != IGNORED
    assert (prompt.labels == IGNORED).all()
    reference = processed(any_mllm, as_messages(TURNS[:1], FRAME)[:1], add_generation_prompt=True)
    assert prompt.input_ids.tolist() == reference["input_ids"][0].tolist()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=4))
def test_any_text_survives(qwen3, pairs):
    turns = [{"question": question, "answer": answer} for question, answer in pairs]
    encoded = encode_conversation(qwen3, turns, [FRAME])
    said = qwen3.tokenizer.decode(encoded.labels[encoded.labels != IGNORED])
    assert said == "".join(answer.strip() + "<|im_end|>" for _, answer in pairs)


def test_padding_sides(any_mllm):
    short = encode_prompt(any_mllm, "Up?", [FRAME])
    long = encode_prompt(any_mllm, "Where is the red block, left or right?", [FRAME])
    for side in ("left", "right"):
        batch = collate(any_mllm, [short, long], padding_side=side)
        n_short, n_long = len(short.input_ids), len(long.input_ids)
        assert batch["attention_mask"].sum(1).tolist() == [n_short, n_long]
        kept = batch["input_ids"][0][batch["attention_mask"][0].bool()]
        assert kept.tolist() == short.input_ids.tolist()
        edge = batch["attention_mask"][0, 0 if side == "left" else -1]
        assert edge == 0
        padding = batch["attention_mask"] == 0
        assert (batch["labels"][padding] == IGNORED).all()
        assert (batch["input_ids"][padding] == any_mllm.tokenizer.pad_token_id).all()


def test_images_are_the_processors_in_a_batch_too(any_mllm):
    other = 255 - FRAME
    batch = collate(
        any_mllm, [encode_prompt(any_mllm, "a", [FRAME]), encode_prompt(any_mllm, "b", [other])]
    )
    alone = [collate(any_mllm, [encode_prompt(any_mllm, "a", [frame])]) for frame in (FRAME, other)]
    assert torch.equal(batch["pixel_values"], torch.cat([one["pixel_values"] for one in alone]))
    assert not torch.equal(alone[0]["pixel_values"], alone[1]["pixel_values"])


def test_pil_and_array_are_the_same(qwen3):
    assert (encode_prompt(qwen3, "a", [Image.fromarray(FRAME)]).images[0] == FRAME).all()


@pytest.mark.parametrize("image", [FRAME / 255, FRAME[..., 0], np.zeros((4, 4, 4), np.uint8)])
def test_other_images_are_refused(qwen3, image):
    with pytest.raises(RoboAlignError, match="uint8"):
        encode_prompt(qwen3, "a", [image])


def test_special_tokens_in_text_are_refused(any_mllm):
    for token in (any_mllm.processor.image_token, "<|im_end|>"):
        with pytest.raises(RoboAlignError, match=r"special token|2 <image> markers and it has 1"):
            encode_prompt(any_mllm, f"a {token} {token}", [FRAME])
    with pytest.raises(RoboAlignError, match="no turn"):
        encode_conversation(any_mllm, [], [FRAME])


def test_loss_is_that_of_the_labelled_tokens(qwen):
    """The model's own loss on our labels equals the mean log-probability of the assistant's tokens, by hand."""
    batch = collate(
        qwen,
        [
            encode_conversation(qwen, TURNS[:2], [FRAME]),
            encode_conversation(qwen, TURNS[2:], [FRAME]),
        ],
    )
    with torch.no_grad():
        output = qwen.model(**batch)
    logprobs = output.logits[:, :-1].log_softmax(-1)
    targets = batch["labels"][:, 1:]
    spoken = targets != IGNORED
    chosen = logprobs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(output.loss, -chosen[spoken].mean())


@pytest.mark.parametrize("normalised", [False, True])
def test_a_space_that_the_tokenizer_writes_itself_is_not_there_twice(normalised):
    """Llama's first tokenizers put a space before every piece, in the normaliser; the later ones where none is."""
    mllm = build_class(
        "llava", [text for turn in TURNS for text in turn.values()] + ["USER: ASSISTANT: left"] * 9
    )
    if normalised:
        backend = mllm.tokenizer.backend_tokenizer
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    encoded = encode_conversation(mllm, [{"question": "Where?", "answer": "left"}], [FRAME])
    spoken = mllm.tokenizer.convert_ids_to_tokens(encoded.labels[encoded.labels != IGNORED])
    assert "".join(spoken) == "▁left</s>"

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from roboalign.actions.vocabulary import (
    ActionVocabulary,
    count_fast_tokens,
    extend_model,
    extend_tokenizer,
)
from roboalign.core.errors import RoboAlignError

N_FAST = 24


def new_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator(["Move the gripper to the red cup. <think> go </think>"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>")


def new_model(kind: str, rows: int, tied: bool):
    text = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "num_key_value_heads": 1,
        "vocab_size": rows,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": 16,
    }
    torch.manual_seed(0)
    if kind == "qwen2.5":
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
        return Qwen2_5_VLForConditionalGeneration(config)
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    return Qwen3VLForConditionalGeneration(config)


def tables(model) -> list[torch.Tensor]:
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


def test_ids_are_derived_and_survive_running_text():
    tokenizer = new_tokenizer()
    vocabulary = extend_tokenizer(tokenizer, N_FAST)
    assert len(vocabulary.fast_ids) == N_FAST == count_fast_tokens(tokenizer)
    text = "<answer>" + vocabulary.text([3, 11, 3]) + "</answer><|im_end|>"
    assert "<ACTION_START><FAST_3><FAST_11><FAST_3><ACTION_END>" in text
    ids = tokenizer.encode(text, add_special_tokens=False)
    inside = ids[ids.index(vocabulary.start_id) + 1 : ids.index(vocabulary.end_id)]
    assert vocabulary.to_fast(inside) == [3, 11, 3]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix("<|im_end|>")


def test_ids_need_not_be_contiguous():
    tokenizer = new_tokenizer()
    tokenizer.add_tokens(
        [AddedToken("<FAST_1>", normalized=False), AddedToken("<other>", normalized=False)]
    )
    # Another FAST token is there first, as in a tokenizer that was extended in two steps.
    tokenizer.add_tokens(
        [AddedToken(f"<FAST_{i}>", normalized=False) for i in (0, *range(2, N_FAST))]
    )
    vocabulary = extend_tokenizer(tokenizer, N_FAST)
    assert vocabulary.fast_ids[1] < vocabulary.fast_ids[0] < vocabulary.start_id
    assert vocabulary.fast_ids[0] - vocabulary.fast_ids[1] == 2
    assert vocabulary.to_fast([vocabulary.fast_ids[5]]) == [5]


def test_extending_again_changes_nothing():
    tokenizer = new_tokenizer()
    first = extend_tokenizer(tokenizer, N_FAST)
    size = len(tokenizer)
    assert extend_tokenizer(tokenizer, N_FAST) == first and len(tokenizer) == size
    with pytest.raises(RoboAlignError, match="already holds 24 FAST tokens, 25"):
        extend_tokenizer(tokenizer, 25)


def test_save_and_load_keep_the_ids(tmp_path):
    tokenizer = new_tokenizer()
    vocabulary = extend_tokenizer(tokenizer, N_FAST)
    tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert ActionVocabulary.from_tokenizer(again, N_FAST) == vocabulary


def test_missing_and_special_tokens_are_refused():
    tokenizer = new_tokenizer()
    with pytest.raises(
        RoboAlignError,
        match=r"26 action tokens are missing, first <ACTION_START>.*extend_tokenizer",
    ):
        ActionVocabulary.from_tokenizer(tokenizer, N_FAST)
    tokenizer.add_tokens(
        [AddedToken("<FAST_0>", special=True, normalized=False)], special_tokens=True
    )
    with pytest.raises(RoboAlignError, match="<FAST_0> is a special token"):
        extend_tokenizer(tokenizer, 1)


def test_a_token_that_swallows_an_action_token_is_refused():
    tokenizer = new_tokenizer()
    tokenizer.add_tokens([AddedToken("<answer><ACTION_START>", normalized=False)])
    with pytest.raises(RoboAlignError, match="do not keep their ids"):
        extend_tokenizer(tokenizer, 2)


def test_ids_out_of_range_are_errors():
    vocabulary = ActionVocabulary(start_id=7, end_id=3, fast_ids=(10, 5))
    assert vocabulary.to_fast([5, 10]) == [1, 0] and vocabulary.ids == {7, 3, 10, 5}
    for bad in (7, 4):
        with pytest.raises(ValueError, match=f"id {bad} is no FAST token"):
            vocabulary.to_fast([5, bad])
    for bad in (-1, 2):
        with pytest.raises(ValueError, match="outside"):
            vocabulary.text([bad])


@pytest.mark.parametrize("kind", ["qwen2.5", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("padding", [0, 10, 200])
def test_new_rows_are_the_mean_of_the_real_ones(kind, tied, padding):
    tokenizer = new_tokenizer()
    n_real = len(tokenizer)
    model = new_model(kind, n_real + padding, tied)
    before = [table.detach().clone() for table in tables(model)]
    vocabulary = extend_tokenizer(tokenizer, N_FAST)
    extend_model(model, tokenizer, vocabulary)
    inputs, outputs = tables(model)
    assert (inputs.data_ptr() == outputs.data_ptr()) == tied
    assert (
        len(inputs) == len(outputs) == max(n_real + padding, len(tokenizer))
    )  # grown or kept, never shrunk
    assert model.config.get_text_config().vocab_size == len(inputs)
    for table, old in zip((inputs, outputs), before):
        mean = old[:n_real].mean(dim=0)
        assert torch.equal(table[:n_real], old[:n_real])
        for i in sorted(vocabulary.ids):
            torch.testing.assert_close(table[i], mean, rtol=0, atol=1e-7)
        torch.testing.assert_close(
            table[len(tokenizer) :], old[len(tokenizer) :]
        )  # padding is left alone
    assert not torch.equal(before[0][:n_real].mean(dim=0), before[0][0])


@pytest.mark.parametrize("tied", [True, False])
def test_the_start_token_can_begin_as_the_mean_of_given_words(tied):
    tokenizer = new_tokenizer()
    model = new_model("qwen3", len(tokenizer), tied)
    before = [table.detach().clone() for table in tables(model)]
    vocabulary = extend_tokenizer(tokenizer, N_FAST)
    extend_model(model, tokenizer, vocabulary, start_like=["left", "right"])
    like = [
        i for word in ("left", "right") for i in tokenizer.encode(word, add_special_tokens=False)
    ]
    for table, old in zip(tables(model), before):
        torch.testing.assert_close(
            table[vocabulary.start_id], old[like].mean(dim=0), rtol=0, atol=1e-7
        )
        torch.testing.assert_close(table[vocabulary.end_id], old.mean(dim=0), rtol=0, atol=1e-7)


def test_extending_a_trained_model_again_changes_nothing(tmp_path):
    tokenizer = new_tokenizer()
    model = new_model("qwen3", len(tokenizer), tied=False)
    vocabulary = extend_tokenizer(tokenizer, N_FAST)
    extend_model(model, tokenizer, vocabulary)
    with torch.no_grad():
        model.get_input_embeddings().weight[vocabulary.start_id] += 1.0  # training moved a row
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    before = [table.detach().clone() for table in tables(loaded)]
    extend_model(loaded, tokenizer, vocabulary)
    assert all(torch.equal(a, b) for a, b in zip(tables(loaded), before))
    other = ActionVocabulary(vocabulary.start_id, vocabulary.end_id, vocabulary.fast_ids[:-1])
    with pytest.raises(RoboAlignError, match="other action tokens"):
        extend_model(loaded, tokenizer, other)


def test_bfloat16_rows():
    tokenizer = new_tokenizer()
    n_real = len(tokenizer)
    model = new_model("qwen3", n_real, tied=True).to(torch.bfloat16)
    extend_model(model, tokenizer, extend_tokenizer(tokenizer, N_FAST))
    table = model.get_input_embeddings().weight
    assert table.dtype == torch.bfloat16
    torch.testing.assert_close(table[-1], table[:n_real].float().mean(dim=0).bfloat16())

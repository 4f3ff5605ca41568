"""A GGUF text model and an ONNX encoder joined as a LLaVA: exact weights, one template, every check of a backbone."""

import copy
import functools
from pathlib import Path
from typing import Any

import backbone_checks
import backbone_models
import numpy as np
import pytest
import torch
from torch import nn

from roboalign.align.trained import keep_connector_alone
from roboalign.core.errors import RoboAlignError
from roboalign.mllm.encode import collate, encode_prompt
from roboalign.mllm.join import join, read_dinov2, read_gguf
from roboalign.mllm.load import Mllm, load_mllm, save_mllm
from roboalign.mllm.tiny import TinyConfig, build_tiny
from tools import small

gguf = pytest.importorskip("gguf", reason="optional: requirements-small.lock")
onnx = pytest.importorskip("onnx", reason="optional: requirements-small.lock")
from onnx.reference import ReferenceEvaluator  # noqa: E402
from small_files import TEMPLATE, write_gguf, write_onnx  # noqa: E402

MESSAGES = [
    {"role": "user", "content": "Where is the  27?"},
    {"role": "assistant", "content": "left"},
    {"role": "user", "content": "And now?"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("small")


@pytest.fixture(scope="module")
def text(folder: Path) -> nn.Module:
    """What text.gguf holds."""
    return write_gguf(folder / "text.gguf", backbone_models.TEXTS)


@pytest.fixture(scope="module")
def network(folder: Path) -> nn.Module:
    """What vision.onnx holds."""
    return write_onnx(folder / "vision.onnx")


@pytest.fixture
def joined(folder: Path, text: nn.Module, network: nn.Module) -> Mllm:
    return join(
        *read_gguf(folder / "text.gguf"), read_dinov2(folder / "vision.onnx"), image_size=28
    )


def test_the_text_models_weights_are_the_files_numbers_to_the_bit(
    folder: Path, text: nn.Module
) -> None:
    read, _ = read_gguf(folder / "text.gguf")
    wanted = dict(text.named_parameters())
    assert wanted.keys() == dict(read.named_parameters()).keys()
    for name, parameter in read.named_parameters():
        assert torch.equal(parameter, wanted[name]), name
    assert read.lm_head.weight is read.get_input_embeddings().weight
    ids = torch.arange(40)[None]
    assert torch.equal(
        read(ids).logits, text(ids).logits
    )  # the rotary base and the norms' epsilon are read too


def test_the_tokenizer_takes_digits_one_by_one_and_loses_nothing(
    folder: Path, text: nn.Module
) -> None:
    _, tokenizer = read_gguf(folder / "text.gguf")
    said = "Where is the  27?\n\nx1y2, <think>left</think>"
    ids = tokenizer(said)["input_ids"]
    assert tokenizer.decode(ids) == said
    pieces = tokenizer.convert_ids_to_tokens(ids)
    assert "ĠĠ" in pieces or pieces.count("Ġ") >= 2, (
        "the spaces before a number are cut off before it"
    )
    assert [piece for piece in pieces if any(c.isdigit() for c in piece)] == ["2", "7", "1", "2"]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


def test_the_encoder_is_the_files_own_graph(folder: Path, network: Any) -> None:
    read = read_dinov2(folder / "vision.onnx")
    wanted = network.backbone.state_dict()
    assert wanted.keys() == read.state_dict().keys()
    for name, value in read.state_dict().items():
        assert torch.equal(value, wanted[name]), name
    pixels = np.random.default_rng(0).normal(size=(2, 3, 28, 28)).astype(np.float32)
    run = ReferenceEvaluator(str(folder / "vision.onnx")).run(None, {"input_image": pixels})[0]
    with torch.no_grad():
        own = network.decoder(read(torch.from_numpy(pixels)).last_hidden_state)
    np.testing.assert_allclose(own.numpy(), run, atol=1e-4, rtol=1e-4)


def test_without_an_image_the_joined_model_is_the_text_model(
    folder: Path, text: Any, joined: Mllm
) -> None:
    rendered = joined.processor.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True
    )
    _, tokenizer = read_gguf(folder / "text.gguf")
    assert tokenizer.chat_template == TEMPLATE
    assert rendered == tokenizer.apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True
    )
    ids = joined.tokenizer(rendered, return_tensors="pt")["input_ids"]
    assert ids.tolist() == [tokenizer(rendered)["input_ids"]]
    with torch.no_grad():
        logits = joined.model(input_ids=ids).logits
        assert torch.equal(logits[..., :-1], text(ids).logits) and logits.shape[-1] == len(
            joined.tokenizer
        )
    assert joined.model.lm_head.weight is joined.model.get_input_embeddings().weight
    assert "<image>" in joined.tokenizer.all_special_tokens


def test_image_tokens_are_the_projected_patches_of_the_whole_image(
    joined: Mllm, tmp_path: Path
) -> None:
    save_mllm(joined, tmp_path / "joined")
    opened = load_mllm(tmp_path / "joined")
    wide = np.zeros((28, 56, 3), dtype=np.uint8)
    wide[:, 42:] = 255  # what a crop to the middle would cut off
    prompts = [encode_prompt(opened, "Where?", [image]) for image in (wide, wide[:, :28])]
    assert [(one.input_ids == opened.processor.image_token_id).sum() for one in prompts] == [4, 4]
    pixels = collate(opened, prompts)["pixel_values"]
    assert pixels.shape == (2, 3, 28, 28) and pixels[0].amax() > 2 > pixels[1].amax()
    encoder = opened.model.model.vision_tower
    with torch.no_grad():
        features = torch.stack(list(opened.model.get_image_features(pixels).pooler_output))
        patches = encoder(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        torch.testing.assert_close(features, opened.model.model.multi_modal_projector(patches))
    assert torch.equal(encoder.layernorm.weight, joined.model.model.vision_tower.layernorm.weight)


def test_the_seed_fixes_the_projector(folder: Path, text: nn.Module, network: nn.Module) -> None:
    made = [
        join(
            *read_gguf(folder / "text.gguf"),
            read_dinov2(folder / "vision.onnx"),
            image_size=28,
            seed=seed,
        )
        for seed in (0, 0, 1)
    ]
    weights = [one.model.model.multi_modal_projector.linear_1.weight for one in made]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("title", backbone_checks.CHECKS)
def test_the_joined_model_passes_every_check_of_a_backbone(
    title: str, joined: Mllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(name: str, texts: Any, *, tied: bool = True, seed: int = 0) -> Mllm:
        made = copy.deepcopy(joined)
        torch.manual_seed(seed)
        if not tied:
            made.model.config.tie_word_embeddings = (
                made.model.config.text_config.tie_word_embeddings
            ) = False
            made.model = type(made.model)(made.model.config).eval()
            made.model.generation_config = joined.model.generation_config
        else:
            made.model.tie_weights()
        with (
            torch.no_grad()
        ):  # its own projector says too little for greedy answers to depend on the image
            for parameter in made.model.model.multi_modal_projector.parameters():
                parameter.normal_(0, 0.2)
        return made

    monkeypatch.setattr(backbone_models, "build_class", build)
    monkeypatch.setattr(backbone_checks, "WIDTH", joined.model.config.text_config.hidden_size)
    assert backbone_checks.run_check(backbone_checks.CHECKS[title], "llava", tmp_path).startswith(
        "passes"
    )


def test_the_connector_alone_learns(joined: Mllm) -> None:
    count = keep_connector_alone(joined.model)
    learning = {
        name for name, parameter in joined.model.named_parameters() if parameter.requires_grad
    }
    assert learning == {
        f"model.multi_modal_projector.linear_{i}.{part}"
        for i in (1, 2)
        for part in ("weight", "bias")
    }
    assert count == 64 * 64 + 64 + 64 * 64 + 64
    qwen = build_tiny(TinyConfig(vocab_size=500), backbone_models.TEXTS)
    with pytest.raises(RoboAlignError, match="no projector apart from"):
        keep_connector_alone(qwen.model)


def test_files_that_cannot_be_read(
    folder: Path, text: nn.Module, network: Any, tmp_path: Path
) -> None:
    with pytest.raises(RoboAlignError, match="does not exist"):
        read_gguf(tmp_path / "none.gguf")
    for name, read in (("text.gguf", read_gguf), ("vision.onnx", read_dinov2)):
        whole = (folder / name).read_bytes()
        for bad in (b"nothing of the kind", whole[: len(whole) // 2], whole[:40]):
            (tmp_path / name).write_bytes(bad)
            with pytest.raises(RoboAlignError) as error:
                read(tmp_path / name)
            assert (
                error.value.where == str(tmp_path / name)
                and "install the package again" in error.value.fix
            )
    model = onnx.load(str(folder / "vision.onnx"))
    kept = [
        one
        for one in model.graph.initializer
        if one.name != "backbone.encoder.layer.1.mlp.fc1.bias"
    ]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, str(tmp_path / "vision.onnx"))
    with pytest.raises(RoboAlignError, match=r"layer\.1\.mlp\.fc1\.bias"):
        read_dinov2(tmp_path / "vision.onnx")


def test_a_tokenizer_of_another_kind_is_refused(
    folder: Path, text: nn.Module, tmp_path: Path
) -> None:
    whole = (folder / "text.gguf").read_bytes()
    assert whole.count(b"smollm") == 1
    (tmp_path / "other.gguf").write_bytes(whole.replace(b"smollm", b"qwen22"))
    with pytest.raises(RoboAlignError, match="of the kind 'qwen22'"):
        read_gguf(tmp_path / "other.gguf")


def test_the_command(
    folder: Path,
    text: Any,
    network: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    for package, file in (("made_text", "text.gguf"), ("made_vision", "vision.onnx")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(
            "raise RuntimeError('a package is not imported')"
        )
        (tmp_path / package / file).symlink_to(folder / file)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(small, "TEXT", ("made_text", "text.gguf"))
    monkeypatch.setattr(small, "VISION", ("made_vision", "vision.onnx"))
    assert small.main(["--out", str(tmp_path / "out"), "--image-size", "30"]) == 2
    assert (
        "no multiple of the encoder's patches of 14" in capsys.readouterr().err
        and not (tmp_path / "out").exists()
    )
    assert small.main(["--out", str(tmp_path / "out"), "--image-size", "42"]) == 0
    opened = load_mllm(tmp_path / "out")
    prompt = encode_prompt(opened, "Where?", [np.zeros((30, 30, 3), dtype=np.uint8)])
    assert (prompt.input_ids == opened.processor.image_token_id).sum() == 9
    assert (
        small.main(["--out", str(tmp_path / "out")]) == 2
        and "is there already" in capsys.readouterr().err
    )
    monkeypatch.setattr(small, "TEXT", ("no_such_package", "text.gguf"))
    assert (
        small.main(["--out", str(tmp_path / "more")]) == 2
        and "make setup-small" in capsys.readouterr().err
    )


def test_the_real_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2 answers, and the ViT's hidden states are those of the file's own graph."""
    # transformers parses the header of the file three times, which takes most of the test.
    monkeypatch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
    try:
        sources = small.packaged(*small.TEXT), small.packaged(*small.VISION)
    except RoboAlignError:
        pytest.skip("optional: requirements-small.lock")
    text, tokenizer = read_gguf(sources[0])
    chat: Any = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
    )
    answer = text.generate(**chat, max_new_tokens=12, do_sample=False)[
        0, chat["input_ids"].shape[1] :
    ]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    vision = read_dinov2(sources[1])
    onnx.utils.extract_model(
        str(sources[1]),
        str(tmp_path / "encoder.onnx"),
        ["input_image"],
        ["/backbone/layernorm/Add_1_output_0"],
    )
    ramp = np.linspace(-2, 2, 224, dtype=np.float32)
    pixels = np.stack([ramp[:, None] + 0 * ramp, ramp + 0 * ramp[:, None], np.outer(ramp, ramp)])[
        None
    ]
    run = ReferenceEvaluator(str(tmp_path / "encoder.onnx")).run(None, {"input_image": pixels})[0]
    with torch.no_grad():
        own = vision(torch.from_numpy(pixels)).last_hidden_state.numpy()
    assert np.abs(own - run).max() < 1e-3 and np.abs(run).max() > 1
    mllm = join(text, tokenizer, vision, image_size=224)
    prompt = encode_prompt(mllm, "Where?", [np.zeros((224, 224, 3), dtype=np.uint8)])
    assert (prompt.input_ids == mllm.processor.image_token_id).sum() == 256
    assert sum(p.numel() for p in mllm.model.parameters()) == 157_125_888

"""Other people's model folders: each damage is one message that names the file, and no code of a folder runs."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path
from roboalign.core.processes import within
from roboalign.mllm import encode
from roboalign.mllm.encode import collate, encode_prompt
from roboalign.mllm.load import load_mllm, save_mllm
from roboalign.mllm.tiny_classes import build_class

TEXTS = ["Where is the red block? The gripper moves left."] * 9
IMAGE = np.zeros((32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_mllm(build_class("qwen2_5_vl", TEXTS), folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change(path: Path, **values) -> None:
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def refused(folder: Path) -> str:
    with pytest.raises(RoboAlignError) as caught:
        mllm = load_mllm(folder)
        encode_prompt(mllm, "Where?", [IMAGE])
    return str(caught.value)


def test_code_of_a_folder_is_never_run_nor_asked_about(folder, monkeypatch):
    ran = folder / "ran"
    (folder / "configuration_custom.py").write_text(f"open({str(ran)!r}, 'w')")
    change(
        folder / "config.json",
        model_type="internvl_chat",
        auto_map={"AutoConfig": "configuration_custom.Custom"},
    )
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    said = refused(folder)
    assert "config.json" in said and "code of their own are not supported" in said
    assert not ran.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_named(folder, name):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5\n"
    (folder / name).write_text(pointer)
    said = refused(folder)
    assert f"{name}: is a Git LFS pointer" in said and "git lfs pull" in said


def test_pickled_weights_are_not_opened(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n(S'true'\ntR.")
    assert "pickles (pytorch_model.bin)" in refused(folder)


def test_a_newer_tokenizer_file_is_told_from_a_cut_one(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["type"] = "OfTheFuture"
    path.write_text(json.dumps(content))
    assert "tokenizer.json: tokenizers 0" in refused(folder)
    path.write_text(path.read_text()[:500])
    assert "tokenizer.json: cannot be read as JSON" in refused(folder)


def test_padding_is_with_the_end_token_where_no_other_is_named(folder):
    expected = load_mllm(folder)
    change(folder / "tokenizer_config.json", pad_token=...)
    mllm = load_mllm(folder)
    assert mllm.tokenizer.pad_token_id == mllm.tokenizer.eos_token_id
    # What is computed does not depend on it: padding is masked.
    questions = ("Where?", "Where is the red block?")
    outputs = []
    for one in (mllm, expected):
        batch = collate(one, [encode_prompt(one, question, [IMAGE]) for question in questions])
        mask = batch.pop("attention_mask")
        del batch["labels"]
        with torch.no_grad():
            logits = one.model(**batch, attention_mask=mask).logits
        outputs.append(logits[mask.bool()])
    torch.testing.assert_close(*outputs)


def test_no_token_to_pad_with_is_named(folder):
    change(folder / "tokenizer_config.json", pad_token=..., eos_token=...)
    assert "pad_token" in refused(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_the_template_is_found_in_a_file_of_its_own(folder, name):
    mllm = load_mllm(folder)
    template = mllm.processor.chat_template
    remove_templates(folder)
    text = template if name.endswith("jinja") else json.dumps({"chat_template": template})
    (folder / name).write_text(text)
    assert load_mllm(folder).processor.chat_template == template


def test_the_processors_template_wins_over_the_tokenizers(folder):
    template = load_mllm(folder).processor.chat_template
    remove_templates(folder)
    (folder / "chat_template.jinja").write_text(template)
    change(folder / "tokenizer_config.json", chat_template="text only: {{ messages }}")
    assert load_mllm(folder).processor.chat_template == template


def test_no_template_anywhere_is_one_message(folder):
    remove_templates(folder)
    assert "there is no chat template in chat_template.jinja" in refused(folder)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "SecurityError"),
        ("{{ raise_exception('no images here') }}", "no images here"),
        ("{% for %}", "TemplateSyntaxError"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "Timeout",
        ),
    ],
)
def test_a_template_that_cannot_be_rendered(folder, template, says, monkeypatch):
    monkeypatch.setattr(encode, "TEMPLATE_SECONDS", 0.5)
    remove_templates(folder)
    (folder / "chat_template.jinja").write_text(template)
    said = refused(folder)
    assert "chat template cannot be rendered" in said and says in said


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"dtype": ""}),
        ("config.json", {"vision_config": {"spatial_merge_size": 1.5}}),
        ("config.json", {"text_config": []}),
        ("tokenizer_config.json", {"eos_token": [1, 2]}),
        ("tokenizer_config.json", {"added_tokens_decoder": 7}),
        ("processor_config.json", []),
        ("processor_config.json", {"image_processor": 3}),
        ("generation_config.json", [None]),
        ("config.json", "text"),
        ("config.json", {"model_type": []}),
        ("config.json", {"model_type": {}}),
    ],
)
def test_damaged_settings_are_one_message(folder, file, values):
    path = folder / file
    content = json.loads(path.read_text()) | values if isinstance(values, dict) else values
    path.write_text(json.dumps(content))
    assert str(folder) in refused(folder)


@pytest.mark.parametrize("length", ["x", {}, [], True])
def test_a_length_that_is_no_number_is_named(folder, length):
    path = folder / "tokenizer_config.json"
    change(path, model_max_length=length)
    assert refused(folder).startswith(
        f"{path}: model_max_length is {length!r}, not a number of tokens"
    )


@pytest.mark.parametrize("length", [None, 2, 1e30])
def test_texts_keep_their_tokens_whatever_length_is_said(saved, folder, length):
    change(folder / "tokenizer_config.json", model_max_length=length)
    tokens = [load_mllm(one).tokenizer(TEXTS[0])["input_ids"] for one in (saved, folder)]
    assert tokens[0] == tokens[1] and len(tokens[0]) > 2


@pytest.mark.parametrize("name", ["chat_template.jinja", "model.safetensors", "notes.txt"])
def test_a_pipe_in_the_folder_is_refused_at_once(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    said = within(20, lambda: refused(folder))
    assert said.startswith(f"{folder / name}: this is not a plain file")


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_changed_settings_load_or_are_one_message(saved, tmp_path_factory, data):
    """A value of one settings file becomes something else: the model opens, or RoboAlignError says what is wrong."""
    folder = tmp_path_factory.mktemp("mutated") / "model"
    shutil.copytree(saved, folder)
    file = data.draw(
        st.sampled_from(["config.json", "tokenizer_config.json", "processor_config.json"])
    )
    content = json.loads((folder / file).read_text())
    at = content
    while True:
        key = data.draw(st.sampled_from(sorted(at)))
        if not isinstance(at[key], dict) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    at[key] = data.draw(st.sampled_from([None, [], {}, "", "x", -1, 0, 1.5, True, [1, 2]]))
    (folder / file).write_text(json.dumps(content))
    try:
        load_mllm(folder)
    except RoboAlignError as error:
        assert str(folder) in str(error)
    shutil.rmtree(folder)


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
@pytest.mark.parametrize("value", [None, {}, [], "", 0])
def test_an_empty_section_is_refused_before_a_default_model_is_built(folder, section, value):
    change(folder / "config.json", **{section: value})
    assert refused(folder).startswith(f"{folder / 'config.json'}: `{section}` is empty")


def remove_templates(folder: Path) -> None:
    for name in ("chat_template.jinja", "chat_template.json"):
        (folder / name).unlink(missing_ok=True)
    for name in ("tokenizer_config.json", "processor_config.json"):
        change(folder / name, chat_template=...)


def test_files_get_the_mode_that_the_umask_asks_for(saved, tmp_path):
    before = os.umask(0o027)
    try:
        save_mllm(load_mllm(saved), tmp_path / "model")
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_text("text")
            temporary.chmod(0o600)
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {0o640}
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_work_within_its_time():
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)

    def forever():
        while True:
            pass

    with pytest.raises(TimeoutError):
        within(0.1, forever)

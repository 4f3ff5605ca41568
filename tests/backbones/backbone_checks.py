"""Which classes of backbone pass which check, on small random models of each class. Nothing is fetched.

    python tests/backbones/backbone_checks.py > docs/reference/backbones.md

A check returns a note for its cell of the table, often empty, and raises where the class fails it. The tests run the
same checks and compare the page.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from backbone_models import FAST, FRAMES, TASKS, TURNS, conversations, model_of, questions
from backbone_page import page

from roboalign.actions.normalize import ActionStats
from roboalign.actions.vocabulary import extend_model, extend_tokenizer
from roboalign.align.grpo.config import RlConfig
from roboalign.align.grpo.logprobs import completion_statistics
from roboalign.align.grpo.loss import clipped_loss, group_advantages
from roboalign.align.grpo.rollout import batch_of, roll_out
from roboalign.align.grpo.train import train_grpo
from roboalign.align.sft import SftConfig, train_sft
from roboalign.align.trained import vision_parameters
from roboalign.core.files import read_jsonl
from roboalign.episodes.episode import Camera, Episode, encode_png
from roboalign.mllm.encode import (
    IGNORED,
    Prompt,
    collate,
    encode_conversation,
    encode_prompt,
    end_ids,
)
from roboalign.mllm.generate import generate
from roboalign.mllm.hidden import hidden_states, text_layers, truncate_layers
from roboalign.mllm.load import load_mllm, save_mllm
from roboalign.mllm.tiny_classes import BUILDERS, DEPTH, WIDTH
from roboalign.vla.features import FeatureConfig, View, compute_features
from roboalign.vla.head import FlowMatchingHead, HeadConfig, HeadShape
from roboalign.vla.head_policy import HeadPolicy
from roboalign.vla.policy import Policy

LAYER = 2
Check = Callable[[str, Path], str]


def check_vocabulary(name: str, folder: Path) -> str:
    """Action tokens are ordinary tokens with rows of their own; embeddings that were tied stay tied, others not."""
    for tied in (True, False):
        mllm = model_of(name, tied=tied, actions=False)
        old = len(mllm.tokenizer)
        before = mllm.model.get_output_embeddings().weight[:old].detach().clone()
        mllm.vocabulary = extend_tokenizer(mllm.tokenizer, FAST.vocab_size)
        extend_model(mllm.model, mllm.tokenizer, mllm.vocabulary)
        inputs, outputs = (
            mllm.model.get_input_embeddings().weight,
            mllm.model.get_output_embeddings().weight,
        )
        _require((inputs is outputs) == tied, f"tie_word_embeddings {tied} is not kept")
        _require(torch.equal(outputs[:old], before), "the rows of the old tokens changed")
        new = outputs[sorted(mllm.vocabulary.ids)]
        torch.testing.assert_close(new, before.mean(0).expand_as(new))
        text = mllm.vocabulary.text(list(range(FAST.vocab_size)))
        ids = mllm.tokenizer(text, add_special_tokens=False)["input_ids"]
        wanted = [mllm.vocabulary.start_id, *mllm.vocabulary.fast_ids, mllm.vocabulary.end_id]
        _require([i for i in ids if i in mllm.vocabulary.ids] == wanted, "ids are not kept")
        _require(
            mllm.tokenizer.decode(ids, skip_special_tokens=True).strip() == text,
            "decoding loses action tokens",
        )
    return ""


def check_template(name: str, folder: Path) -> str:
    """Ids equal the processor's own up to the answer; the loss is on the answers and the token that ends them alone."""
    mllm = model_of(name)
    whole, prompt = (
        encode_conversation(mllm, TURNS, [FRAMES[0]]),
        encode_prompt(mllm, TURNS[0]["question"], [FRAMES[0]]),
    )
    content = [{"type": "image"}, {"type": "text", "text": TURNS[0]["question"]}]
    message = {"role": "user", "content": content}
    text = mllm.processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    own = mllm.processor(text=[text], images=[[FRAMES[0]]])["input_ids"][0]
    _require(prompt.input_ids.tolist() == list(own), "the prompt's ids are not the processor's")
    _require(
        whole.input_ids[: len(own)].tolist() == list(own), "training and serving prompts differ"
    )
    spoken = whole.labels[whole.labels != IGNORED]
    ends = [int(token) for token in spoken if int(token) in end_ids(mllm)]
    _require(len(ends) == 2 and ends[0] == ends[1], "an answer is not closed by one end token")
    end = mllm.tokenizer.convert_ids_to_tokens(ends[0])
    said = mllm.tokenizer.decode(spoken).replace(end + " ", end).strip()
    _require(said == "".join(turn["answer"] + end for turn in TURNS), f"the loss is on {said!r}")
    batch = collate(mllm, [whole])
    with torch.no_grad():
        output = mllm.model(**batch)
    logp = output.logits[0, :-1].log_softmax(-1)
    places = (batch["labels"][0, 1:] != IGNORED).nonzero()[:, 0]
    expected = -logp[places, batch["labels"][0, 1:][places]].mean()
    torch.testing.assert_close(output.loss, expected)
    return f"ends with `{end}`"


def check_images(name: str, folder: Path) -> str:
    """Images of three sizes become as many tokens as the model makes features of them; the model itself compares."""
    mllm, counts = model_of(name), []
    for height, width in ((32, 32), (48, 64), (24, 96)):
        frame = np.resize(FRAMES, (height, width, 3))
        batch = collate(mllm, [encode_prompt(mllm, "Where?", [frame])])
        with torch.no_grad():
            mllm.model(**batch)
        counts.append(int((batch["input_ids"] == mllm.processor.image_token_id).sum()))
    return f"{counts[0]}, {counts[1]}, {counts[2]} tokens"


def check_generation(name: str, folder: Path) -> str:
    """Greedy answers in a batch, padded on the left, equal those of each prompt alone; other images, other answers."""
    mllm = model_of(name)
    together = generate(mllm, questions(), samples=2, max_new_tokens=8, temperature=0)
    alone = [
        generate(mllm, [one], max_new_tokens=8, temperature=0).tokens[0][0] for one in questions()
    ]
    _require([rows[0] for rows in together.tokens] == alone, "the batch changes the answers")
    _require([rows[1] for rows in together.tokens] == alone, "samples at temperature 0 differ")
    _require(len({tuple(row) for row in alone}) > 1, "image and question do not matter")
    return ""


def check_hidden(name: str, folder: Path) -> str:
    """Hidden states at layer k equal the whole model's; padding is zero and changes nothing."""
    mllm = model_of(name)
    states, mask = hidden_states(mllm, questions(), LAYER)
    _require(not states[~mask].any() and not mask.all(), "padding is not masked")
    for row, one in enumerate(questions()):
        batch = collate(mllm, [encode_prompt(mllm, one.question, one.images)])
        del batch["labels"]
        with torch.no_grad():
            expected = mllm.model(**batch, output_hidden_states=True).hidden_states[LAYER][0]
        torch.testing.assert_close(states[row][mask[row]], expected, atol=1e-4, rtol=1e-4)
    other = Prompt(questions()[0].question, (255 - FRAMES[0],))
    seen = (hidden_states(mllm, [other], LAYER)[0][0, -1] - states[0][mask[0]][-1]).abs().max()
    _require(bool(seen > 1e-3), "the image is not seen")
    return ""


def check_truncation(name: str, folder: Path) -> str:
    """With the layers above k dropped for good, the hidden states are the same to the bit."""
    mllm = model_of(name)
    expected, _ = hidden_states(mllm, questions(), LAYER)
    parameters = sum(p.numel() for p in mllm.model.parameters())
    truncate_layers(mllm, LAYER)
    _require(len(text_layers(mllm)) == LAYER, "layers are left")
    _require(sum(p.numel() for p in mllm.model.parameters()) < parameters, "no memory is freed")
    _require(
        torch.equal(hidden_states(mllm, questions(), LAYER)[0], expected), "the states changed"
    )
    return ""


def check_saving(name: str, folder: Path) -> str:
    """Through a folder and back: the same logits, pixels and vocabulary, tied or not."""
    for tied in (True, False):
        mllm = model_of(name, tied=tied)
        save_mllm(mllm, folder / f"{name}-{tied}")
        loaded = load_mllm(folder / f"{name}-{tied}")
        _require(loaded.vocabulary == mllm.vocabulary, "the action vocabulary is not found again")
        batches = [
            collate(one, [encode_prompt(one, q.question, q.images) for q in questions()])
            for one in (mllm, loaded)
        ]
        _require(
            all(torch.equal(batches[1][key], value) for key, value in batches[0].items()),
            "inputs differ",
        )
        with torch.no_grad():
            logits = [one.model(**batch).logits for one, batch in zip((mllm, loaded), batches)]
        _require(torch.equal(*logits), "logits differ")
    return ""


def check_sft(name: str, folder: Path) -> str:
    """SFT lowers the loss, learns the action tokens' rows and leaves the frozen vision part as it was."""
    losses = []
    for checkpointing in (False, True):
        mllm = model_of(name)
        assert mllm.vocabulary is not None
        new = sorted(mllm.vocabulary.ids)
        vision = {
            key: value.detach().clone() for key, value in vision_parameters(mllm.model).items()
        }
        rows = mllm.model.get_input_embeddings().weight[new].detach().clone()
        config = SftConfig(
            learning_rate=1e-3,
            max_steps=3,
            batch_size=6,
            micro_batch_size=3,
            warmup_ratio=0,
            log_every=1,
            gradient_checkpointing=checkpointing,
        )
        out = folder / f"{name}-sft-{checkpointing}"
        train_sft(mllm, conversations("direct"), config, out)
        losses.append([record["loss"] for record in read_jsonl(out / "metrics.jsonl")])
        now = vision_parameters(mllm.model)
        _require(
            all(torch.equal(now[key], value) for key, value in vision.items()),
            "the vision part was trained",
        )
        trained = mllm.model.get_input_embeddings().weight[new]
        _require(bool((trained != rows).any(dim=1).all()), "an action token's row was not trained")
    _require(losses[0][-1] < losses[0][0], f"the loss does not fall: {losses[0]}")
    _require(
        bool(np.allclose(losses[0], losses[1], rtol=1e-4)),
        f"with checkpointing: {losses[1]}, not {losses[0]}",
    )
    return ""


def check_grpo(name: str, folder: Path) -> str:
    """The trainer's log-probabilities are the sampler's, prompts shared or not; a step lowers the clipped loss."""
    mllm = model_of(name)
    rollout = roll_out(
        mllm,
        FAST,
        conversations("think")[:3],
        samples=4,
        max_new_tokens=6,
        temperature=1.0,
        preset="paper",
        seed=0,
    )
    batch = batch_of(mllm, rollout, 0, 3)
    kept = batch.mask.bool()
    for shared in (True, False):
        logp = completion_statistics(
            mllm.model,
            batch.prompts,
            batch.completions,
            batch.mask,
            images=batch.images,
            temperature=1.0,
            share_prompt=shared,
        ).logp
        torch.testing.assert_close(logp[kept], batch.old_logp[kept], atol=1e-4, rtol=1e-4)
    # A random model never meets the format: these rewards stand in, so that there is something to follow.
    advantages = group_advantages(torch.arange(12.0) % 4, 4)
    optimizer, losses = torch.optim.SGD(mllm.model.parameters(), lr=1e-3), []
    for _ in range(2):
        logp = completion_statistics(
            mllm.model,
            batch.prompts,
            batch.completions,
            batch.mask,
            images=batch.images,
            temperature=1.0,
        ).logp
        loss = clipped_loss(logp, batch.old_logp, advantages, batch.mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    _require(losses[1] < losses[0], f"the loss does not fall: {losses}")
    return _check_grpo_trainer(name, folder)


def _check_grpo_trainer(name: str, folder: Path) -> str:
    """One rollout of the whole trainer, with replay so that the gradient is not zero."""
    mllm = model_of(name)
    before = mllm.model.get_output_embeddings().weight.detach().clone()
    vision = {key: value.detach().clone() for key, value in vision_parameters(mllm.model).items()}
    config = RlConfig(
        learning_rate=1e-3,
        prompts_per_rollout=2,
        prompts_per_update=2,
        micro_batch_size=1,
        samples=2,
        updates=1,
        max_new_tokens=4,
        replay_weight=1.0,
        replay_batch=2,
        freeze_vision=True,
    )
    out = folder / f"{name}-grpo"
    train_grpo(mllm, FAST, conversations("think"), config, out, replay=conversations("direct"))
    _require(
        not torch.equal(mllm.model.get_output_embeddings().weight, before), "nothing was trained"
    )
    now = vision_parameters(mllm.model)
    _require(
        all(torch.equal(now[key], value) for key, value in vision.items()),
        "the vision part was trained",
    )
    _require((out / "model" / "config.json").is_file(), "no model was written")
    return ""


def check_policy(name: str, folder: Path) -> str:
    """Features on disk equal those of serving, and a policy opened from its folder acts in a batch as alone."""
    save_mllm(model_of(name), folder / f"{name}-backbone")
    mllm, view = load_mllm(folder / f"{name}-backbone"), View(layer=LAYER, cameras=("front",))
    episode = Episode(
        "episode",
        "task",
        TASKS[1],
        10.0,
        np.zeros((3, 2), np.float32),
        np.zeros((3, 1), np.float32),
        {"front": [encode_png(frame) for frame in FRAMES[:3]]},
        {"front": Camera("front", 32, 32)},
    )
    store = compute_features(
        mllm, [episode], view, FeatureConfig(batch_size=2), folder / f"{name}-features"
    )
    stored, _ = store.gather(np.arange(3))
    served, _ = view.encode(mllm, [view.prompt({"front": frame}, TASKS[1]) for frame in FRAMES[:3]])
    torch.testing.assert_close(
        stored.float(), served.float(), atol=2e-3, rtol=2e-3
    )  # rounded to float16
    torch.manual_seed(0)
    shape = HeadShape(vlm_width=WIDTH, action_dim=2, state_dim=1, horizon=4)
    head = FlowMatchingHead(
        HeadConfig(width=32, layers=2, heads=2, vlm_inner_width=32, vlm_heads=2), shape
    )
    stats = ActionStats.fit(np.random.default_rng(2).normal(size=(50, 2)).astype(np.float32))
    HeadPolicy(mllm, head, view, stats, None).save(folder / f"{name}-policy")
    policy = Policy.load(folder / f"{name}-policy")
    _require(len(text_layers(policy.mllm)) == LAYER < DEPTH, "the layers above are kept")
    seen = [
        SimpleNamespace(images={"front": frame}, state=np.zeros(1), instruction=task)
        for frame, task in zip(FRAMES, TASKS)
    ]
    together = policy.act_batch(seen, [(i,) for i in range(3)])
    alone = np.stack([policy.act(one, (i,)) for i, one in enumerate(seen)])
    _require(together.shape == (3, 4, 2) and bool(np.isfinite(together).all()), "no chunk")
    np.testing.assert_allclose(together, alone, atol=5e-3)
    return ""


CHECKS: dict[str, Check] = {
    "action tokens": check_vocabulary,
    "chat template, loss on answers": check_template,
    "image sizes": check_images,
    "generation in a batch": check_generation,
    "hidden states of layer k": check_hidden,
    "truncation": check_truncation,
    "save and load": check_saving,
    "SFT, frozen vision": check_sft,
    "GRPO": check_grpo,
    "features and policy": check_policy,
}


def run_check(check: Check, name: str, folder: Path) -> str:
    """The cell of one class and check: "passes" with a note, or "fails" with the first line of why."""
    try:
        note = check(name, folder)
    except Exception as error:  # whatever goes wrong inside a class's own code is the finding
        return f"**fails**: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
    return f"passes; {note}" if note else "passes"


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


def table(folder: Path) -> dict[str, dict[str, str]]:
    """check -> class -> cell."""
    return {
        title: {name: run_check(check, name, folder) for name in BUILDERS}
        for title, check in CHECKS.items()
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(
            page(
                table(Path(scratch)),
                {title: check.__doc__ or "" for title, check in CHECKS.items()},
            ),
            end="",
        )

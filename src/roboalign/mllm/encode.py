"""Turn a conversation about one image into token ids, labels and pixels, for both training and
serving.

A conversation is tokenized in pieces, cut where the assistant begins to speak. The ids before a cut
are then exactly the ids of the prompt that the model must continue at inference, whatever a
tokenizer merges across the cut.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from roboalign.core.errors import RoboAlignError
from roboalign.core.processes import within
from roboalign.mllm.load import Mllm

IGNORED = -100  # the label that the loss leaves out
_REASONING = re.compile(r"<think>(?!\s*</think>).*?</think>", re.DOTALL)
TEMPLATE_SECONDS = 10.0
"""Longest time that a chat template may take; published ones take milliseconds."""
_PLACE = (
    # placeholder for a text while the template is rendered; private-use characters
    "\ue000text\ue000"
)


@dataclass(frozen=True)
class Prompt:
    """A question about an image; `image` is uint8 [H, W, 3], RGB."""

    question: str
    image: np.ndarray


@dataclass(frozen=True)
class Encoded:
    """Hold one tokenized conversation. Pixels are made per batch (`collate`), so that a data set in
    memory stays small."""

    input_ids: np.ndarray
    """int64 [L], the image's tokens included."""
    labels: np.ndarray
    """int64 [L], IGNORED except on what the assistant says, its end-of-turn token included."""
    image: np.ndarray
    """uint8 [H, W, 3]."""
    after_reasoning: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """bool [L], true on what a reply says after its `<think>...</think>`, if that part is not
    empty; length 0 for anything not made by encode_conversation."""


def encode_conversation(
    mllm: Mllm, turns: Sequence[Mapping[str, Any]], image: np.ndarray | Image.Image
) -> Encoded:
    """Tokenize a conversation of one or more turns, each with a "question" and an "answer" (str).

    The image comes before the first question. Raises RoboAlignError for an empty conversation, a
    text that spells a special token, or an image that is not RGB.
    """
    if not turns:
        raise RoboAlignError(
            "a conversation has no turn", fix='give at least one {"question": ..., "answer": ...}'
        )
    texts = [str(turn[key]).strip() for turn in turns for key in ("question", "answer")]
    return _encode(mllm, texts, image)


def encode_prompt(mllm: Mllm, question: str, image: np.ndarray | Image.Image) -> Encoded:
    """Tokenize a question about `image`, up to and including the header that starts the assistant's
    turn."""
    return _encode(mllm, [question.strip()], image)


def collate(
    mllm: Mllm,
    batch: Sequence[Encoded],
    *,
    padding_side: Literal["left", "right"] = "right",
    multiple: int = 1,
) -> dict[str, torch.Tensor]:
    """Return the model's keyword arguments for a batch, on the CPU: input_ids, labels,
    attention_mask [B, L] and pixels.

    Pad right to train, left to generate; L is rounded up to a multiple of `multiple`. Pixels come
    from the model's own image processor; which entries it returns (pixel_values, image_grid_thw,
    pixel_attention_mask, ...) depends on the model.
    """
    length = max(len(one.input_ids) for one in batch)
    length += -length % multiple
    ids = np.full((len(batch), length), mllm.tokenizer.pad_token_id, dtype=np.int64)
    labels = np.full((len(batch), length), IGNORED, dtype=np.int64)
    mask = np.zeros((len(batch), length), dtype=np.int64)
    for row, one in enumerate(batch):
        size = len(one.input_ids)
        place = slice(length - size, length) if padding_side == "left" else slice(0, size)
        ids[row, place], labels[row, place], mask[row, place] = one.input_ids, one.labels, 1
    arguments = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    if getattr(mllm.processor, "return_mm_token_type_ids", False):
        arguments["mm_token_type_ids"] = np.isin(ids, mllm.processor.image_token_ids).astype(
            np.int64
        )
    pixels = mllm.processor.image_processor(
        [[one.image] for one in batch], return_tensors="pt", input_data_format="channels_last"
    )
    unused = set(mllm.processor.unused_input_names)
    return {key: torch.from_numpy(value) for key, value in arguments.items()} | {
        key: value.to(mllm.model.dtype) if value.is_floating_point() else value
        for key, value in pixels.items()
        if key not in unused
    }


def end_ids(mllm: Mllm) -> frozenset[int]:
    """Return the ids that end the assistant's turn: the tokenizer's end token and those of the
    generation settings."""
    configured = mllm.model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return frozenset(
        token for token in [mllm.tokenizer.eos_token_id, *configured] if token is not None
    )


def special_ids(mllm: Mllm) -> frozenset[int]:
    """Return the ids of the tokenizer's special tokens, which belong to the chat template and must
    not occur in a text."""
    if "special_ids" not in mllm.cache:
        mllm.cache["special_ids"] = frozenset(mllm.tokenizer.all_special_ids)
    return mllm.cache["special_ids"]


def adds_bos(mllm: Mllm) -> bool:
    """Return whether the tokenizer puts a token at the start of a prompt that the chat template
    does not write."""
    return bool(_leading_ids(mllm, _frames(mllm, 1)[0][0]))


def _encode(mllm: Mllm, texts: list[str], image: np.ndarray | Image.Image) -> Encoded:
    """Encode `texts`, which alternate question and answer. If the last one is a question, the
    result ends with the assistant's header."""
    for text in texts:
        if any(token in text for token in special_tokens(mllm)):
            raise RoboAlignError(
                f"a question or answer spells a special token: {text!r}",
                fix="remove it from the text",
            )
    frames, lead = _frames(mllm, len(texts))
    pieces = [frames[0] + texts[0] + frames[1]]
    for answer in range(1, len(texts), 2):
        following = texts[answer + 1] + frames[answer + 2] if answer + 1 < len(texts) else ""
        pieces.append(lead + texts[answer] + frames[answer + 1] + following)
    encoding = mllm.tokenizer(pieces, add_special_tokens=False)
    tokenised = encoding["input_ids"]
    frame = _rgb(image)
    ids = _leading_ids(mllm, frames[0]) + tokenised[0]
    at = ids.index(mllm.processor.image_token_id)
    ids[at : at + 1] = _image_ids(mllm, *frame.shape[:2])
    labels = [IGNORED] * len(ids)
    after = [False] * len(ids)
    ends = end_ids(mllm)
    for number, piece in enumerate(tokenised[1:], start=1):
        spoken = next((place for place, token in enumerate(piece, start=1) if token in ends), None)
        if spoken is None:
            raise RoboAlignError(
                "the chat template does not close the assistant's turn with an end token",
                where=str(mllm.folder or type(mllm.processor).__name__),
                fix="add the end-of-turn token to the template, or to generation_config.json as eos_token_id",
            )
        ids += piece
        labels += piece[:spoken] + [IGNORED] * (len(piece) - spoken)
        reasoning = _REASONING.match(pieces[number], len(lead))
        first = encoding.char_to_token(number, reasoning.end()) if reasoning else spoken
        after += [first <= place < spoken for place in range(len(piece))]
    return Encoded(
        np.array(ids, dtype=np.int64), np.array(labels, dtype=np.int64), frame, np.array(after)
    )


def _rgb(image: np.ndarray | Image.Image) -> np.ndarray:
    frame = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        fix = "give RGB images, values 0..255"
        raise RoboAlignError(
            f"an image is {frame.dtype} {list(frame.shape)}, not uint8 [H, W, 3]", fix=fix
        )
    return frame


# Results that depend only on the model are computed once and kept in mllm.cache: rendering the
# template and calling the processor cost more than tokenizing a conversation.


def special_tokens(mllm: Mllm) -> list[str]:
    """Return the strings that no text may contain, because the tokenizer would read them as
    commands."""
    if "special" not in mllm.cache:
        mllm.cache["special"] = list(mllm.tokenizer.all_special_tokens)
    return mllm.cache["special"]


def _frames(mllm: Mllm, n_texts: int) -> tuple[list[str], str]:
    """Return the strings written before, between and after `n_texts` texts, and the string that
    begins an answer.

    Some templates prompt the assistant with "Assistant:" and put a space before its answer. The
    model must generate that space itself at inference, so the space belongs to the answer and not
    to the header. If a template closes no answer (LLaVA-1.5's), the tokenizer's end token is added
    after each one, as that model was trained.
    """
    key = ("frames", n_texts)
    if key not in mllm.cache:
        frames, lead = _render(mllm, n_texts), ""
        if n_texts > 1:
            header = _render(mllm, 1)[1]
            lead = frames[1].removeprefix(header)
            if frames[1::2] != [header + lead] * (n_texts // 2):
                raise RoboAlignError(
                    f"the chat template writes {frames[1]!r} before an answer in a conversation, but {header!r} where "
                    "it asks for one",
                    where=str(mllm.folder or type(mllm.processor).__name__),
                    fix="use a template that opens every turn of the assistant with its generation prompt",
                )
            closed = any(token in frames[-1] for token in special_tokens(mllm))
            end = "" if closed else mllm.tokenizer.eos_token or ""
            frames[1::2] = [header] * (n_texts // 2)
            frames[2::2] = [end + frame for frame in frames[2::2]]
            lead = "" if _tokenizer_leads(mllm, header, lead) else lead
        mllm.cache[key] = frames, lead
    return mllm.cache[key]


def _tokenizer_leads(mllm: Mllm, header: str, lead: str) -> bool:
    """Return whether the tokenizer itself puts `lead` before each piece, as Llama's first tokenizer
    does with a space.

    If `lead` were also written out, it would occur twice, and answers would begin with a token that
    the model never saw there.
    """
    bare, led, whole = (
        mllm.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("a", lead + "a", header + lead + "a")
    )
    return bool(lead) and led != bare and whole[-len(bare) :] == bare


def _render(mllm: Mllm, n_texts: int) -> list[str]:
    """Return what the chat template itself writes around `n_texts` texts, which alternate question
    and answer."""
    messages: list[dict[str, Any]] = []
    for number in range(n_texts):
        content = [{"type": "text", "text": _PLACE}]
        messages.append({"role": ("user", "assistant")[number % 2], "content": content})
    messages[0]["content"].insert(0, {"type": "image"})
    asks = n_texts % 2 == 1
    frames = _apply_template(mllm, messages, asks).split(_PLACE)
    if len(frames) != n_texts + 1 or frames[0].count(mllm.processor.image_token) != 1:
        raise RoboAlignError(
            "the chat template does not show each message and the image exactly once",
            where=str(mllm.folder or type(mllm.processor).__name__),
            fix="use a model whose processor has a chat template with images",
        )
    return frames


def _apply_template(mllm: Mllm, messages: list[dict[str, Any]], asks: bool) -> str:
    """Render the folder's chat template, which is third-party code, within TEMPLATE_SECONDS."""

    def render() -> str:
        return mllm.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=asks
        )

    try:
        return within(TEMPLATE_SECONDS, render)
    except Exception as error:  # jinja2's errors, and whatever the template raises
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RoboAlignError(
            f"the chat template cannot be rendered ({said})",
            where=str(mllm.folder or type(mllm.processor).__name__),
            fix="copy the chat template of the model that this one comes from",
        ) from error


def _leading_ids(mllm: Mllm, text: str) -> list[int]:
    """Return the begin token if the tokenizer adds one and the template did not."""
    bos = mllm.tokenizer.bos_token_id
    if "adds_bos" not in mllm.cache:
        mllm.cache["adds_bos"] = bos is not None and mllm.tokenizer("a")["input_ids"][0] == bos
    return [bos] if mllm.cache["adds_bos"] and not text.startswith(mllm.tokenizer.bos_token) else []


def _image_ids(mllm: Mllm, height: int, width: int) -> list[int]:
    """Return the ids into which the processor expands the image token for an image of this size."""
    key = ("image", height, width)
    if key not in mllm.cache:
        blank = np.zeros((height, width, 3), dtype=np.uint8)
        expanded = mllm.processor(
            text=[mllm.processor.image_token], images=[[blank]], add_special_tokens=False
        )
        mllm.cache[key] = list(expanded["input_ids"][0])
    return mllm.cache[key]

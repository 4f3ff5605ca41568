"""Turn a conversation about any number of images into token ids, labels and pixels, for both
training and serving.

A conversation is tokenized in pieces, cut where the assistant begins to speak. The ids before a cut
are then exactly the ids of the prompt that the model must continue at inference, whatever a
tokenizer merges across the cut.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from roboalign.core.errors import RoboAlignError
from roboalign.core.processes import within
from roboalign.mllm.load import Mllm
from roboalign.mllm.pixels import COARSE_IF_SEVERAL, pixels_of, require_images
from roboalign.mllm.placement import IMAGE_MARK, leading_images, marked

IGNORED = -100  # the label that the loss leaves out
_REASONING = re.compile(r"<think>(?!\s*</think>).*?</think>", re.DOTALL)
BLANK_SIDE = 32  # pixels
TEMPLATE_SECONDS = 10.0
"""Longest time that a chat template may take; published ones take milliseconds."""
_PLACE = (
    # placeholder for a text while the template is rendered; private-use characters
    "\ue000text\ue000"
)


Images = Sequence[np.ndarray | Image.Image]


@dataclass(frozen=True)
class Prompt:
    """A question about images, each uint8 [H, W, 3], RGB; placed as `mllm.placement` says."""

    question: str
    images: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Encoded:
    """Hold one tokenized conversation. Pixels are made per batch (`collate`), so that a data set in
    memory stays small."""

    input_ids: np.ndarray
    """int64 [L], the images' tokens included."""
    labels: np.ndarray
    """int64 [L], IGNORED except on what the assistant says, its end-of-turn token included."""
    images: tuple[np.ndarray, ...]
    """uint8 [H, W, 3] each, in the order of their tokens."""
    after_reasoning: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    """bool [L], true on what a reply says after its `<think>...</think>`, if that part is not
    empty; length 0 for anything not made by encode_conversation."""


def encode_conversation(mllm: Mllm, turns: Sequence[Mapping[str, Any]], images: Images) -> Encoded:
    """Tokenize a conversation of one or more turns, each with a "question" and an "answer" (str).

    Images are shown where the questions have `<image>`, or before the first one if none has. Raises
    RoboAlignError for an empty conversation, markers that are not as many as the images, more
    images than the model's class takes, a text that spells a special token, or an image that is not
    RGB.
    """
    if not turns:
        raise RoboAlignError(
            "a conversation has no turn", fix='give at least one {"question": ..., "answer": ...}'
        )
    texts = [str(turn[key]).strip() for turn in turns for key in ("question", "answer")]
    return _encode(mllm, texts, images)


def encode_prompt(mllm: Mllm, question: str, images: Images) -> Encoded:
    """Tokenize a question about `images`, up to and including the header that starts the
    assistant's turn. Raises RoboAlignError as `encode_conversation` does."""
    return _encode(mllm, [question.strip()], images)


def collate(
    mllm: Mllm,
    batch: Sequence[Encoded],
    *,
    padding_side: Literal["left", "right"] = "right",
    multiple: int = 1,
    blank: bool = False,
) -> dict[str, torch.Tensor]:
    """Return the model's keyword arguments for a batch, on the CPU: input_ids, labels,
    attention_mask [B, L] and pixels (`pixels_of`).

    Pad right to train, left to generate; L is rounded up to a multiple of `multiple`. With `blank`,
    a batch without any image gets a blank one in the padding of its first row, which no token
    attends to (`needs_blank`).
    """
    shown = [one.images for one in batch]
    padding: list[int] = []
    if blank and needs_blank(batch):
        shown[0] = (np.zeros((BLANK_SIDE, BLANK_SIDE, 3), dtype=np.uint8),)
        padding = _image_ids(mllm, BLANK_SIDE, BLANK_SIDE, False)
    length = max(len(one.input_ids) for one in batch)
    length = max(length, len(batch[0].input_ids) + len(padding))
    length += -length % multiple
    ids = np.full((len(batch), length), mllm.tokenizer.pad_token_id, dtype=np.int64)
    labels = np.full((len(batch), length), IGNORED, dtype=np.int64)
    mask = np.zeros((len(batch), length), dtype=np.int64)
    for row, one in enumerate(batch):
        size = len(one.input_ids)
        place = slice(length - size, length) if padding_side == "left" else slice(0, size)
        ids[row, place], labels[row, place], mask[row, place] = one.input_ids, one.labels, 1
    if padding:
        first = 0 if padding_side == "left" else len(batch[0].input_ids)
        ids[0, first : first + len(padding)] = padding
    arguments = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    if getattr(mllm.processor, "return_mm_token_type_ids", False):
        arguments["mm_token_type_ids"] = np.isin(ids, mllm.processor.image_token_ids).astype(
            np.int64
        )
    tensors = {key: torch.from_numpy(value) for key, value in arguments.items()}
    return tensors | pixels_of(mllm, shown)


def needs_blank(batch: Sequence[Encoded]) -> bool:
    """Return whether `collate` adds a blank image in training: no row of the batch has one.

    Processes that train together run the same layers in step, and update every weight that has a
    gradient. A process whose batch skips the vision tower would hang the others, or give its
    weights another update than one process alone does.
    """
    return not any(one.images for one in batch)


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
    return bool(_leading_ids(mllm, _frames(mllm, 1, (1,))[0][0]))


def _encode(mllm: Mllm, texts: list[str], images: Images) -> Encoded:
    """Encode `texts`, which alternate question and answer. If the last one is a question, the
    result ends with the assistant's header."""
    shown = tuple(_rgb(image) for image in images)
    require_images(mllm, len(shown))
    leading, texts = _placed(mllm, texts, len(shown))
    frames, lead = _frames(mllm, len(texts), leading)
    pieces = [frames[0] + texts[0] + frames[1]]
    for answer in range(1, len(texts), 2):
        following = texts[answer + 1] + frames[answer + 2] if answer + 1 < len(texts) else ""
        pieces.append(lead + texts[answer] + frames[answer + 1] + following)
    encoding = mllm.tokenizer(pieces, add_special_tokens=False)
    tokenised = encoding["input_ids"]
    several = len(shown) > 1
    expanded = iter([_image_ids(mllm, one.shape[0], one.shape[1], several) for one in shown])
    ids = _expand(mllm, _leading_ids(mllm, frames[0]) + tokenised[0], expanded)
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
        reasoning = _REASONING.match(pieces[number], len(lead))
        first = encoding.char_to_token(number, reasoning.end()) if reasoning else spoken
        asked = _expand(mllm, piece[spoken:], expanded)
        ids += piece[:spoken] + asked
        labels += piece[:spoken] + [IGNORED] * len(asked)
        after += [place >= first for place in range(spoken)] + [False] * len(asked)
    if (left := len(list(expanded))) > 0:
        raise _misplaced(mllm, f"{left} of {len(shown)} images")
    return Encoded(
        np.array(ids, dtype=np.int64), np.array(labels, dtype=np.int64), shown, np.array(after)
    )


def _placed(mllm: Mllm, texts: list[str], images: int) -> tuple[tuple[int, ...], list[str]]:
    """Return how many images come before the text of each question, and the texts.

    An image inside a question becomes the string that the chat template writes for one. Raises
    RoboAlignError if a text spells a special token, or if markers and images differ in number.
    """
    questions = marked(texts[::2], images)
    split = [leading_images(question) for question in questions]
    texts = list(texts)
    texts[::2] = [rest.strip() for _, rest in split]
    for place, text in enumerate(texts):
        plain = text.replace(IMAGE_MARK, "") if place % 2 == 0 else text
        if any(token in plain for token in special_tokens(mllm)):
            raise RoboAlignError(
                f"a question or answer spells a special token: {text!r}",
                fix="remove it from the text",
            )
        if plain != text:
            texts[place] = text.replace(IMAGE_MARK, _image_text(mllm))
    return tuple(leading for leading, _ in split), texts


def _expand(mllm: Mllm, ids: list[int], expanded: Iterator[list[int]]) -> list[int]:
    """Return the ids with each image token replaced by the next entry of `expanded`."""
    if mllm.processor.image_token_id not in ids:
        return ids
    result: list[int] = []
    for token in ids:
        if token != mllm.processor.image_token_id:
            result.append(token)
        elif (image := next(expanded, None)) is not None:
            result += image
        else:
            raise _misplaced(mllm, "an image too many")
    return result


def _misplaced(mllm: Mllm, what: str) -> RoboAlignError:
    return RoboAlignError(
        f"the tokens of a conversation show {what} of what was placed",
        where=str(mllm.folder or type(mllm.processor).__name__),
        fix="use the tokenizer and chat template that belong to the model",
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


def _frames(mllm: Mllm, n_texts: int, leading: tuple[int, ...]) -> tuple[list[str], str]:
    """Return the strings written before, between and after `n_texts` texts, and the string that
    begins an answer. Before the text of each question come as many images as `leading` says.

    Some templates prompt the assistant with "Assistant:" and put a space before its answer. The
    model must generate that space itself at inference, so the space belongs to the answer and not
    to the header. If a template closes no answer (LLaVA-1.5's), the tokenizer's end token is added
    after each one, as that model was trained.
    """
    key = ("frames", n_texts, leading)
    if key not in mllm.cache:
        frames, lead = _render(mllm, n_texts, leading), ""
        if n_texts > 1:
            header = _render(mllm, 1, leading[:1])[1]
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


def _render(mllm: Mllm, n_texts: int, leading: tuple[int, ...]) -> list[str]:
    """Return what the chat template itself writes around `n_texts` texts, which alternate question
    and answer, with `leading` images before the text of each question."""
    messages: list[dict[str, Any]] = []
    for number in range(n_texts):
        content = [{"type": "text", "text": _PLACE}]
        messages.append({"role": ("user", "assistant")[number % 2], "content": content})
    for message, images in zip(messages[::2], leading):
        message["content"] = [{"type": "image"}] * images + message["content"]
    asks = n_texts % 2 == 1
    frames = _apply_template(mllm, messages, asks).split(_PLACE)
    wanted = [0] * (n_texts + 1)
    wanted[:n_texts:2] = leading
    if [frame.count(mllm.processor.image_token) for frame in frames] != wanted:
        raise RoboAlignError(
            "the chat template does not show each message and the images exactly once and in order",
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


def _image_ids(mllm: Mllm, height: int, width: int, several: bool) -> list[int]:
    """Return the ids into which the processor expands the image token for an image of this size.

    `several`: another image is in the same conversation. LLaVA-OneVision then cuts none into tiles.
    """
    several = several and mllm.model.config.model_type in COARSE_IF_SEVERAL
    key = ("image", height, width, several)
    if key not in mllm.cache:
        blanks = [np.zeros((height, width, 3), dtype=np.uint8)] * (2 if several else 1)
        expanded = mllm.processor(
            text=[mllm.processor.image_token * len(blanks)],
            images=[blanks],
            add_special_tokens=False,
        )
        ids = list(expanded["input_ids"][0])
        mllm.cache[key] = ids[: len(ids) // len(blanks)]
    return mllm.cache[key]


def _image_text(mllm: Mllm) -> str:
    """Return the string that the chat template writes for an image, with what encloses its token.

    Some templates (LLaVA-OneVision's) move all images of a message to its front. In that place they
    write the same string, so an image inside a question can be put where it belongs.
    """
    if "image_text" not in mllm.cache:
        one, two = (_render(mllm, 1, (count,))[0] for count in (1, 2))
        size = len(two) - len(one)
        at = one.index(mllm.processor.image_token)
        starts = range(at, -1, -1)  # the latest: what comes before may end as the string does
        found = next(
            (s for s in starts if two == one[:s] + one[s : s + size] * 2 + one[s + size :]), None
        )
        if found is None or mllm.processor.image_token not in one[found : found + size]:
            raise _misplaced(mllm, "no second image")
        mllm.cache["image_text"] = one[found : found + size]
    return mllm.cache["image_text"]

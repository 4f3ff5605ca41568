"""A small random model of each class of backbone, and inputs made for it. Nothing is fetched."""

import numpy as np

from roboalign.actions.fast import FastTokenizer
from roboalign.actions.vocabulary import extend_model, extend_tokenizer
from roboalign.conversations import prompts
from roboalign.conversations.conversation import Conversation, Turn
from roboalign.conversations.reply import write_tagged
from roboalign.conversations.styles.registry import STYLES
from roboalign.episodes.episode import encode_png
from roboalign.mllm.encode import Prompt
from roboalign.mllm.load import Mllm
from roboalign.mllm.tiny_classes import build_class

LABELLED = STYLES["labelled"]
TASKS = ("open the drawer", "push the red cube to the left of the box", "reach")
CHUNKS = (
    np.random.default_rng(0).uniform(-1, 1, (8, 4, 2)).astype(np.float32)
)  # [8, H, A], normalised
FAST = FastTokenizer.fit(CHUNKS, scale=2, vocab_size=40)
TURNS = [
    {
        "question": "Where is the red cube?",
        "answer": "<think>it is left</think><answer>left</answer>",
    },
    {"question": "And the box?", "answer": "<think></think><answer>right</answer>"},
]
TEXTS = [
    *(LABELLED.action_question(task, mode) for task in TASKS for mode in prompts.MODES),
    *(text for turn in TURNS for text in turn.values()),
    "USER: ASSISTANT: User: Assistant:",
] * 9
FRAMES = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def model_of(name: str, *, tied: bool = True, actions: bool = True) -> Mllm:
    """A new small model of class `name`, with the action tokens unless told otherwise."""
    mllm = build_class(name, TEXTS, tied=tied)
    if actions:
        mllm.vocabulary = extend_tokenizer(mllm.tokenizer, FAST.vocab_size)
        extend_model(mllm.model, mllm.tokenizer, mllm.vocabulary)
    return mllm


def questions(count: int = 3) -> list[Prompt]:
    """Action questions of different lengths, each with an image of its own."""
    return [
        Prompt(LABELLED.action_question(TASKS[i % 3], "direct"), (FRAMES[i],)) for i in range(count)
    ]


def conversations(mode: prompts.Mode) -> list[Conversation]:
    """Six action samples; their answers are what SFT learns, their targets what GRPO rewards."""
    targets = FAST.encode(CHUNKS)
    return [
        Conversation(
            f"{mode}-{i}",
            "episode",
            i,
            "task",
            (encode_png(FRAMES[i]),),
            (
                Turn(
                    "action",
                    "action",
                    mode,
                    LABELLED.action_question(TASKS[i % 3], mode),
                    write_tagged(prompts.action_answer(targets[i])),
                    "",
                ),
            ),
            target=tuple(targets[i]),
        )
        for i in range(6)
    ]

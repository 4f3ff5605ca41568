"""Our models in lmms-eval, for its other benchmarks: `lmms-eval --model roboalign`.

Needs the extra `bench`. lmms-eval finds the class by the entry point `lmms_eval.models`, and runs it
with its own tasks, parsers and scores. Model arguments: pretrained, mode, prompts, label,
max_new_tokens, batch_size, min_pixels, max_pixels, device, dtype.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from PIL import Image

from roboalign.bench.measure import BenchConfig, BenchModel, reply_text
from roboalign.bench.reading import spoken
from roboalign.core.config import validated
from roboalign.core.errors import RoboAlignError
from roboalign.core.hub import resolve
from roboalign.core.machine import device_of
from roboalign.core.progress import Progress
from roboalign.mllm.encode import Encoded, encode_prompt
from roboalign.mllm.generate import generate
from roboalign.mllm.load import load_mllm
from roboalign.mllm.placement import IMAGE_MARK


class LmmsModel(lmms):  # type: ignore[misc]
    """A model of this package behind lmms-eval's interface; greedy, images where a task puts them."""

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        label: str = "answer",
        device: str = "auto",
        dtype: str = "float32",
        **settings: Any,
    ) -> None:
        super().__init__()
        whole = ("max_new_tokens", "batch_size", "min_pixels", "max_pixels")
        known = ("mode", "prompts", *whole)
        chosen = {key: value for key, value in settings.items() if key in known}
        if other := sorted(set(settings) - {*known, "max_batch_size"}):
            raise RoboAlignError(
                f"no argument `{other[0]}`",
                where="--model_args",
                fix=f"known are pretrained, label, device, dtype, {', '.join(known)}",
            )
        for key in whole:
            if key in chosen:
                chosen[key] = int(chosen[key])
        config: BenchConfig = validated(BenchConfig, chosen, where="--model_args")
        mllm = load_mllm(
            resolve(pretrained, "model", where="pretrained"),
            dtype=getattr(torch, dtype),
            device=device_of(device.partition(":")[0]),
        )
        self.asked, self.label = BenchModel(pretrained, mllm, config).bounded(), label

    @property
    def batch_size(self) -> int:
        """Return how many requests are generated at once."""
        return self.asked.config.batch_size

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: lmms-eval's tasks of images and space generate."""
        raise NotImplementedError("this model generates; it computes no likelihoods")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse: a request has one round."""
        raise NotImplementedError("this model answers in one round")

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Return a reply for each request, without its reasoning, in the order of the requests.

        A request's own `max_new_tokens` applies; its `until` does not, as in lmms-eval's own
        classes for Qwen. Raises RoboAlignError if a task asks for sampling.
        """
        mllm, results = self.asked.mllm, list[Any]()
        with Progress("lmms-eval", len(requests)) as progress:
            for start in range(0, len(requests), self.batch_size):
                chosen = requests[start : start + self.batch_size]
                # Requests of one task have one limit; the longest is kept if a batch has two.
                limit = max(self._limit(request.args[2]) for request in chosen)
                generation = generate(
                    mllm,
                    [self._encoded(request) for request in chosen],
                    max_new_tokens=limit,
                    temperature=0.0,
                    stop="</answer>",
                    max_rows=len(chosen),
                )
                for (ids,) in generation.tokens:
                    said = spoken(
                        reply_text(mllm, ids), self.asked.style, self.asked.config.mode, self.label
                    )
                    counts = TokenCounts(output_tokens=len(ids))
                    results.append(GenerationResult(said.answer or "", counts))
                progress.advance(len(chosen))
        return results

    def _encoded(self, request: Any) -> Encoded:
        _, to_messages, _, number, task, split = request.args
        messages = ChatMessages(messages=to_messages(self.task_dict[task][split][number]))
        text = ""
        for message in messages.messages:
            for part in message.content:
                text += IMAGE_MARK if part.type == "image" else self._words(part)
        pictures = messages.extract_media()[0]
        images = tuple(_opened(picture).convert("RGB") for picture in pictures)
        style, config = self.asked.style, self.asked.config
        return encode_prompt(self.asked.mllm, style.asked(text, config.mode, self.label), images)

    @staticmethod
    def _words(part: Any) -> str:
        if part.type != "text":
            raise RoboAlignError(
                f"the task shows {part.type}, and this package's models see images",
                where="--tasks",
                fix="choose tasks of images",
            )
        return str(part.text).replace(IMAGE_MARK, "")

    def _limit(self, asked: Mapping[str, Any]) -> int:
        if asked.get("do_sample") or (asked.get("temperature") or 0) > 0:
            raise RoboAlignError(
                "the task asks for sampled replies, and these are greedy",
                where="--tasks",
                fix="pass --gen_kwargs temperature=0,do_sample=False",
            )
        return int(asked.get("max_new_tokens") or self.asked.config.max_new_tokens)


def _opened(picture: Any) -> Image.Image:
    if not isinstance(picture, Image.Image):
        raise RoboAlignError(
            f"the task gives an image as {type(picture).__name__}",
            where="--tasks",
            fix="choose tasks whose images are in the data set",
        )
    return picture

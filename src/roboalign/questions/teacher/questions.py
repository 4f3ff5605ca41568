"""Let a teacher MLLM write questions about frames of robot episodes, as the paper's RoboAlign VQA.

Every reply is stored on disk when it arrives: the same request is never sent twice. `answers.py`
decides what can be trained on.
"""

import base64
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from roboalign.conversations.conversation import Turn
from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault, Refused
from roboalign.episodes.episode import encode_png
from roboalign.questions.base import (
    Made,
    QuestionConfig,
    Work,
    draw_mode,
    look,
    make_conversation,
    make_turn,
    rng_of,
)
from roboalign.questions.facts.motion import Motion
from roboalign.questions.movement import facts, motion_sentence
from roboalign.questions.teacher.answers import LONGEST, check, read_reply
from roboalign.questions.teacher.cache import AnswerCache, request_key
from roboalign.questions.teacher.client import ChatClient, TeacherReply

MAX_TOKENS = 4096
"""Maximum tokens of a reply; a teacher that reasons first needs most of them for that."""
FAILED_IN_A_ROW = 5
"""Consecutive failed requests that end the run: the endpoint is down, or rejects them all."""
TEACHER_PROMPT = """\
The image is one moment of a robot's work, frame {frame} of {frames}. The task is: {instruction}.
{facts}
Write {count} different questions about this image for training a robot's vision-language model: what is where, how
things stand to each other and to the gripper, what state they are in, what the robot should do next and why.
Each must be answerable from the image and the task alone. Do not name the frame's number. Do not let a question give
its answer away.

"kind" is one of
- "text": the answer is a few words
- "choice": the question ends with options, each on a line of its own, `A. ...` to `D. ...`; the answer is the letter
- "point": the answer is one point [x, y] of the image, from 0 to 1000, the origin at the top left
"reasoning" is two or three sentences that lead from what is visible to the answer.
At most {question} characters a question, {answer} an answer, {reasoning} a reasoning.

Reply with JSON alone: {{"questions": [{{"question": "...", "answer": "...", "reasoning": "...", "kind": "..."}}]}}"""


@dataclass(frozen=True)
class _Asked:
    """One frame, and what is known or pending about it."""

    episode_id: str
    task: str
    t: int
    png: bytes
    reply: "Future[TeacherReply | Fault] | TeacherReply | Refused | Fault"


class TeacherQuestions:
    """Questions written by the model `model` (a `base.Generator`)."""

    name = "teacher"

    def __init__(
        self, config: QuestionConfig, model: str, client: ChatClient, cache: AnswerCache
    ) -> None:
        self.config, self.model, self.client, self.cache = config, model, client, cache
        self._failed = 0
        self._under_way: dict[str, Future[TeacherReply | Fault]] = {}

    def questions(self, work: Iterable[Work]) -> Iterator[Made]:
        """Ask about frames ahead of what is yielded, up to twice the number of concurrent requests.

        Raises RoboAlignError if the endpoint no longer answers; earlier answers are kept.
        """
        workers = self.client.endpoint.concurrency
        pool = ThreadPoolExecutor(workers, thread_name_prefix="teacher")
        made, seen, held = Made(), set[str](), list[Made]()
        try:
            for asked in read_ahead(self._ask_all(work, pool), 2 * workers):
                if asked is not None:
                    self._add(made, asked, seen)
                    continue
                held.append(made)
                made, seen = Made(), set()
                if (
                    not self._failed
                ):  # otherwise the endpoint may be down: the next command asks again what failed
                    yield from held
                    held = []
            yield from held
        finally:
            self.client.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)

    def spent(self) -> dict[str, int]:
        """Return replies and tokens, as counted by the endpoint."""
        cache = self.cache
        counted = {
            "prompt_tokens": cache.prompt_tokens,
            "completion_tokens": cache.completion_tokens,
        }
        return {"replies": len(cache), **counted}

    def _ask_all(self, work: Iterable[Work], pool: ThreadPoolExecutor) -> Iterator[_Asked | None]:
        """Yield the frames in order; None ends each `Work`."""
        for one in work:
            episode = one.episode
            try:
                motion = Motion(episode, self.config)
                for t in one.frames:
                    yield self._ask(motion, t, pool)
            except RoboAlignError as error:
                yield _Asked(
                    episode.episode_id,
                    episode.task,
                    0,
                    b"",
                    Fault(error.where, error.problem, error.fix),
                )
            yield None

    def _ask(self, motion: Motion, t: int, pool: ThreadPoolExecutor) -> _Asked:
        episode = motion.episode
        frame = look(episode, self.config.camera, t)
        if isinstance(frame, Refused | Fault):
            return _Asked(episode.episode_id, episode.task, t, b"", frame)
        png = encode_png(frame)
        body = request_body(self.model, teacher_prompt(motion, t), png)
        key = request_key(body)
        reply: Any = self._under_way.get(
            key
        )  # for a data set that holds an episode twice; a kept answer is removed
        known = self.cache.get(key)
        if known is not None:
            reply = TeacherReply(
                **{name: known[name] for name in asdict(TeacherReply("", "", "", 0, 0))}
            )
        elif reply is None:
            reply = self._under_way[key] = pool.submit(self._send, key, body)
            reply.add_done_callback(lambda _: self._under_way.pop(key, None))
        return _Asked(episode.episode_id, episode.task, t, png, reply)

    def _send(self, key: str, body: dict[str, Any]) -> TeacherReply | Fault:
        reply = self.client.ask(body)
        if isinstance(
            reply, TeacherReply
        ):  # kept by the thread that received it: a kill would lose what waits for its turn
            self.cache.put(key, asdict(reply))
        return reply

    def _add(self, made: Made, asked: _Asked, seen: set[str]) -> None:
        """Wait for the reply and keep the part that passes."""
        reply = asked.reply.result() if isinstance(asked.reply, Future) else asked.reply
        if isinstance(reply, Fault):
            self._count_fault(reply, sent=isinstance(asked.reply, Future))
            made.faults.append(
                Fault(
                    f"{asked.episode_id}, frame {asked.t}: {reply.where}", reply.problem, reply.fix
                )
            )
            return
        if isinstance(reply, TeacherReply) and isinstance(asked.reply, Future):
            self._failed = 0
        items = reply if isinstance(reply, Refused) else read_reply(reply)
        if isinstance(items, Refused):
            made.refused.append(items)
            return
        rng = rng_of(self.config.seed, asked.episode_id, asked.t)
        turns: list[Turn] = []
        for item in items:
            one = check(item, seen, self.config.grid)
            if isinstance(one, Refused):
                made.refused.append(one)
            elif len(turns) < self.config.questions:
                mode = draw_mode(self.config, rng) if one.reasoning else "direct"
                turns.append(
                    make_turn(
                        one.type,
                        one.label,
                        mode,
                        one.question,
                        one.answer,
                        one.reasoning,
                        self.config.prompts,
                    )
                )
        if turns:
            made.conversations.append(
                make_conversation(
                    self.name, asked.episode_id, asked.task, asked.t, asked.png, turns
                )
            )

    def _count_fault(self, fault: Fault, *, sent: bool) -> None:
        self._failed += sent
        if self._failed >= FAILED_IN_A_ROW:
            problem = f"{self._failed} requests failed one after the other: {fault.problem}"
            raise RoboAlignError(
                problem, where=fault.where, fix=f"{fault.fix}; the same command continues from here"
            )


def read_ahead(items: Iterable[_Asked | None], most: int) -> Iterator[_Asked | None]:
    """Yield the same items, each after the next `most` have been created."""
    waiting: deque[_Asked | None] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > most:
            yield waiting.popleft()
    yield from waiting


def teacher_prompt(motion: Motion, t: int) -> str:
    """Return the prompt about a frame, including what the actions reveal about it."""
    config, episode = motion.config, motion.episode
    signs = motion.movement(t)
    known = facts(motion, t) + (
        [] if isinstance(signs, Refused) else [motion_sentence(motion, signs)]
    )
    told = (
        f"Known, seen from the robot: {' '.join(known)}"
        if known
        else "Nothing else is known of it."
    )
    instruction = " ".join(episode.instruction.split()).rstrip(".") or "not known"
    return TEACHER_PROMPT.format(
        frame=t + 1,
        frames=len(episode),
        instruction=instruction,
        facts=told,
        count=config.questions,
        **LONGEST,
    )


def request_body(model: str, prompt: str, png: bytes) -> dict[str, Any]:
    """Return a chat completion request: the image as a data URL, then the prompt."""
    url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": MAX_TOKENS,
    }


TOKENS_A_QUESTION = 100
"""Assumed tokens of a question, its answer and its reasoning, before any reply is known."""


@dataclass(frozen=True)
class CostEstimate:
    """What a run will request, estimated in advance."""

    requests: int
    kept: int
    """The number of these already answered."""
    prompt_tokens: int
    """Estimated for the remaining requests: one per 4 prompt characters and one per 28 x 28 image
    pixels, as Qwen2.5-VL counts; other models count images differently."""
    completion_tokens: int
    """Estimated for the remaining requests: TOKENS_A_QUESTION per question."""


def estimate(
    requests: int, kept: int, prompt: str, size: tuple[int, int], questions: int
) -> CostEstimate:
    """Estimate the cost of a run.

    `prompt` and `size` (width, height) are those of one request; the others are similar.
    """
    left = max(0, requests - kept)
    each = len(prompt) / 4 + size[0] * size[1] / 28**2
    return CostEstimate(
        requests, min(kept, requests), round(left * each), left * questions * TOKENS_A_QUESTION
    )


def price(
    prompt_tokens: int, completion_tokens: int, price_in: float | None, price_out: float | None
) -> str:
    """Return `, price 1.23` in the currency of the prices; "" if one price is missing.

    Prices are per million tokens.
    """
    if price_in is None or price_out is None:
        return ""
    return f", price {(prompt_tokens * price_in + completion_tokens * price_out) / 1e6:.2f}"

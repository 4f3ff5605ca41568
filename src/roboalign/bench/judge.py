"""Let a model behind an endpoint score open answers from 0 to 3, for benchmarks without one right word.

The judge is part of the number: its name, and the hash of its prompt, are recorded, and scores of
two judges do not pair. Every verdict is on disk before it counts, so none is paid twice.
"""

import hashlib
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from roboalign.core.errors import RoboAlignError
from roboalign.core.outcomes import Fault
from roboalign.questions.teacher.cache import AnswerCache, request_key
from roboalign.questions.teacher.client import ChatClient, Endpoint

MOST_SCORE = 3.0
JUDGE_PROMPT = """\
You grade an answer to a question about a robot's camera image. You see the question, a reference answer and the
answer to grade, not the image.

Question: {question}

Reference answer: {reference}

Answer to grade: {answer}

Grade how well the answer agrees with the reference:
3: it says the same, complete and without an error
2: mostly the same, with a small error or gap
1: partly the same, with a serious error or gap
0: wrong, empty, or about something else

Write one sentence of reasons, and then on a line of its own: Score: N"""
_SCORE = re.compile(r"score\W{1,6}([0-3](?:\.\d+)?)(?!\d|\.\d)", re.IGNORECASE)
_MOST_TOKENS = 512


class BenchJudge:
    """Scores answers; threads may share it."""

    def __init__(self, endpoint: Endpoint, model: str, path: Path) -> None:
        """Open the verdicts at `path`. Raises RoboAlignError if the file cannot be used."""
        self.model = model
        self.client, self.cache = ChatClient(endpoint), AnswerCache(path)

    def identity(self) -> dict[str, Any]:
        """Return what a score depends on besides the answer."""
        prompt = hashlib.sha256(JUDGE_PROMPT.encode()).hexdigest()
        return {"model": self.model, "prompt": prompt[:16], "temperature": 0}

    def score(self, question: str, reference: str, answer: str) -> float | None:
        """Return the judge's score, 0 to 3; None if its reply has none.

        Raises RoboAlignError if the endpoint does not answer.
        """
        text = JUDGE_PROMPT.format(question=question, reference=reference, answer=answer)
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": _MOST_TOKENS,
        }
        key = request_key(body)
        known = self.cache.get(key)
        if known is None:
            reply = self.client.ask(body)
            if isinstance(reply, Fault):
                raise RoboAlignError(reply.problem, where=reply.where, fix=reply.fix)
            known = asdict(reply)
            self.cache.put(key, known)
        return score_in(known["text"])

    def close(self) -> None:
        """Close the file and the connections."""
        self.client.stop.set()
        self.client.close()
        self.cache.close()


def require_judge(judge: BenchJudge | None, what: str) -> BenchJudge:
    """Return the judge. Raises RoboAlignError if there is none."""
    if judge is None:
        raise RoboAlignError(
            f"{what} has open answers, which a judge scores",
            where="--judge",
            fix="give --judge URL and --judge-model NAME",
        )
    return judge


def score_in(text: str) -> float | None:
    """Return the last score that a judge states, from 0 to 3; None if there is none."""
    found = [float(score) for score in _SCORE.findall(text)]
    return found[-1] if found and found[-1] <= MOST_SCORE else None

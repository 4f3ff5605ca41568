"""Define the token policy: the MLLM's own FAST tokens are the robot's actions, written at once or
after a reasoning."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field

import roboalign
from roboalign.actions.fast import DecodeFailure, FastTokenizer
from roboalign.actions.hold import HoldRule
from roboalign.actions.normalize import ActionStats
from roboalign.conversations.blocks import Parsed, parse_response
from roboalign.conversations.prompts import Mode
from roboalign.conversations.reply import OK
from roboalign.conversations.styles.base import StyleName
from roboalign.conversations.styles.registry import require_model_style, style_of
from roboalign.core.config import Config
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import atomic_path, hash_tree, write_json
from roboalign.mllm.encode import (
    Encoded,
    encode_prompt,
    end_ids,
    special_ids,
)
from roboalign.mllm.load import Mllm, load_mllm
from roboalign.vla.command_memory import CommandMemory
from roboalign.vla.policy_folder import (
    POLICY_FORMAT,
    BackboneReference,
    find_backbone,
    parse_entry,
    parse_stats,
    read_policy_record,
    refer_to_backbone,
)
from roboalign.vla.policy_input import NoiseKey, ObservationLike, key_digest, shown_images
from roboalign.vla.token_answer import TokenAnswer, choose_chunk, confidences, counts_of_answers
from roboalign.vla.token_writer import (
    Choose,
    TokenPolicyConfig,
    WrittenReply,
    whole_text,
    write_replies,
)

REMAKE = "make the policy again, or copy the whole policy folder"
_FAST_FILES = {"tokenizer.json", "processor_config.json"}


class TokenView(Config):
    """What the MLLM is shown and asked."""

    mode: Mode
    """`direct`: the actions at once. `think`: a reasoning first."""
    cameras: tuple[str, ...] = Field(min_length=1)
    """Each is shown as an image of its own, in this order."""
    prompts: StyleName
    """Style of the question: the one that the MLLM was trained in."""


@dataclass
class TokenPolicy:
    """Map an observation to a chunk of raw actions by the MLLM's own answer."""

    mllm: Mllm
    fast: FastTokenizer
    action_stats: ActionStats
    hold: HoldRule
    view: TokenView
    config: TokenPolicyConfig
    seed: int = 0
    """Of the draws, besides the decision's noise key; without effect at temperature 0."""
    counts: Counter[str] = field(default_factory=Counter)
    """Over all decisions of `act` and `act_batch`: `decisions`, `holds`, `hold: REASON`, `tokens`
    generated, and `closed` reasonings."""
    memory: CommandMemory = field(default_factory=CommandMemory, repr=False)
    kind: ClassVar[str] = "tokens"
    guided: ClassVar[bool] = False
    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise RoboAlignError if the parts do not belong together."""
        where = str(self.mllm.folder or "model")
        vocabulary = self.mllm.vocabulary
        if vocabulary is None:
            raise RoboAlignError("the model has no action tokens", where=where, fix="align it")
        if len(vocabulary.fast_ids) < self.fast.vocab_size:
            raise RoboAlignError(
                f"the model has {len(vocabulary.fast_ids)} FAST tokens, the tokenizer "
                f"{self.fast.vocab_size}",
                where=where,
                fix="give the tokenizer that the model was trained with",
            )
        dims = {self.fast.action_dim, self.action_stats.dim, self.hold.space.dim}
        if len(dims) > 1:
            raise RoboAlignError(
                f"tokenizer, statistics and action space have {self.fast.action_dim}, "
                f"{self.action_stats.dim} and {self.hold.space.dim} dimensions",
                where=where,
                fix=REMAKE,
            )
        require_model_style(self.mllm, self.view.prompts, where=where)
        self.vocabulary = vocabulary

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that it sees, in order."""
        return self.view.cameras

    @property
    def horizon(self) -> int:
        """H, the number of actions in a chunk."""
        return self.fast.horizon

    @property
    def action_dim(self) -> int:
        """A, the number of dimensions of an action."""
        return self.fast.action_dim

    @property
    def state_dim(self) -> int | None:
        """S, the number of dimensions of the state that a hold reads; None if it reads none."""
        return self.hold.state_dim

    def metadata(self) -> dict[str, Any]:
        """Return what a server says of it, besides what it asks for and answers."""
        return {"kind": self.kind, "mode": self.view.mode, **self.config.model_dump()}

    def normalized(
        self, chunks: Float[np.ndarray, "*batch action"], observation: ObservationLike
    ) -> Float[np.ndarray, "*batch action"]:
        """Return raw chunks of an observation in the units of the tokenizer."""
        return self.action_stats.normalize(chunks)

    def act(
        self, observation: ObservationLike, noise_key: NoiseKey | None = None
    ) -> Float[np.ndarray, "{self.horizon} {self.action_dim}"]:
        """Return the chunk for one observation, float32 in raw units."""
        return self.act_batch([observation], [noise_key])[0]

    def act_batch(
        self,
        observations: Sequence[ObservationLike],
        noise_keys: Sequence[NoiseKey | None] | None = None,
    ) -> Float[np.ndarray, "{len(observations)} {self.horizon} {self.action_dim}"]:
        """Return `act_and_count`'s chunks."""
        return self.act_and_count(observations, noise_keys)[0]

    def act_and_count(
        self,
        observations: Sequence[ObservationLike],
        noise_keys: Sequence[NoiseKey | None] | None = None,
    ) -> tuple[
        Float[np.ndarray, "{len(observations)} {self.horizon} {self.action_dim}"],
        list[Mapping[str, int]],
    ]:
        """Return chunks for a batch of observations, float32 in raw units, and each one's counts.

        An answer that is no chunk gives H times the action that holds (`actions.hold`). A noise key
        names the episode, whose last command a hold repeats (`command_memory`).

        Raises RoboAlignError if a camera is missing, a state that a hold reads has the wrong size,
        or the number of keys is wrong.
        """
        keys = self._keys(observations, noise_keys)
        self._check_states(observations)
        rows = self.answers(observations, keys, samples=self.config.answers)
        chosen = [
            self.pick(seen, row, self.config.choose) if len(row) > 1 else row[0].chunk
            for seen, row in zip(observations, rows, strict=True)
        ]
        chunks = self.settle(observations, keys, chosen)
        counts: list[Mapping[str, int]] = [
            counts_of_answers(row, held=chunk is None) if len(row) > 1 else row[0].counts()
            for row, chunk in zip(rows, chosen, strict=True)
        ]
        for one in counts:
            self.counts.update(one)
        return chunks, counts

    def settle(
        self,
        observations: Sequence[ObservationLike],
        keys: Sequence[NoiseKey | None],
        found: Sequence[np.ndarray | None],
    ) -> Float[np.ndarray, "{len(observations)} {self.horizon} {self.action_dim}"]:
        """Return the chunks that are done: those found, and H times the action that holds for None.
        They are remembered for later holds."""
        self._check_states(observations)
        chunks = []
        for place, (chunk, seen, key) in enumerate(zip(found, observations, keys, strict=True)):
            moment = self.memory.recall(key, place)
            if chunk is None:
                still = self.hold.action(moment.last, seen.state)
                chunk = np.tile(still, (self.horizon, 1))
            self.memory.keep(moment, chunk)
            chunks.append(chunk)
        return np.stack(chunks)

    def answers(
        self,
        observations: Sequence[ObservationLike],
        noise_keys: Sequence[NoiseKey | None] | None = None,
        *,
        samples: int = 1,
    ) -> list[list[TokenAnswer]]:
        """Return `samples` answers to each observation, which share the prefill of its prompt.

        Nothing is kept of one decision for the next: the image comes first in a prompt, so two
        prompts share no more than the chat template's few tokens before it.
        """
        keys = self._keys(observations, noise_keys)
        replies = write_replies(
            self.mllm,
            [self.prompt(seen) for seen in observations],
            [self._draw_seed(key) for key in keys],
            self.config,
            self.view.mode,
            samples=samples,
        )
        return self.read(replies)

    def pick(
        self, seen: ObservationLike, answers: Sequence[TokenAnswer], how: Choose
    ) -> Float[np.ndarray, "{self.horizon} {self.action_dim}"] | None:
        """Return the chunk that is done of several answers; None if none of them is a chunk."""

        def scores(ids: Sequence[Sequence[int]]) -> list[float]:
            full, blank = self.prompt(seen), self.prompt(seen, without_instruction=True)
            return confidences(self.mllm, full, blank, ids, self.vocabulary.start_id)

        return choose_chunk(answers, how, self.hold.space.gripper_part, scores)

    def prompt(self, seen: ObservationLike, *, without_instruction: bool = False) -> Encoded:
        """Return the tokens of what the MLLM is asked."""
        instruction = "" if without_instruction else seen.instruction
        return encode_prompt(
            self.mllm,
            style_of(self.view.prompts).action_question(instruction, self.view.mode),
            shown_images(seen.images, self.cameras, side_by_side=False),
        )

    def read(self, replies: Sequence[Sequence[WrittenReply]]) -> list[list[TokenAnswer]]:
        """Return what the replies say, in the same order."""
        parsed = [self._parse(reply.ids) for row in replies for reply in row]
        decoded = iter(self.fast.decode_batch([one.action_ids or [] for one in parsed]))
        found = iter(parsed)
        return [
            [self._answer(reply, next(found), next(decoded)) for reply in row] for row in replies
        ]

    def _parse(self, ids: Sequence[int]) -> Parsed:
        return parse_response(
            ids,
            self.vocabulary,
            self._text,
            end_ids(self.mllm),
            special_ids(self.mllm),
            style_of(self.view.prompts).form(self.view.mode),
        )

    def _answer(
        self, reply: WrittenReply, parsed: Parsed, decoded: np.ndarray | DecodeFailure
    ) -> TokenAnswer:
        chunk, reason = None, parsed.reason
        if parsed.action_ids is not None:
            if isinstance(decoded, DecodeFailure):
                reason = decoded.reason
            else:
                chunk, reason = self.action_stats.denormalize(decoded), OK
        return TokenAnswer(reply.ids, chunk, reason, reply.generated, reply.closed, reply.logprob)

    def _text(self, ids: Sequence[int]) -> str:
        return whole_text(self.mllm, ids)

    def _draw_seed(self, key: NoiseKey | None) -> int:
        if key is None:
            return int(torch.randint(2**62, ()))
        return int.from_bytes(key_digest((*key, self.seed)), "little")

    def _keys(
        self,
        observations: Sequence[ObservationLike],
        noise_keys: Sequence[NoiseKey | None] | None,
    ) -> list[NoiseKey | None]:
        keys: list[NoiseKey | None] = list(noise_keys or [])
        if noise_keys is None:
            keys = [None] * len(observations)
        if len(keys) != len(observations):
            raise RoboAlignError(
                f"{len(observations)} observations but {len(keys)} noise keys", where="noise_keys"
            )
        return keys

    def _check_states(self, observations: Sequence[ObservationLike]) -> None:
        """Check before anything is generated what only a hold reads."""
        for seen in observations if self.state_dim is not None else ():
            if np.shape(seen.state) != (self.state_dim,):
                raise RoboAlignError(
                    f"the state has shape {np.shape(seen.state)}, expected ({self.state_dim},)",
                    where="observation",
                )

    def save(self, folder: str | Path) -> None:
        """Write policy.json, which names the backbone by relative path and hash, and the files of
        the FAST tokenizer.

        Raises RoboAlignError if the backbone has no folder.
        """
        folder = Path(folder)
        record = {
            "format": POLICY_FORMAT,
            "kind": self.kind,
            "backbone": refer_to_backbone(self.mllm, folder),
            "view": self.view.model_dump(),
            "config": self.config.model_dump(),
            "seed": self.seed,
            "hold": self.hold.model_dump(),
            "action_stats": self.action_stats.to_dict(),
            "versions": {"roboalign": roboalign.__version__}
            | {name: version(name) for name in ("torch", "transformers")},
        }
        with atomic_path(folder) as temporary:
            self.fast.save(temporary)
            record["fast_sha256"] = _fast_hash(temporary)
            write_json(temporary / "policy.json", record)

    @classmethod
    def load(
        cls, folder: str | Path, device: str = "cpu", *, compile: bool = False
    ) -> "TokenPolicy":
        """Read a policy and its backbone.

        Raises RoboAlignError, naming file and field, if anything is missing, broken or
        inconsistent, or if the policy was made for another backbone.
        """
        folder = Path(folder)
        path = folder / "policy.json"
        if compile:
            raise RoboAlignError(
                "a token policy is not compiled", where=str(path), fix="load it without `compile`"
            )
        record = read_policy_record(folder)
        fast = FastTokenizer.load(folder)
        if parse_entry(str, record, "fast_sha256", path) != _fast_hash(folder):
            problem = "the FAST tokenizer is not the one that was written (sha256 differs)"
            raise RoboAlignError(problem, where=str(folder), fix=REMAKE)
        reference = parse_entry(BackboneReference, record, "backbone", path)
        backbone = find_backbone(reference, path)
        return cls(
            load_mllm(backbone, dtype=getattr(torch, reference.dtype), device=device),
            fast,
            parse_stats(record, "action_stats", fast.action_dim, path),
            parse_entry(HoldRule, record, "hold", path),
            parse_entry(TokenView, record, "view", path),
            parse_entry(TokenPolicyConfig, record, "config", path),
            parse_entry(int, record, "seed", path),
        )


def _fast_hash(folder: Path) -> str:
    return hash_tree(folder, lambda file: file.name in _FAST_FILES)

"""Sample answers from a vLLM server: one request per prompt, answers as token ids, and weights
verified to be ours.

The server runs on the policy's folder. Either it was started separately and serves all processes,
or each process starts one on its own GPU (docs/how-to/vllm-and-verl.md). Everything it returns is
checked before it is trained on. The importance ratios come from the trainer's own
log-probabilities, never from the server's.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from roboalign.align.engines.vllm.chat import chat_messages, read_completion, sampling
from roboalign.align.engines.vllm.client import GOES_ON, SERVER_OPTIONS, VllmClient, VllmConfig
from roboalign.align.engines.vllm.process import VllmProcess, shown
from roboalign.align.engines.vllm.weights import write_policy
from roboalign.align.grpo.logprobs import completion_statistics
from roboalign.align.grpo.rollout import Batch, Rollout, batch_of
from roboalign.core.errors import RoboAlignError
from roboalign.core.files import locked
from roboalign.core.progress import say
from roboalign.mllm.encode import Encoded, Prompt, encode_prompt
from roboalign.mllm.generate import Generation
from roboalign.mllm.load import Mllm

CHAT = "/v1/chat/completions"
# prompts whose greedy answers must have our log-probabilities after every reload
PROBES = 4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Drift:
    """Difference between the server's log-probabilities and ours over a number of tokens, in
    nats."""

    total: float
    largest: float
    tokens: int

    @property
    def mean(self) -> float:
        return self.total / max(1, self.tokens)

    @classmethod
    def over(cls, parts: "Sequence[Drift]") -> "Drift":
        """Return the difference over all parts together."""
        return cls(
            sum(p.total for p in parts), max(p.largest for p in parts), sum(p.tokens for p in parts)
        )


class VllmSampler:
    """Sample for `roll_out` from a server, instead of `generate`."""

    def __init__(
        self,
        config: VllmConfig,
        out_dir: Path = Path(),
        device: torch.device = CPU,
        rank: int = 0,
        *,
        images: int = 1,
    ) -> None:
        """Prepare to sample. With `config.serve`, this process's own server will run on `device`,
        log to `out_dir`/vllm-RANK.log and accept up to `images` images per prompt.

        Raises RoboAlignError if `config.serve` is not an executable.
        """
        self.config = config
        self.folder = Path(config.weights).resolve() / "model"
        self.own: VllmProcess | None = None
        self.served_as = ""
        if config.serve:
            log = out_dir / f"vllm-{rank}.log"
            self.own = VllmProcess(config, self.folder, log, device, images)
            self.client = VllmClient(
                config,
                f"see the log; {GOES_ON}",
                socket=self.own.socket,
                where=str(log),
                check=self.own.check,
            )
            self.says = f"each process samples its answers with `{shown(self.own.command)}`"
        else:
            command = f"VLLM_SERVER_DEV_MODE=1 vllm serve {self.folder} {SERVER_OPTIONS}"
            self.client = VllmClient(
                config,
                f"see that the server is up: `{command}` (docs/how-to/vllm-and-verl.md); {GOES_ON}",
            )
            self.says = f"{config.url} samples the answers: `{command}`"

    def write(self, mllm: Mllm, update: int) -> None:
        """Write the model after `update` updates where servers read it. Raises RoboAlignError like
        `write_policy`."""
        write_policy(mllm, self.folder, update)
        if not self.served_as:
            say(self.says, "vllm")

    def load(
        self,
        mllm: Mllm,
        probes: Sequence[Prompt],
        update: int,
        max_new_tokens: int,
        *,
        share_prompt: bool = True,
    ) -> Drift:
        """Make the server load what was written, and verify by greedy answers to `probes` that it
        answers as `mllm`.

        Starts or wakes this process's own server first. If `mllm` is sharded, all processes must
        call this at once.

        Returns the difference between the server's log-probabilities and the model's. Raises
        RoboAlignError if the server cannot be started or reached, cannot load the folder, or
        answers like another model.
        """
        if self.own is not None:
            self._rouse(self.own)
        self._name()  # waits for a server that is still starting
        loading = {"method": "reload_weights", "kwargs": {"weights_path": str(self.folder)}}
        self.client.request("/collective_rpc", loading)
        # Drop what was computed from the old weights: processed images (two processes of the server
        # share their keys; if only one drops them, the next request ends it), the outputs of the
        # vision tower, keys and values.
        self.client.request("/reset_mm_cache", {})
        self.client.request("/reset_encoder_cache", {})
        self._reset_prefix_cache()
        prompts = [encode_prompt(mllm, probe.question, probe.images) for probe in probes]
        greedy = self.sample(
            mllm,
            probes,
            prompts,
            samples=1,
            max_new_tokens=max_new_tokens,
            temperature=0.0,
            stop=None,
            seed=[0] * len(prompts),
        )
        found = drift_of(mllm, prompts, greedy, share_prompt=share_prompt)
        self.check(
            found,
            f"greedy answers to {len(prompts)} prompts after the weights of update {update} were loaded",
        )
        return found

    def _rouse(self, own: VllmProcess) -> None:
        """Start or wake the server, after freeing the memory that the trainer no longer uses."""
        if own.device.type == "cuda":
            torch.cuda.empty_cache()
        if not own.started:
            own.start()
        elif self.config.sleep:
            self.client.request(
                "/wake_up", {}, final=True
            )  # a failure means too little memory, and the trainer will free no more

    def rest(self) -> None:
        """Let this process's own server free its memory until the next `load`."""
        if self.own is not None and self.config.sleep:
            # Level 1 keeps the weights in host memory. Level 2 would not, but then tensors that are
            # neither parameters nor buffers come back undefined: Qwen3-VL's deepstack_input_embeds,
            # which is assumed to be zeros (vLLM 0.32).
            self.client.request("/sleep?level=1", {})

    def close(self) -> None:
        """Close the connections and end this process's own server; a server at a URL keeps
        running."""
        self.client.close()
        if self.own is not None:
            self.own.stop()

    def check(self, drift: Drift, what: str) -> None:
        """Raise RoboAlignError if the server's log-probabilities are not those of our weights."""
        if not drift.mean <= self.config.tolerance:  # also catches NaN
            raise RoboAlignError(
                f"the server answers with other weights than the trainer's: its log-probabilities differ by "
                f"{drift.mean:.3g} a token ({drift.largest:.3g} at most) in {what}; {self.config.tolerance:g} is "
                "allowed",
                where=self.client.where,
                fix=("" if self.own else f"start the server on {self.folder}, for this run alone; ")
                + f"where it computes in less precision, raise rl.vllm.tolerance; {GOES_ON}",
            )

    def sample(
        self,
        mllm: Mllm,
        asked: Sequence[Prompt],
        prompts: Sequence[Encoded],
        *,
        samples: int,
        max_new_tokens: int,
        temperature: float,
        stop: str | None,
        seed: Sequence[int],
    ) -> Generation:
        """Sample like `generate` on `prompts`, the encoded `asked`; the seeds of a prompt's answers
        are `seed + 0, 1, ...`.

        `logprobs` are those of the model's logits at temperature 1. Raises RoboAlignError if the
        server is lost, or if a reply does not consist of answers to the prompt that was sent.
        """
        settings = sampling(mllm, samples, max_new_tokens, temperature, stop)
        bodies = [
            {"model": self._name(), "messages": chat_messages(one), **settings, "seed": number}
            for one, number in zip(asked, seed, strict=True)
        ]
        replies = self._all(bodies)
        answers = [
            read_completion(mllm, reply, encoded, samples, max_new_tokens, stop, self.client.where)
            for reply, encoded in zip(replies, prompts, strict=True)
        ]
        tokens = [[ids for ids, _, _ in group] for group in answers]
        return Generation(
            tokens=tokens,
            logprobs=[[logp for _, logp, _ in group] for group in answers],
            finished=[[end for _, _, end in group] for group in answers],
            n_prefill_tokens=sum(len(one.input_ids) for one in prompts),
            n_decoded_tokens=sum(len(ids) for group in tokens for ids in group),
        )

    def _all(self, bodies: list[dict[str, Any]]) -> list[Any]:
        """Return the replies to all requests. The first permanent failure cancels the others."""
        with ThreadPoolExecutor(self.config.concurrency) as pool:
            futures = [pool.submit(self.client.request, CHAT, body) for body in bodies]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [future for future in done if future.exception() is not None]
            if failed:
                self.client.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                failed[0].result()
            return [future.result() for future in futures]

    def _name(self) -> str:
        """Return the model name that the server uses."""
        if not self.served_as:
            reply = self.client.request("/v1/models")
            try:
                self.served_as = str(reply["data"][0]["id"])
            except (KeyError, IndexError, TypeError):
                raise RoboAlignError(
                    "the reply names no model",
                    where=self.client.place("/v1/models"),
                    fix="check that rl.vllm.url is that of a vLLM server",
                ) from None
        return self.served_as

    def _reset_prefix_cache(self) -> None:
        """Reset the cache. The server refuses while requests are active; those of a killed run end
        by themselves."""
        end = time.monotonic() + self.config.patience
        while (said := self.client.request("/reset_prefix_cache", {})) is not None and said.get(
            "success"
        ) is False:
            if time.monotonic() > end:
                raise RoboAlignError(
                    "the server does not let go of its prefix cache",
                    where=self.client.where,
                    fix="see that nothing else asks this server, or start it again",
                )
            time.sleep(0.5)


@contextmanager
def serving(sampler: VllmSampler | None, leads: bool) -> Iterator[None]:
    """Lock the sampler's folder during a training, and close the sampler at its end.

    Raises RoboAlignError if another training uses the folder, since one server has one policy.
    """
    if sampler is None:
        yield
        return
    with locked(sampler.config.weights) if leads else nullcontext():
        try:
            yield
        finally:
            sampler.close()


def drift_of(
    mllm: Mllm, prompts: Sequence[Encoded], generation: Generation, *, share_prompt: bool = True
) -> Drift:
    """Return how far `generation.logprobs` are from the model's own, over all its tokens."""
    ids = [row for group in generation.tokens for row in group]
    logp = [row for group in generation.logprobs for row in group]
    rollout = Rollout(list(prompts), ids, logp, [], torch.zeros(len(ids)), generation)
    return own_logp(
        mllm, batch_of(mllm, rollout, 0, len(prompts)), temperature=1.0, share_prompt=share_prompt
    )[1]


def own_logp(
    mllm: Mllm, batch: Batch, *, temperature: float, share_prompt: bool = True
) -> tuple[Batch, Drift]:
    """Return the batch with the model's own log-probabilities at `temperature` instead of the
    server's, and their difference.

    The server's log-probabilities are of the logits, as at temperature 1, and are compared with
    ours at 1.
    """
    training = mllm.model.training
    mllm.model.eval()
    with torch.no_grad():
        logp = {
            one: completion_statistics(
                mllm.model,
                batch.prompts,
                batch.completions,
                batch.mask,
                images=batch.images,
                temperature=one,
                share_prompt=share_prompt,
            ).logp
            for one in {temperature, 1.0}
        }
    mllm.model.train(training)
    apart = (logp[1.0] - batch.old_logp).abs()[batch.mask.bool()]
    return replace(batch, old_logp=logp[temperature]), Drift(
        float(apart.sum()), float(apart.max()), len(apart)
    )

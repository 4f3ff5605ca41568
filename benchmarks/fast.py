"""Speed of FAST encoding and decoding against a loop over chunks, the way the published processor goes about it.

    python benchmarks/fast.py [--chunks 4000] [--repeats 7] [--fast FOLDER] [--json PATH]

Both sides use the same vocabulary and must agree on every id and action before anything is timed. The two are timed
in turn, so that a busy machine slows both; the ratio is taken within each repeat and its median and range are given.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.fft import dct, idct
from transformers import PreTrainedTokenizerFast

from roboalign.actions.fast import FastTokenizer
from roboalign.core.files import write_json

HORIZON, ACTION_DIM = 16, 7


def trajectories(n: int, seed: int = 0) -> np.ndarray:
    """Smooth random chunks [n, HORIZON, ACTION_DIM] in [-1, 1]."""
    rng = np.random.default_rng(seed)
    frequencies = np.arange(5)
    waves = np.cos(np.pi * frequencies[:, None] * (np.arange(HORIZON) + 0.5) / HORIZON)
    size = 0.5 / (1 + frequencies)[None, :, None]
    return np.clip(
        np.einsum("nkd,kt->ntd", rng.normal(size=(n, 5, ACTION_DIM)) * size, waves), -1, 1
    )


def loop_encode(
    fast: FastTokenizer, bpe: PreTrainedTokenizerFast, chunks: np.ndarray
) -> list[list[int]]:
    """One string and one tokenizer call a chunk."""
    ids = []
    for chunk in chunks:
        offsets = np.around(dct(chunk, axis=0, norm="ortho") * fast.scale) - fast.min_token
        text = "".join(chr(int(offset)) for offset in np.maximum(offsets, 0).flatten())
        ids.append(bpe(text)["input_ids"])
    return ids


def loop_decode(
    fast: FastTokenizer, bpe: PreTrainedTokenizerFast, batch: list[list[int]]
) -> list[np.ndarray]:
    """One tokenizer call and one inverse DCT a chunk."""
    chunks = []
    for ids in batch:
        offsets = np.array([ord(character) for character in bpe.decode(ids)]) + fast.min_token
        chunks.append(
            idct(offsets.reshape(fast.horizon, fast.action_dim) / fast.scale, axis=0, norm="ortho")
        )
    return chunks


def seconds(call: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def compare(
    ours: Callable[[], Any], loop: Callable[[], Any], chunks: int, repeats: int
) -> dict[str, float]:
    """Chunks a second of both (median), and the ratio loop / ours: median, least and greatest over the repeats."""
    pairs = [(seconds(ours), seconds(loop)) for _ in range(repeats)]
    ratios = [slow / quick for quick, slow in pairs]
    return {
        "ours_chunks_per_second": chunks / statistics.median(quick for quick, _ in pairs),
        "loop_chunks_per_second": chunks / statistics.median(slow for _, slow in pairs),
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_greatest": max(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--fast",
        type=Path,
        help="a FAST folder (physical-intelligence/fast); fitted here without it",
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    chunks = trajectories(options.chunks)
    if options.fast:
        fast = FastTokenizer.load(options.fast, horizon=HORIZON, action_dim=ACTION_DIM)
    else:
        fast = FastTokenizer.fit(chunks, scale=10, vocab_size=2048)
    bpe = PreTrainedTokenizerFast(
        tokenizer_object=fast.tokenizer, clean_up_tokenization_spaces=False
    )

    ids = fast.encode(chunks)
    assert ids == loop_encode(fast, bpe, chunks), "the two encoders disagree"
    assert np.allclose(fast.decode_batch(ids), loop_decode(fast, bpe, ids), atol=1e-6), (
        "the two decoders disagree"
    )

    results = {
        "encode": compare(
            lambda: fast.encode(chunks),
            lambda: loop_encode(fast, bpe, chunks),
            len(ids),
            options.repeats,
        ),
        "decode": compare(
            lambda: fast.decode_batch(ids),
            lambda: loop_decode(fast, bpe, ids),
            len(ids),
            options.repeats,
        ),
    }
    print(
        f"{len(ids)} chunks of {HORIZON} x {ACTION_DIM}, {np.mean([len(i) for i in ids]):.1f} tokens a chunk, ",
        end="",
    )
    print(f"vocabulary {fast.vocab_size}, {options.repeats} repeats, {os.cpu_count()} cores\n")
    print("| | ours, chunks/s | loop, chunks/s | ratio (least to greatest) |\n|---|---|---|---|")
    for name, r in results.items():
        speeds = f"{r['ours_chunks_per_second']:,.0f} | {r['loop_chunks_per_second']:,.0f}"
        print(
            f"| {name} | {speeds} | {r['ratio']:.1f} ({r['ratio_least']:.1f} to {r['ratio_greatest']:.1f}) |"
        )
    if options.json:
        settings = {
            "chunks": len(ids),
            "repeats": options.repeats,
            "vocab_size": fast.vocab_size,
            "cores": os.cpu_count(),
        }
        write_json(options.json, {"settings": settings, **results})


if __name__ == "__main__":
    main()

"""How much of SFT's batches is padding, grouped by length as SFT does it and in random order: one command.

    python benchmarks/padding.py MIXTURE MODEL [--batches 16 128] [--samples 6400] [--json PATH]

MIXTURE is a folder of `roboalign data mix` or of the stage `mix` (RUN/mix/mixture), MODEL the folder of the model that
tokenises it (RUN/base/model). The samples are the first that SFT would see in a run of one epoch. Batches are the
micro-batches of a device; padding is to the longest sample of each.
"""

import argparse
from pathlib import Path

import numpy as np
from transformers import AutoConfig

from roboalign.align.dataset import Conversations, lengths_of, sample_order
from roboalign.conversations.stored import StoredConversations
from roboalign.core.files import write_json
from roboalign.mllm.load import Mllm, find_vocabulary
from roboalign.mllm.presets import meta_model
from roboalign.mllm.processors import load_processor


def padding(lengths: np.ndarray, batch: int) -> float:
    """Padded tokens over all tokens of the batches."""
    whole = lengths[: len(lengths) // batch * batch].reshape(-1, batch)
    return float(1 - whole.sum() / (whole.max(1) * batch).sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mixture", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--samples", type=int, default=6400)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    processor = load_processor(options.model)
    model = meta_model(
        AutoConfig.from_pretrained(options.model, local_files_only=True)
    )  # it says what ends a turn
    mllm = Mllm(model, processor, find_vocabulary(processor.tokenizer), options.model)
    stored = StoredConversations(options.mixture, "train")
    items, rows = Conversations(mllm, stored), []
    found: dict[int, int] = {}
    for batch in options.batches:
        updates = min(len(stored), options.samples) // batch
        shares = []
        for lengths in (
            lengths_of(stored)[0],
            np.zeros(len(stored)),
        ):  # of equal lengths the order is random
            order = sample_order(lengths, batch, updates, seed=0)
            for index in order:
                if index not in found:
                    found[index] = len(items[index].input_ids)
            shares.append(padding(np.array([found[index] for index in order]), batch))
        rows.append(
            {"batch": batch, "samples": updates * batch, "grouped": shares[0], "random": shares[1]}
        )
    tokens = np.array(list(found.values()))
    print(
        f"{len(tokens)} samples of {tokens.mean():.0f} tokens ({tokens.min()} to {tokens.max()})\n"
    )
    print("| batch | samples | padding, by length | padding, random order |\n|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['batch']} | {row['samples']:,} | {row['grouped']:.1%} | {row['random']:.1%} |"
        )
    if options.json:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()

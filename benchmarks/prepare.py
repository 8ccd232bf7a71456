"""Text to ids: our preparation of pairs against that of TRL's DPOTrainer.

python benchmarks/prepare.py [--pairs N] [--peer-pairs N] [--seed N]

Both sides get the same rows, the same tokenizer (a byte-level BPE of 8,000 tokens) and a chat
template that ends an answer with the end of turn, where both define the same ids. Ours reads a
Parquet file and writes a memory-mapped folder; TRL's is the function that DPOTrainer itself calls,
on a data set loaded before its clock starts, and writes its Arrow cache. TRL is timed on the first
--peer-pairs rows only. The ids of these rows must agree, or the benchmark fails.

The last line is JSON: pairs a second of both, their `ratio`, and our seconds for 100,000 pairs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as in the command line program

from common import MIXES, TEMPLATE, draw_lengths, machine, versions

from deltalearn.formats.preferences import PairReader
from deltalearn.tune.tokenize import prepare_examples

VOCABULARY = 8000
WORDS = 20_000
MAX_LENGTH = 2048
TARGET_PAIRS, TARGET_SECONDS = 100_000, 60.0
LETTERS = "eeeettaaooiinnsshhrrddllccuummwwffggyyppbbvk"
MARKS = (*[""] * 10, ",", ",", ".", ".", ".\n\n", ":", "?", "!", ")", ";")


def lexicon(seed: int) -> list[str]:
    """Invented words, shorter ones more often; a word's rank gives its frequency."""
    rng = random.Random(seed)
    words: dict[str, None] = {}
    while len(words) < WORDS:
        size = max(1, round(rng.gauss(6, 2.5)))
        words["".join(rng.choices(LETTERS, k=size))] = None
    return list(words)


class Writer:
    """Draws text of words by Zipf's law, with marks and capital letters."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._words = lexicon(seed)
        self._weights = list(itertools.accumulate(1 / (i + 3) for i in range(WORDS)))

    def text(self, words: int) -> str:
        """About so many words."""
        drawn = self._rng.choices(self._words, cum_weights=self._weights, k=words)
        marks = self._rng.choices(MARKS, k=words)
        parts, start = [], True
        for word, mark in zip(drawn, marks, strict=True):
            parts.append((word.capitalize() if start else word) + mark)
            start = mark[:1] in (".", "?", "!")
        return " ".join(parts)


def build_tokenizer(writer: Writer) -> Any:
    """A byte-level BPE as Llama 3 and Qwen have it, trained on the same kind of text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((writer.text(300) for _ in range(1000)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def write_rows(path: Path, writer: Writer, tokenizer: Any, pairs: int, seed: int) -> None:
    """Conversational pairs with the lengths of UltraFeedback, as the pipeline writes them."""
    from deltalearn.pairs import write_pairs
    from deltalearn.records import Pair, Response

    words_a_token = 10_000 / len(tokenizer(writer.text(10_000))["input_ids"])
    lengths = draw_lengths(MIXES["ultrafeedback"], pairs, MAX_LENGTH, seed, words_a_token)

    def answer(words: int) -> Response:
        return Response("", writer.text(words), (), "stop", 0)

    drawn = [
        Pair(str(i), 0, ({"role": "user", "content": writer.text(prompt)},), answer(c), answer(r))
        for i, (prompt, c, r) in enumerate(lengths)
    ]
    write_pairs(path, drawn, "strong", "weak")


def ours(tokenizer: Any, rows: Path, out: Path) -> tuple[float, Any, Any]:
    """Seconds from the file to the mapped folder, the examples and their counts."""
    began = time.perf_counter()
    examples, counts = prepare_examples(
        tokenizer, PairReader(str(rows)), MAX_LENGTH, directory=out, key="benchmark"
    )
    return time.perf_counter() - began, examples, counts


def theirs(tokenizer: Any, rows: Path, pairs: int, cache: Path) -> tuple[float, Any]:
    """Seconds of TRL's preparation of the first `pairs` rows, and its data set."""
    import datasets
    from trl.trainer.dpo_trainer import DPOTrainer

    datasets.disable_progress_bars()
    data = datasets.load_dataset(
        "parquet", data_files=str(rows), split=f"train[:{pairs}]", cache_dir=str(cache)
    )
    arguments = SimpleNamespace(
        dataset_num_proc=None, max_length=None, truncation_mode="keep_start"
    )
    trainer = SimpleNamespace(_tokenizer=tokenizer)  # all that the function reads of a trainer
    began = time.perf_counter()
    prepared = DPOTrainer._prepare_dataset(trainer, data, tokenizer, arguments, "train")
    return time.perf_counter() - began, prepared


def kept(prepared: Any) -> Iterator[tuple[list[int], list[int], list[int]]]:
    """TRL's ids of the pairs that our rules keep: none too long, no two answers the same."""
    for row in prepared:
        prompt, chosen, rejected = row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]
        if len(prompt) + max(len(chosen), len(rejected)) <= MAX_LENGTH and chosen != rejected:
            yield prompt, chosen, rejected


def differing(examples: Any, prepared: Any) -> int | None:
    """The first pair whose ids differ, or None."""
    for index, expected in enumerate(kept(prepared)):
        found = examples[index]
        if [found.prompt.tolist(), found.chosen.tolist(), found.rejected.tolist()] != [*expected]:
            return index
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=TARGET_PAIRS, help="rows that we prepare")
    parser.add_argument("--peer-pairs", type=int, default=5000, help="of these, rows TRL prepares")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    peer_pairs = min(chosen.peer_pairs, chosen.pairs)
    print(f"machine: {machine()}")
    print(f"versions: {versions()}")
    with tempfile.TemporaryDirectory() as folder:
        rows, out = Path(folder) / "rows.parquet", Path(folder) / "examples"
        writer = Writer(chosen.seed)
        tokenizer = build_tokenizer(writer)
        write_rows(rows, writer, tokenizer, chosen.pairs, chosen.seed)
        seconds, examples, counts = ours(tokenizer, rows, out)
        lengths = [examples.prompt_lengths, examples.chosen_lengths, examples.rejected_lengths]
        means = "/".join(f"{part.mean():.0f}" for part in lengths)
        print(f"{chosen.pairs:,} pairs, tokens on average {means} (prompt/chosen/rejected)")
        print(f"ours: {chosen.pairs:,} pairs in {seconds:.1f} s, from Parquet; {counts.as_dict()}")
        peer_seconds, prepared = theirs(tokenizer, rows, peer_pairs, Path(folder) / "cache")
        print(f"TRL: {peer_pairs:,} pairs in {peer_seconds:.1f} s, from Arrow in memory")
        wrong = differing(examples, prepared)
        if wrong is not None:
            print(f"the ids of kept pair {wrong} differ from TRL's", file=sys.stderr)
    rate, peer_rate = chosen.pairs / seconds, peer_pairs / peer_seconds
    for_target = TARGET_PAIRS / rate
    print(json.dumps({
        "pairs_per_second": round(rate, 1), "peer_pairs_per_second": round(peer_rate, 1),
        "ratio": round(rate / peer_rate, 2), "seconds_for_100000": round(for_target, 1),
        "within_a_minute": for_target < TARGET_SECONDS, "ids_agree": wrong is None,
        "pairs": chosen.pairs, "peer_pairs": peer_pairs, "cores": machine()["cores"],
    }))  # fmt: skip
    sys.exit(0 if wrong is None else 1)


if __name__ == "__main__":
    main()

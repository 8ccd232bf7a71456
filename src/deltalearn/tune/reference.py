"""Log-probabilities of answers under the untouched student, computed once and kept.

One row per (weights, precision, prompt ids, answer ids): everything that changes the value is in
the key, and nothing else is, so that another lr, beta, loss, seed or pairing never scores again
and changed weights under the same path always do (docs/pitfalls.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from deltalearn.lm.forward import RowLayout
from deltalearn.lm.layout import Ids, Tree, tree_batches
from deltalearn.lm.scoring import group_by_prompt, score_batch
from deltalearn.util.kvstore import KeyValueStore
from deltalearn.util.progress import progress

COMMIT_EVERY = 2048  # answers; what a crash can lose
FILE = "reference_logprobs.sqlite"  # in the folder of the reference


class ReferenceCache:
    """Summed log-probability per answer, append-only and crash-safe."""

    def __init__(self, path: Path) -> None:
        self._store = KeyValueStore[bytes, float](path, "log-probabilities of a reference")
        self.scored = 0  # answers this object had to compute
        self._fresh: dict[bytes, float] = {}

    def __enter__(self) -> ReferenceCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self._store.close()

    def known(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """Return the summed log-probabilities of those of `keys` that are stored."""
        return self._store.get(keys)

    def add(self, key: bytes, logprob: float) -> None:
        """Keep one value; it is on disk after at most COMMIT_EVERY more, or after `flush`."""
        self._fresh[key] = logprob
        if len(self._fresh) >= COMMIT_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what was added."""
        if not self._fresh:
            return
        self._store.add(self._fresh)
        self.scored += len(self._fresh)
        self._fresh = {}


def answer_key(scope: str, prompt: Ids, answer: Ids) -> bytes:
    """Digest prompt, answer and scope, which `train.reference_scope` makes, to an answer's key."""
    hasher = hashlib.sha256(scope.encode())
    for ids in (prompt, answer):  # the length first, so that no two splits collide
        hasher.update(len(ids).to_bytes(8, "little"))
        hasher.update(np.asarray(ids, np.int64).tobytes())
    return hasher.digest()


def reference_logprobs(
    model: nn.Module,
    answers: Sequence[tuple[Ids, Ids]],
    cache: ReferenceCache,
    scope: str,
    rows: RowLayout,
    token_budget: int,
    accelerator: Accelerator,
    title: str = "reference",
) -> Tensor:
    """Look up or compute the log-probabilities of answers under the untouched student.

    What the cache lacks is scored by `model`, all answers of a prompt in one tree, and kept. Every
    process scores its share; the main process alone reads and writes the cache, and all get all
    values.

    Args:
        model: The student before any step, in evaluation mode.
        answers: (prompt ids, answer ids) of each.
        cache: Where values are kept.
        scope: Fingerprint of the weights and how they are run.
        rows: Layout and attention of the rows.
        token_budget: Most tokens of one forward.
        accelerator: The run's processes.
        title: Name for the progress bar.

    Returns:
        Summed log-probabilities, (len(answers),) float32 on the CPU.
    """
    keys = [answer_key(scope, prompt, answer) for prompt, answer in answers]
    (known,) = broadcast_object_list([cache.known(keys) if accelerator.is_main_process else None])
    missing = list({key: i for i, key in enumerate(keys) if key not in known}.values())
    by_prompt = group_by_prompt([answers[i] for i in missing])
    places = [[missing[at] for at in group] for group in by_prompt]
    trees = [Tree(answers[at[0]][0], tuple(answers[i][1] for i in at)) for at in places]
    for tree, sums in _score_together(model, trees, rows, token_budget, accelerator, title):
        for i, value in zip(places[tree], sums, strict=True):
            known[keys[i]] = value
            if accelerator.is_main_process:
                cache.add(keys[i], value)
    if accelerator.is_main_process:
        cache.flush()
    return torch.tensor([known[key] for key in keys], dtype=torch.float32)


def _score_together(
    model: nn.Module,
    trees: Sequence[Tree],
    rows: RowLayout,
    token_budget: int,
    accelerator: Accelerator,
    title: str,
) -> Iterator[tuple[int, list[float]]]:
    """Like `score_trees`, the batches dealt out to all processes and the values shared.

    Every process runs the same number of forwards, as sharded weights need; one without a batch
    left repeats the last.
    """
    batches = tree_batches(trees, rows.layout, token_budget)
    ranks, rank = accelerator.num_processes, accelerator.process_index
    with progress(title, total=sum(len(t.answers) for t in trees), unit="answers") as bar:
        for start in range(0, len(batches), ranks):
            mine = batches[min(start + rank, len(batches) - 1)]
            sums = score_batch(model, [trees[i] for i in mine], rows, accelerator.device)
            scored = list(zip(mine, sums, strict=True))
            for i, values in dict(gather_object(scored)).items():
                bar.advance(len(values), amount=len(values))
                yield i, values

"""Have pairs judged: ask what the cache does not have, keep every reply, score what can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltalearn.evaluate.alpaca.annotations import TIE, Annotation, Verdict
from deltalearn.evaluate.alpaca.cache import VerdictCache
from deltalearn.evaluate.alpaca.judge import Judge
from deltalearn.evaluate.alpaca.outputs import Pair, once
from deltalearn.evaluate.alpaca.reading import Reply
from deltalearn.records import Message
from deltalearn.util.files import digest

# Conversations in, replies out, in the same order; how they are asked is the caller's business.
Ask = Callable[[list[list[Message]]], Sequence[Reply]]
CHUNK = 128  # comparisons between two commits: what a crash may cost


def annotate(
    pairs: Sequence[Pair],
    judge: Judge,
    ask: Ask,
    cache: VerdictCache | None = None,
    *,
    retry: bool = False,
    chunk: int = CHUNK,
    say: Callable[[str], None] | None = None,
) -> list[Annotation]:
    """One annotation per pair, in their order.

    Equal answers are ties and are not asked. retry: ask again what has no preference in the cache.
    Only replies are cached: a judge that could not be asked is asked the next time. When it cannot
    be reached for a whole group, before it answered any, the others are not tried.
    ValueError if `ask` does not return a reply for each conversation; what it raises goes through,
    and what was judged until then is in the cache. UserError if an instruction comes twice.
    """
    if not pairs:
        return []
    once(pairs, "the pairs")
    identity = judge.identity
    keys = [comparison_key(pair, judge.seed) for pair in pairs]
    verdicts = cache.get(identity, keys) if cache else {}
    verdicts = {key: v for key, v in verdicts.items() if v.lasting}
    if retry:
        verdicts = {key: v for key, v in verdicts.items() if v.preference is not None}
    todo = []
    for key, pair in zip(keys, pairs, strict=True):
        if pair.output_1 == pair.output_2:
            verdicts[key] = Verdict(TIE, swapped=judge.swapped(pair.instruction), asked=False)
        elif key not in verdicts:
            todo.append((key, pair))
    if say and todo:
        say(f"{identity.shown}: {len(todo)} comparisons to make, {len(pairs) - len(todo)} known")
    answered = False
    for at in range(0, len(todo), chunk):
        part = todo[at : at + chunk]
        replies = list(ask([judge.conversation(pair) for _, pair in part]))
        if len(replies) != len(part):
            raise ValueError(f"{len(part)} comparisons were asked, {len(replies)} replies came")
        fresh = [
            (key, judge.verdict(pair, reply))
            for (key, pair), reply in zip(part, replies, strict=True)
        ]
        if cache:
            cache.add(identity, [(key, verdict) for key, verdict in fresh if verdict.lasting])
        verdicts.update(fresh)
        answered = answered or not all(verdict.unreached for _, verdict in fresh)
        if not answered:
            verdicts.update((key, fresh[0][1]) for key, _ in todo[at + chunk :])
            break
    return [Annotation(p, identity, verdicts[k]) for k, p in zip(keys, pairs, strict=True)]


def comparison_key(pair: Pair, seed: int) -> str:
    """Identity of a comparison, whatever the models are called."""
    return digest([pair.instruction, pair.output_1, pair.output_2, seed])

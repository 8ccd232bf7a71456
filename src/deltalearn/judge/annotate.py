"""Have pairs judged: ask what the cache does not have, keep every reply, score what can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deltalearn.judge.cache import VerdictCache
from deltalearn.judge.judge import Judge
from deltalearn.judge.replies import Reply
from deltalearn.judge.verdicts import TIE, Annotation, Pair, Verdict
from deltalearn.records import Message
from deltalearn.util.files import digest

# Asks conversations, and calls back with the place of each and its reply as soon as it is there.
Ask = Callable[[list[list[Message]], Callable[[int, Reply], None]], None]


def annotate(
    pairs: Sequence[Pair],
    judge: Judge,
    ask: Ask,
    cache: VerdictCache | None = None,
    *,
    say: Callable[[str], None] | None = None,
) -> list[Annotation]:
    """Have pairs judged; equal answers are ties and are not asked.

    Args:
        pairs: One comparison each; what comes twice is asked once.
        judge: Who compares.
        ask: How the judge is asked. What it raises goes through.
        cache: What was judged before. Each reply is in it before the next one is looked at; a judge
            that could not be asked is asked the next time.
        say: Is told how much there is to ask.

    Returns:
        One annotation per pair, in their order.

    Raises:
        ValueError: `ask` did not give a reply for each conversation.
    """
    identity = judge.identity
    # What makes a comparison the same one, whatever the models are called.
    keys = [digest([p.instruction, p.output_1, p.output_2, judge.seed]) for p in pairs]
    verdicts = cache.get(identity, keys) if cache else {}
    verdicts = {key: v for key, v in verdicts.items() if v.lasting}
    wanted: dict[str, Pair] = {}
    for key, pair in zip(keys, pairs, strict=True):
        if pair.output_1 == pair.output_2:
            verdicts[key] = Verdict(TIE, swapped=judge.swapped(pair.instruction), asked=False)
        elif key not in verdicts:
            wanted[key] = pair
    todo = list(wanted.items())
    if say and todo:
        say(f"{identity.shown}: {len(todo)} comparisons to make, {len(pairs) - len(todo)} known")

    def keep(at: int, reply: Reply) -> None:
        key, pair = todo[at]
        verdicts[key] = judge.verdict(pair, reply)
        if cache and verdicts[key].lasting:
            cache.add(identity, key, verdicts[key])

    if todo:
        ask([judge.conversation(pair) for _, pair in todo], keep)
    if missing := sum(key not in verdicts for key, _ in todo):
        raise ValueError(f"{missing} of {len(todo)} comparisons that were asked have no reply")
    return [Annotation(p, identity, verdicts[k]) for k, p in zip(keys, pairs, strict=True)]

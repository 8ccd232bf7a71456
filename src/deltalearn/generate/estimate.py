"""Estimate of a generate stage before it asks: requests, tokens and cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deltalearn.generate.stage import WINDOW, survey
from deltalearn.openai_api.pacing import CHARACTERS
from deltalearn.records import Request
from deltalearn.responses.store import ResponseStore

SAMPLE = 500  # requests whose prompt tokens are counted


def estimate_generation(
    generator: Any, requests: Iterable[Request], store: Path, *, retry_errors: bool = False
) -> list[str]:
    """Estimate what one model will be asked.

    Args:
        generator: The model as the pipeline knows it, with identity, settings, prices and, unless
            a server has it, files.
        requests: What it is asked; read several times.
        store: The response store, which need not exist.
        retry_errors: Count what ended in an error as still to ask.

    Returns:
        Lines of text for people.
    """
    known, again = {"tokens": 0.0, "answers": 0}, 0
    if store.is_file():
        with ResponseStore(store, existing=True) as opened:
            total, missing = survey(opened, requests)
            again = _errors(opened, requests) if retry_errors else 0
            missing += again
            known = _mean_tokens(opened, generator.identity)
    else:
        total = missing = sum(1 for _ in requests)
    prompt, how = _prompt_tokens(generator, requests)
    most = generator.settings.sampling.max_tokens
    lines = [
        f"{generator.name}: {total:,} requests, {total - missing:,} answered already, "
        f"{missing:,} to ask" + (f", {again:,} of them again" if again else ""),
        f"  prompt tokens: about {prompt * missing:,.0f} ({prompt:,.0f} each, {how})",
    ]
    if known["answers"]:
        expected = min(known["tokens"], most)  # those in the store may have had another limit
        lines.append(
            f"  answer tokens: about {expected * missing:,.0f} ({expected:,.0f} each, the mean of "
            f"{known['answers']:,} answers in the store), at most {most * missing:,}"
        )
    else:
        expected = float(most)
        lines.append(f"  answer tokens: at most {most * missing:,} ({most:,} each)")
    prices = generator.prices
    if prices is not None:
        bound = prices.of(round(prompt * missing), most * missing)
        likely = prices.of(round(prompt * missing), round(expected * missing))
        lines.append(f"  cost: about {likely:,.2f}, at most {bound:,.2f}")
    return lines


def _errors(store: ResponseStore, requests: Iterable[Request]) -> int:
    found, source = 0, iter(requests)
    while keys := {r.key for r in itertools.islice(source, WINDOW)}:
        found += store.errors(keys)
    return found


def _mean_tokens(store: ResponseStore, identity: str) -> dict[str, float]:
    answers, tokens = store.db.execute(
        "SELECT count(*), avg(coalesce(completion_tokens, length(token_ids) / 4)) FROM responses "
        "WHERE finish_reason != 'error' AND (completion_tokens NOT NULL OR length(token_ids)) "
        "AND model = (SELECT id FROM models WHERE identity = ?)",  # some servers do not count
        [identity],
    ).fetchone()
    return {"answers": answers, "tokens": tokens or 0.0}


def _prompt_tokens(generator: Any, requests: Iterable[Request]) -> tuple[float, str]:
    """(mean tokens of a prompt, how they were found)."""
    some = list(itertools.islice(requests, SAMPLE))
    if generator.files is None:
        characters = sum(len(m["content"]) for r in some for m in r.messages)
        return characters / CHARACTERS / len(some), f"at {CHARACTERS} characters a token"
    from deltalearn.generate.engines.local import LocalPrompts
    from deltalearn.lm.load import load_tokenizer

    prompts = LocalPrompts(load_tokenizer(generator.files), generator.spec.template)
    return sum(prompts.sizes(some)) / len(some), f"counted on {len(some):,} of them"

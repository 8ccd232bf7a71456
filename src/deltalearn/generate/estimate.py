"""Estimate of a generate stage before it asks: requests, tokens and cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalearn.generate.stage import WINDOW, survey
from deltalearn.openai_api.pacing import CHARACTERS
from deltalearn.recipe import PricesSpec
from deltalearn.records import Request
from deltalearn.responses.store import ResponseStore

SAMPLE = 500  # requests whose prompt tokens are counted


@dataclass(frozen=True)
class GenerationEstimate:
    """Requests and tokens of one model in a generate stage.

    Attributes:
        name: Of the model.
        requests: All of them.
        missing: Those that the store does not answer.
        again: Those of `missing` that ended in errors before.
        prompt_tokens: Of a prompt, the mean.
        how: How they were counted.
        answer_tokens: Of an answer.
        basis: Where `answer_tokens` comes from; empty where it is the bound `most`.
        most: Tokens of an answer at most.
        prices: What tokens cost, if that is known.
    """

    name: str
    requests: int
    missing: int
    again: int
    prompt_tokens: float
    how: str
    answer_tokens: float
    basis: str
    most: int
    prices: PricesSpec | None

    @property
    def answers(self) -> float:
        """Tokens of all missing answers: likely ones, or at most where nothing is known."""
        return self.answer_tokens * self.missing

    def lines(self) -> list[str]:
        """Lines of text for people."""
        missing, most = self.missing, self.most
        lines = [
            f"{self.name}: {self.requests:,} requests, {self.requests - missing:,} answered "
            f"already, {missing:,} to ask" + (f", {self.again:,} of them again" * bool(self.again)),
            f"  prompt tokens: about {self.prompt_tokens * missing:,.0f} "
            f"({self.prompt_tokens:,.0f} each, {self.how})",
        ]
        if self.basis:
            lines.append(
                f"  answer tokens: about {self.answers:,.0f} ({self.answer_tokens:,.0f} each, "
                f"{self.basis}), at most {most * missing:,}"
            )
        else:
            lines.append(f"  answer tokens: at most {most * missing:,} ({most:,} each)")
        if self.prices is not None:
            prompts = round(self.prompt_tokens * missing)
            likely = self.prices.of(prompts, round(self.answers))
            bound = self.prices.of(prompts, most * missing)
            lines.append(f"  cost: about {likely:,.2f}, at most {bound:,.2f}")
        return lines


def estimate_generation(
    generator: Any, requests: Iterable[Request], store: Path, *, retry_errors: bool = False
) -> GenerationEstimate:
    """Estimate what one model will be asked.

    Args:
        generator: The model as the pipeline knows it, with identity, settings, prices and, unless
            a server has it, files.
        requests: What it is asked; read several times.
        store: The response store, which need not exist.
        retry_errors: Count what ended in an error as still to ask.
    """
    known, tokens, again = 0, 0.0, 0
    if store.is_file():
        with ResponseStore(store, existing=True) as opened:
            total, missing = survey(opened, requests)
            again = _errors(opened, requests) if retry_errors else 0
            missing += again
            known, tokens = _mean_tokens(opened, generator.identity)
    else:
        total = missing = sum(1 for _ in requests)
    prompt, how = _prompt_tokens(generator, requests)
    most = generator.settings.sampling.max_tokens
    return GenerationEstimate(
        name=generator.name,
        requests=total,
        missing=missing,
        again=again,
        prompt_tokens=prompt,
        how=how,
        # Those in the store may have had another limit.
        answer_tokens=min(tokens, most) if known else float(most),
        basis=f"the mean of {known:,} answers in the store" * bool(known),
        most=most,
        prices=generator.prices,
    )


def _errors(store: ResponseStore, requests: Iterable[Request]) -> int:
    found, source = 0, iter(requests)
    while keys := {r.key for r in itertools.islice(source, WINDOW)}:
        found += store.errors(keys)
    return found


def _mean_tokens(store: ResponseStore, identity: str) -> tuple[int, float]:
    """(number of answers, mean tokens of one)."""
    return store.db.execute(
        "SELECT count(*), avg(coalesce(completion_tokens, length(token_ids) / 4)) FROM responses "
        "WHERE finish_reason != 'error' AND (completion_tokens NOT NULL OR length(token_ids)) "
        "AND model = (SELECT id FROM models WHERE identity = ?)",  # some servers do not count
        [identity],
    ).fetchone()


def _prompt_tokens(generator: Any, requests: Iterable[Request]) -> tuple[float, str]:
    """(mean tokens of a prompt, how they were found)."""
    some = list(itertools.islice(requests, SAMPLE))
    if generator.files is None:
        characters = sum(len(m["content"]) for r in some for m in r.messages)
        return characters / CHARACTERS / len(some), f"at {CHARACTERS} characters a token"
    from deltalearn.generate.engines.local import LocalPrompts
    from deltalearn.lm.load import load_tokenizer

    prompts = LocalPrompts(load_tokenizer(generator.files), generator.rendering)
    return sum(prompts.sizes(some)) / len(some), f"counted on {len(some):,} of them"

"""AlpacaEval's second half: have the kept answers judged, or take verdicts given before."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.annotate import Ask, annotate
from deltalearn.evaluate.alpaca.annotations import (
    Annotation,
    match,
    read_annotations,
    write_annotations,
)
from deltalearn.evaluate.alpaca.cache import VerdictCache
from deltalearn.evaluate.alpaca.judge import Judge, load_judge
from deltalearn.evaluate.alpaca.outputs import Pair, pair_up, read_outputs
from deltalearn.evaluate.alpaca.package import ask_with_package
from deltalearn.evaluate.alpaca.reading import Reply
from deltalearn.evaluate.alpaca.result import item_rows, summary
from deltalearn.evaluate.alpaca.sides import find_sides
from deltalearn.evaluate.harness.backends import CONCURRENCY
from deltalearn.evaluate.harness.results import Row
from deltalearn.files import replacing
from deltalearn.records import Message

FOLDER = "alpaca_eval"  # in the result directory: answers, references, verdicts
RETRIES = 8


@dataclass(frozen=True)
class JudgeOptions:
    """evaluator: a name in alpaca_eval, or a file of one's own. model: who answers; default: whom
    the evaluator was published for. url: an OpenAI-compatible server; default: alpaca_eval's own
    client. key_env: the variable with its key. text_only: for servers without log-probabilities.
    annotations: verdicts from a file; nobody is asked.
    """

    evaluator: str | None = None
    model: str | None = None
    url: str | None = None
    key_env: str | None = None
    concurrency: int = CONCURRENCY
    text_only: bool = False
    annotations: Path | None = None

    @property
    def wanted(self) -> bool:
        """Whether anybody is to judge."""
        return self.evaluator is not None or self.annotations is not None


def keep_answers(directory: Path, rows: Sequence[Row], name: str) -> None:
    """Write the model's and the reference's answers as AlpacaEval's own files."""
    golds = [json.loads(row["gold"]) for row in rows]
    answers = [(row, row["output"], name) for row in rows]
    references = [(r, g["output"], g["generator"]) for r, g in zip(rows, golds, strict=True)]
    for file, values in (("model_outputs.json", answers), ("references.json", references)):
        content = [
            {
                "instruction": row["question"],
                "output": output,
                "generator": generator,
                "dataset": row["cluster"],
            }
            for row, output, generator in values
        ]
        path = directory / FOLDER / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")


def judged(
    directory: Path, options: JudgeOptions, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[Row]]:
    """(entry of results.json, rows of items) of the kept answers. UserError if nobody can judge."""
    outputs, references = (
        read_outputs(directory / FOLDER / f) for f in ("model_outputs.json", "references.json")
    )
    pairs = pair_up(outputs, references)
    annotations = (
        match(read_annotations(options.annotations), pairs)
        if options.annotations
        else _ask(directory, pairs, options, say)
    )
    write_annotations(directory / FOLDER / "annotations.json", annotations)
    sides = None if os.environ.get("HF_HUB_OFFLINE") else find_sides()
    order = [reference.instruction for reference in references]
    return summary(annotations, sides, instructions=order), item_rows(annotations)


def _ask(
    directory: Path, pairs: Sequence[Pair], options: JudgeOptions, say: Callable[[str], None]
) -> list[Annotation]:
    assert options.evaluator is not None
    judge = load_judge(options.evaluator, options.model, text_only=options.text_only)
    ask = ask_server(judge, options) if options.url else ask_with_package(judge)
    with VerdictCache(directory / FOLDER / "verdicts.sqlite") as cache:
        return annotate(pairs, judge, ask, cache, say=say)


def ask_server(judge: Judge, options: JudgeOptions) -> Ask:
    """A function that asks the judge at an OpenAI-compatible server. UserError without the key."""
    try:
        import openai
    except ImportError as error:
        raise UserError(
            "asking a judge at a server needs openai; run `pip install 'deltalearn[judge]'`"
        ) from error
    key = os.environ.get(options.key_env, "").strip() if options.key_env else "none"
    if not key:
        raise UserError(f"the environment variable {options.key_env} is not set")

    async def reply(client: Any, gate: asyncio.Semaphore, messages: list[Message]) -> Reply:
        async with gate:
            try:
                found = await client.chat.completions.create(
                    model=judge.model, messages=messages, **judge.settings
                )
                return Reply.from_choice(found.choices[0].model_dump())
            except (openai.AuthenticationError, openai.NotFoundError) as error:
                raise UserError(
                    f"the judge at {options.url}: {str(error).replace(key, '[key]')}"
                ) from None
            except openai.OpenAIError as error:
                return Reply("", error=str(error).replace(key, "[key]")[:300])

    async def replies(conversations: list[list[Message]]) -> list[Reply]:
        gate = asyncio.Semaphore(options.concurrency)
        async with openai.AsyncOpenAI(
            base_url=options.url, api_key=key, max_retries=RETRIES
        ) as client:
            return list(await asyncio.gather(*(reply(client, gate, c) for c in conversations)))

    return lambda conversations: asyncio.run(replies(conversations))

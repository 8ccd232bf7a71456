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
from deltalearn.evaluate.alpaca.cache import FILE, VerdictCache
from deltalearn.evaluate.alpaca.judge import Judge, load_judge
from deltalearn.evaluate.alpaca.length_data import (
    DIFFICULTY_FILE,
    GAMED_FILE,
    Sides,
    find_sides,
    local_sides,
)
from deltalearn.evaluate.alpaca.outputs import Pair, pair_up, read_outputs
from deltalearn.evaluate.alpaca.package import ask_with_package
from deltalearn.evaluate.alpaca.reading import Reply
from deltalearn.evaluate.alpaca.result import item_rows, summary
from deltalearn.evaluate.harness.backends import CONCURRENCY
from deltalearn.evaluate.harness.results import Row
from deltalearn.records import Message
from deltalearn.util.files import digest, file_digest, replacing

FOLDER = "alpaca_eval"  # in the result directory: answers, references, verdicts
RETRIES = 8
SHOWN = 300  # characters of what a server says
REFUSALS = (400, 413, 422)  # what a server says of one prompt; the others may well be answered


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


def judge_key(options: JudgeOptions, data_dir: Path | None) -> str | None:
    """All that makes a verdict and its win rate the same, as one hash; None if nobody judges.

    It is made before a model is asked anything, so that a judge who cannot judge is known early:
    UserError if there is no such evaluator, no key, or no file of annotations.
    """
    if not options.wanted:
        return None
    local = [data_dir / FOLDER / name for name in (GAMED_FILE, DIFFICULTY_FILE)] if data_dir else []
    sides = {path.name: file_digest(path) for path in local if path.is_file()}
    if options.annotations:
        read_annotations(options.annotations)
        return digest(["annotations", file_digest(options.annotations), sides])
    _key(options)
    return digest(["judge", _judge(options).identity.digest, sides])


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
    directory: Path, options: JudgeOptions, data_dir: Path | None, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[Row]]:
    """(entry of results.json, rows of items) of the kept answers.

    data_dir: of local data, and then the hub is not asked for the side files of the length control.
    UserError if nobody can judge, or the judge could not be reached for some of the comparisons: a
    win rate over those that happened to be in time is none of the model.
    """
    outputs, references = (
        read_outputs(directory / FOLDER / f) for f in ("model_outputs.json", "references.json")
    )
    pairs = pair_up(outputs, references)
    annotations = (
        match(read_annotations(options.annotations), pairs)
        if options.annotations
        else _ask(directory, pairs, options, say)
    )
    _all_reached(annotations)
    write_annotations(directory / FOLDER / "annotations.json", annotations)
    sides = _sides(data_dir)
    order = [reference.instruction for reference in references]
    return summary(annotations, sides, instructions=order), item_rows(annotations)


def _all_reached(annotations: Sequence[Annotation]) -> None:
    missing = [a.verdict.fault for a in annotations if a.verdict.unreached]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(annotations):,} comparisons could not be made, the first: "
            f"{missing[0]}; the others are kept, run it again when the judge answers"
        )


def _sides(data_dir: Path | None) -> Sides | None:
    if data_dir is not None:
        return local_sides(data_dir / FOLDER)
    return None if os.environ.get("HF_HUB_OFFLINE") else find_sides()


def _judge(options: JudgeOptions) -> Judge:
    assert options.evaluator is not None
    return load_judge(options.evaluator, options.model, text_only=options.text_only)


def _key(options: JudgeOptions) -> str:
    """The key of the judge's server. UserError if its variable is not set."""
    key = os.environ.get(options.key_env, "").strip() if options.key_env else "none"
    if not key:
        raise UserError(f"the environment variable {options.key_env} is not set")
    return key


def _ask(
    directory: Path, pairs: Sequence[Pair], options: JudgeOptions, say: Callable[[str], None]
) -> list[Annotation]:
    judge = _judge(options)
    ask = ask_server(judge, options) if options.url else ask_with_package(judge)
    with VerdictCache(directory / FOLDER / FILE) as cache:
        return annotate(pairs, judge, ask, cache, say=say)


def ask_server(judge: Judge, options: JudgeOptions) -> Ask:
    """A function that asks the judge at an OpenAI-compatible server. UserError without the key."""
    try:
        import openai
    except ImportError as error:
        raise UserError(
            "asking a judge at a server needs openai; run `pip install 'deltalearn[judge]'`"
        ) from error
    key = _key(options)

    def told(error: Exception, what: str = "") -> str:
        text = str(error).replace(key, "[key]") if options.key_env else str(error)
        return f"{options.url}: {what}{text}"[:SHOWN]

    async def reply(client: Any, gate: asyncio.Semaphore, messages: list[Message]) -> Reply:
        async with gate:
            try:
                found = await client.chat.completions.create(
                    model=judge.model, messages=messages, **judge.settings
                )
                return Reply.from_choice(found.choices[0].model_dump())
            except (openai.AuthenticationError, openai.NotFoundError) as error:
                raise UserError(f"the judge at {told(error)}") from None
            except openai.OpenAIError as error:
                refused = getattr(error, "status_code", None) in REFUSALS
                return Reply("", error=told(error), unreached=not refused)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                return Reply("", error=told(error, "not a chat completion: "), unreached=True)

    async def replies(conversations: list[list[Message]]) -> list[Reply]:
        gate = asyncio.Semaphore(options.concurrency)
        async with openai.AsyncOpenAI(
            base_url=options.url, api_key=key, max_retries=RETRIES
        ) as client:
            return list(await asyncio.gather(*(reply(client, gate, c) for c in conversations)))

    return lambda conversations: asyncio.run(replies(conversations))

"""AlpacaEval's second half: have the kept answers judged, or take verdicts given before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.annotations import match, read_annotations, write_annotations
from deltalearn.evaluate.alpaca.length_data import (
    DIFFICULTY_FILE,
    GAMED_FILE,
    LengthControlData,
    find_length_data,
    local_length_data,
)
from deltalearn.evaluate.alpaca.pairs import pair_up, read_outputs
from deltalearn.evaluate.alpaca.result import item_rows, summary
from deltalearn.evaluate.entries import ItemRow
from deltalearn.judge.annotate import Ask, annotate
from deltalearn.judge.cache import FILE, VerdictCache
from deltalearn.judge.judge import Judge, load_judge
from deltalearn.judge.replies import Reply
from deltalearn.judge.verdicts import Annotation, Pair
from deltalearn.openai_api.endpoint import Endpoint
from deltalearn.openai_api.replies import Fault
from deltalearn.pipeline.stage import Say
from deltalearn.recipe.evaluation import JudgeSpec
from deltalearn.records import Message
from deltalearn.util.files import digest, file_digest, write_text
from deltalearn.util.signals import SafeStop

FOLDER = "alpaca_eval"  # in the result directory: answers, references, verdicts
SHOWN = 300  # characters of what a server says
OF_ONE_PROMPT = ("refused", "filtered")  # faults; the other prompts may well be answered
OPENAI_URL, OPENAI_KEY = "https://api.openai.com/v1", "OPENAI_API_KEY"
OPENAI_DECODER = "openai_completions"  # how an evaluator says that its judge is OpenAI's
Judging = JudgeSpec | Path  # who judges, or a file of verdicts given before


def judge_key(judging: Judging | None, data_dir: Path | None) -> str | None:
    """Hash all that makes a verdict and its win rate the same; None if nobody judges.

    It is made before a model is asked anything, so that a judge who cannot judge is known early.

    Args:
        judging: A judge, or a file of verdicts given before.
        data_dir: Local data, if there is any.

    Raises:
        UserError: If there is no such evaluator, no key, or no file of annotations.
    """
    if judging is None:
        return None
    local = [data_dir / FOLDER / name for name in (GAMED_FILE, DIFFICULTY_FILE)] if data_dir else []
    sides = {path.name: file_digest(path) for path in local if path.is_file()}
    if isinstance(judging, Path):
        read_annotations(judging)
        return digest(["annotations", file_digest(judging), sides])
    judge = load_judge(judging.evaluator, judging.model, text_only=judging.text_only)
    judge_endpoint(judging, judge).key()
    return digest(["judge", judge.identity.digest, sides])


def keep_answers(directory: Path, rows: Sequence[ItemRow], name: str) -> None:
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
        text = json.dumps(content, indent=1, ensure_ascii=False)
        write_text(directory / FOLDER / file, text)


def judged(
    directory: Path, judging: Judging, data_dir: Path | None, say: Say
) -> tuple[dict[str, Any], list[ItemRow]]:
    """Have the kept answers judged.

    Args:
        directory: The result directory.
        judging: A judge, or a file of verdicts given before.
        data_dir: Local data; the hub is then not asked for the side files of the length control.
        say: Gets a line for what goes wrong on the way.

    Returns:
        (entry of results.json, rows of items).

    Raises:
        UserError: If nobody can judge, or the judge could not be reached for some comparisons: a
            win rate over those that happened to be in time is none of the model.
    """
    outputs, references = (
        read_outputs(directory / FOLDER / f) for f in ("model_outputs.json", "references.json")
    )
    pairs = pair_up(outputs, references)
    annotations = (
        match(read_annotations(judging), pairs)
        if isinstance(judging, Path)
        else _ask(directory, pairs, judging, say)
    )
    _all_reached(annotations)
    write_annotations(directory / FOLDER / "annotations.json", annotations)
    sides = side_files(data_dir)
    return summary(annotations, sides), item_rows(annotations)


def _all_reached(annotations: Sequence[Annotation]) -> None:
    missing = [a.verdict.fault for a in annotations if a.verdict.unreached]
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(annotations):,} comparisons could not be made, the first: "
            f"{missing[0]}; the others are kept, run it again when the judge answers"
        )


def side_files(data_dir: Path | None) -> LengthControlData | None:
    """Find the side files of the full length control, in local data or on the hub."""
    if data_dir is not None:
        return local_length_data(data_dir / FOLDER)
    return None if os.environ.get("HF_HUB_OFFLINE") else find_length_data()


def judge_endpoint(spec: JudgeSpec, judge: Judge) -> Endpoint:
    """Find where the judge is asked; UserError if that is nowhere, or its URL is none."""
    url, key_env = spec.url, spec.key_env
    if url is None:
        if judge.evaluator.decoder != OPENAI_DECODER:
            raise UserError(
                f"the judge of {judge.evaluator.name} is no model of OpenAI "
                f"({judge.evaluator.decoder}); name an OpenAI-compatible server with --judge-url"
            )
        url, key_env = OPENAI_URL, key_env or OPENAI_KEY
    return Endpoint(url, judge.model, key_env, concurrency=spec.concurrency)


def _ask(directory: Path, pairs: Sequence[Pair], spec: JudgeSpec, say: Say) -> list[Annotation]:
    judge = load_judge(spec.evaluator, spec.model, text_only=spec.text_only)
    endpoint = judge_endpoint(spec, judge)
    with closing(VerdictCache(directory / FOLDER / FILE)) as cache, SafeStop() as stop:
        return annotate(pairs, judge, ask_server(judge, endpoint, stop, say), cache, say=say)


def ask_server(judge: Judge, endpoint: Endpoint, stop: SafeStop, say: Say) -> Ask:
    """Make a function that asks the judge at an OpenAI-compatible server.

    It raises ServerUnavailable if the server answers nobody, and Stopped when it was asked to stop
    and has finished what was in flight.
    """
    from deltalearn.openai_api.client import Client
    from deltalearn.openai_api.runner import ask_all

    def ask(conversations: list[list[Message]], keep: Callable[[int, Reply], None]) -> None:
        done = 0

        def take(at: int, outcome: Any) -> None:
            nonlocal done
            done += 1
            keep(at, _reply(outcome, endpoint))

        client = Client(endpoint, stop=lambda: stop.asked, say=say)
        calls = (
            ({"model": judge.model, "messages": messages, **judge.evaluator.settings}, _read)
            for messages in conversations
        )
        ask_all(client, calls, take)
        if done < len(conversations):
            stop.leave(f"judge: stopped, {done:,} of {len(conversations):,} comparisons made")

    return ask


def _read(value: Any) -> Reply:
    """The judge's reply in a chat completion; ValueError if it is none."""
    reply = Reply.from_choice(value["choices"][0])
    if reply.error is not None:
        raise ValueError(reply.error)
    return reply


def _reply(outcome: Any, endpoint: Endpoint) -> Reply:
    if not isinstance(outcome, Fault):
        return outcome.value
    told = f"{endpoint.shown}: {outcome.reason}"[:SHOWN]
    return Reply("", error=told, unreached=outcome.kind not in OF_ONE_PROMPT)

"""One benchmark on one model: which items, what lm_eval makes of them, a row for each."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError, needs
from deltalearn.evaluate.entries import ItemRow
from deltalearn.evaluate.harness.lm_eval_private import without_bars
from deltalearn.evaluate.tulu3 import INCLUDE_PATH
from deltalearn.evaluate.tulu3.sources import NoData
from deltalearn.evaluate.tulu3.suite import ALL, Benchmark
from deltalearn.util.files import digest

DEV_SHARE = 5  # one of so many items is for choosing
# Benchmarks of the same questions, under the same names, are split alike: a model that is chosen on
# a question of one may not be reported on it in the other.
FAMILIES = {b.name: b.questions for b in ALL if b.questions}


@dataclass(frozen=True)
class Selection:
    """Which items of a benchmark.

    Attributes:
        split: test is all that is published; dev a fifth of it, chosen by the hash of the item's
            name; held-out the others.
        limit: So many of those, by hash too.
    """

    split: str = "test"
    limit: int | None = None

    def of(self, benchmark: str, ids: Iterable[str]) -> set[str]:
        """Choose from the items called `ids`."""
        family = FAMILIES.get(benchmark, benchmark)
        ranks = {name: int(digest([family, name])[:12], 16) for name in ids}
        if self.split != "test":
            wanted = self.split == "dev"
            ranks = {n: r for n, r in ranks.items() if (r % DEV_SHARE == 0) == wanted}
        return set(sorted(ranks, key=ranks.__getitem__)[: self.limit])


@dataclass(frozen=True)
class Tasks:
    """lm_eval's tasks of one benchmark, one for each stratum where examples differ."""

    benchmark: Benchmark
    tasks: dict[str, Any]

    @property
    def config(self) -> Any:
        """lm_eval's settings of it, the same for all strata."""
        return next(iter(self.tasks.values())).config

    @property
    def chat_cannot(self) -> str | None:
        """Why it cannot be asked through a server's chat."""
        if self.benchmark.kind == "choice":
            return "the server gives no log-likelihoods through its chat; give --tokenizer"
        if not self.benchmark.chat:
            return (
                "it is asked without a chat template, which a server's chat has; give --tokenizer"
            )
        if self.config.gen_prefix:
            return "a server's chat does not go on with a begun answer; give --tokenizer"
        return None

    def chosen(self, selection: Selection) -> dict[str, list[int]]:
        """{task: places of the chosen docs}, only tasks that have any."""
        names = {name: self.ids(name) for name in self.tasks}
        chosen = selection.of(self.benchmark.name, (i for ids in names.values() for i in ids))
        places = {
            name: [at for at, item in enumerate(ids) if item in chosen]
            for name, ids in names.items()
        }
        return {name: found for name, found in places.items() if found}

    def content(self, chosen: dict[str, list[int]]) -> str:
        """A hash of the chosen docs and of the prompts' examples: other data is another one."""
        return digest([self.docs(name, places) for name, places in chosen.items()])

    def ids(self, name: str) -> list[str]:
        """Ids of a task's items."""
        return list(self.tasks[name].eval_docs["id"])

    def docs(self, name: str, places: list[int]) -> Any:
        """A task's items at these places, and its examples."""
        task = self.tasks[name]
        examples = list(task.dataset.get("examples") or ())
        return [task.eval_docs.select(places).to_list(), examples]

    def rows(self, samples: dict[str, list[dict[str, Any]]]) -> list[ItemRow]:
        """A row per item from lm_eval's samples by task."""
        return [_row(self.benchmark, sample) for found in samples.values() for sample in found]


def quiet() -> None:
    """Keep lm_eval's bars and remarks out of the way of ours."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    without_bars()


def load_tasks(benchmark: Benchmark, data_dir: Path | None) -> Tasks:
    """The tasks of a benchmark with their data.

    Args:
        benchmark: Of the suite.
        data_dir: The directory of local data; None for the hub.

    Raises:
        UserError: If lm_eval is not there.
        NoData: If the data is not, or is not what it should be.
    """
    with needs("evaluation needs lm_eval", "evaluate"):
        from lm_eval.tasks import TaskManager
    quiet()
    metadata = {"data_dir": str(data_dir)} if data_dir else {}
    manager = TaskManager(include_path=str(INCLUDE_PATH), include_defaults=False, metadata=metadata)
    try:
        return Tasks(benchmark, manager.load([benchmark.task])["tasks"])
    except (LookupError, TypeError, ValueError, AttributeError, OSError) as error:
        told = f"{type(error).__name__}: {error}"
        raise NoData(f"the data of {benchmark.title} cannot be used ({told})") from error


def run(tasks: Tasks, model: Any, selection: Selection) -> list[ItemRow]:
    """Ask a model the items of a benchmark and grade what it answers.

    Args:
        tasks: The benchmark's.
        model: One that lm_eval takes.
        selection: Which of the items.

    Returns:
        A row per item: id, stratum, cluster, question, score, prompt, output, reasoning,
        extracted, gold.
        AlpacaEval's score is NaN until it is judged.

    Raises:
        UserError: If nothing is selected.
    """
    from lm_eval.evaluator import evaluate

    places = tasks.chosen(selection)
    if not places:
        raise UserError(f"{tasks.benchmark.title}: no item is selected")
    found = evaluate(
        lm=model,
        task_dict={"tasks": {name: tasks.tasks[name] for name in places}, "groups": {}},
        samples=places,
        bootstrap_iters=0,
        log_samples=True,
        apply_chat_template=tasks.benchmark.chat,
        fewshot_as_multiturn=tasks.benchmark.chat,
        confirm_run_unsafe_code=tasks.benchmark.kind == "code",
    )
    return tasks.rows({name: found["samples"][name] for name in places})


def _row(benchmark: Benchmark, sample: dict[str, Any]) -> ItemRow:
    item = sample["doc"]
    output, extracted = _outcome(benchmark, sample)
    return {
        "id": item["id"],
        "stratum": item["stratum"],
        "cluster": item["cluster"],
        "question": item["question"],
        "score": float(sample["score"]),
        "prompt": _text(sample["arguments"][0][0]),
        "output": output,
        "reasoning": reasoning_of(sample),
        "extracted": extracted,
        "gold": item["gold"],
    }


def reasoning_of(sample: dict[str, Any]) -> str:
    """Tell what a model wrote before its answer.

    Args:
        sample: Of lm_eval, with the replies to one item.

    Returns:
        The reasoning with its marks; of several replies a JSON list; "" if there is none.
    """
    found = [getattr(reply, "reasoning", "") for reply in sample["resps"][0]]
    return "" if not any(found) else found[0] if len(found) == 1 else json.dumps(found)


def _outcome(benchmark: Benchmark, sample: dict[str, Any]) -> tuple[str, str]:
    """What the model gave, and what was found in it."""
    results = sample["filtered_resps"]
    if benchmark.kind == "code":
        return json.dumps(results[0]), str(sample["passed"])
    if benchmark.kind == "judged":
        return results[0], ""
    output = results[0] if benchmark.kind == "text" else json.dumps([v for v, _ in results])
    return output, benchmark.grade(sample["doc"], results).extracted


def _text(prompt: Any) -> str:
    """A rendered prompt; a conversation, for servers that render it, as JSON."""
    return prompt if isinstance(prompt, str) else str(getattr(prompt, "prompt", prompt))

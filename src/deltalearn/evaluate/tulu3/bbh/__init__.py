"""BIG-Bench Hard: 27 sub-tasks, three chains of thought each. `bbh:cot-v1::tulu` of OLMES."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from deltalearn.evaluate.tulu3.bbh import grader
from deltalearn.evaluate.tulu3.benchmark import Benchmark
from deltalearn.evaluate.tulu3.examples import lm_eval_task, published
from deltalearn.evaluate.tulu3.items import Splits, dataset, examples, gold, item
from deltalearn.evaluate.tulu3.sources import Row, data_directory, files, hub, numbered, read_json

LOCAL = "bbh/bbh/*.json"
DIGESTS = {  # of the examples, by sub-task
    "boolean_expressions": "0ad7235dd9df7f8c",
    "causal_judgement": "2d5a2eb710b4cc3a",
    "date_understanding": "9e8f3cd569a64a9d",
    "disambiguation_qa": "158fe7c179a3e02f",
    "dyck_languages": "f3d23f1e46475fbd",
    "formal_fallacies": "bba088858cc0bf76",
    "geometric_shapes": "e46f895dcc876ceb",
    "hyperbaton": "56f691155dc8a152",
    "logical_deduction_five_objects": "c4634e73413e9137",
    "logical_deduction_seven_objects": "c4634e73413e9137",
    "logical_deduction_three_objects": "c4634e73413e9137",
    "movie_recommendation": "0abd999726122f3e",
    "multistep_arithmetic_two": "2078e231d0494d54",
    "navigate": "8255b31ebb848ff8",
    "object_counting": "d46e720aa5f82b15",
    "penguins_in_a_table": "c7a43af0a9f27259",
    "reasoning_about_colored_objects": "b27703f9e26b5446",
    "ruin_names": "87816d315ac808dd",
    "salient_translation_error_detection": "34b51d89419fe5f5",
    "snarks": "b6b1cf486901c22b",
    "sports_understanding": "05cd71f52fb6d989",
    "temporal_sequences": "4d13af14b22e4557",
    "tracking_shuffled_objects_five_objects": "bedde46db7c4985a",
    "tracking_shuffled_objects_seven_objects": "bedde46db7c4985a",
    "tracking_shuffled_objects_three_objects": "bedde46db7c4985a",
    "web_of_lies": "af5d1dd9775a6fa0",
    "word_sorting": "98745abc5394820c",
}


def load(task: str, data_dir: str | None = None, **_: Any) -> Splits:
    """A sub-task's questions; three chains of thought as examples, behind its description."""
    directory = data_directory(data_dir)
    if directory is None:
        rows: Iterable[Row] = hub("SaylorTwift/bbh", task, "test")
    else:
        rows = read_json(files(directory, "bbh", LOCAL, f"bbh/bbh/{task}.json")[0])["examples"]
    description, worked = worked_examples(task)
    test = (
        item(id=name, stratum=task, question=row["input"], target=row["target"], gold=row["target"])
        for name, row in numbered(rows, f"{task}/")
    )
    shown = examples(((row["input"], row["target"]) for row in worked), f"{task}/")
    shown[0]["head"] = f"{description}\n\n"
    return dataset(test, shown)


@cache
def worked_examples(task: str) -> tuple[str, list[Row]]:
    """(description, three examples: input, target) of a sub-task. (Suzgun et al. 2022.)"""
    config = lm_eval_task(f"bbh/cot_fewshot/{task}.yaml")
    samples = config["fewshot_config"]["samples"]
    rows = [{"input": s["input"], "target": s["target"]} for s in samples]
    return config["description"].strip(), published(f"bbh/{task}", rows, DIGESTS[task])


BENCHMARK = Benchmark(
    "bbh",
    "BBH",
    6511,
    "exact match",
    "micro",
    grade=lambda item, results: grader.grade(results[0], gold(item), item["stratum"]),
    notes=lambda: ["the published patterns cannot read 18 of 6,511 gold answers: 99.7 is the most"],
)
score = BENCHMARK.score

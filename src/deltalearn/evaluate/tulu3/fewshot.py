"""The worked examples of the suite's prompts.

They are public and lm_eval has nearly all of them in task files of its own, so they are taken from
there, with the few characters changed in which OLMES differs; a digest makes sure that they are the
published ones. PopQA's are rows of its data set.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.sources import NoData, Row, hub, read
from deltalearn.util.files import digest

POPQA_IDS = (
    5985932,
    724502,
    2285098,
    2007997,
    3785558,
    4202904,
    6081578,
    2180840,
    6036329,
    867482,
    1378543,
    5801967,
    4339770,
    6418858,
    2238655,
)
# Places where the four MATH examples of OLMES differ from Minerva's, a typing slip each.
MINERVA_EDITS = (
    (0, "problem", r"\sqrt{x-2}}{\sqrt{5-x}}$.", r"\sqrt{x-2}}{\sqrt{5-x}}$.}"),
    (2, "solution", "30n&=480\\\\\n", "30n&=480\\\n"),
    (3, "problem", "6x-4y&=a,\\\\\n", "6x-4y&=a,\\\n"),
)
DIGESTS = {
    "gsm8k": "07b82d8ff31e3c4b",
    "minerva": "09d64be0e8398e03",
    "truthfulqa": "39195ab141a855f0",
    "popqa": "9fc5572618896e56",
    "bbh/boolean_expressions": "0ad7235dd9df7f8c",
    "bbh/causal_judgement": "2d5a2eb710b4cc3a",
    "bbh/date_understanding": "9e8f3cd569a64a9d",
    "bbh/disambiguation_qa": "158fe7c179a3e02f",
    "bbh/dyck_languages": "f3d23f1e46475fbd",
    "bbh/formal_fallacies": "bba088858cc0bf76",
    "bbh/geometric_shapes": "e46f895dcc876ceb",
    "bbh/hyperbaton": "56f691155dc8a152",
    "bbh/logical_deduction_five_objects": "c4634e73413e9137",
    "bbh/logical_deduction_seven_objects": "c4634e73413e9137",
    "bbh/logical_deduction_three_objects": "c4634e73413e9137",
    "bbh/movie_recommendation": "0abd999726122f3e",
    "bbh/multistep_arithmetic_two": "2078e231d0494d54",
    "bbh/navigate": "8255b31ebb848ff8",
    "bbh/object_counting": "d46e720aa5f82b15",
    "bbh/penguins_in_a_table": "c7a43af0a9f27259",
    "bbh/reasoning_about_colored_objects": "b27703f9e26b5446",
    "bbh/ruin_names": "87816d315ac808dd",
    "bbh/salient_translation_error_detection": "34b51d89419fe5f5",
    "bbh/snarks": "b6b1cf486901c22b",
    "bbh/sports_understanding": "05cd71f52fb6d989",
    "bbh/temporal_sequences": "4d13af14b22e4557",
    "bbh/tracking_shuffled_objects_five_objects": "bedde46db7c4985a",
    "bbh/tracking_shuffled_objects_seven_objects": "bedde46db7c4985a",
    "bbh/tracking_shuffled_objects_three_objects": "bedde46db7c4985a",
    "bbh/web_of_lies": "af5d1dd9775a6fa0",
    "bbh/word_sorting": "98745abc5394820c",
}


def gsm8k() -> list[Row]:
    """Eight: question, answer. (Wei et al. 2022, with OLMES's last sentence.)"""
    samples = _lm_eval_yaml("gsm8k/gsm8k-cot.yaml")["fewshot_config"]["samples"]
    rows = [
        {
            "question": s["question"],
            "answer": s["target"].replace("The answer is", "So the answer is"),
        }
        for s in samples
    ]
    return _published("gsm8k", rows)


def minerva() -> list[Row]:
    """Four: problem, solution. (Lewkowycz et al. 2022.)"""
    from lm_eval.tasks.minerva_math.utils import list_fewshot_samples

    rows = [{"problem": s["problem"], "solution": s["solution"]} for s in list_fewshot_samples()]
    for number, name, theirs, ours in MINERVA_EDITS:
        rows[number][name] = rows[number][name].replace(theirs, ours)
    return _published("minerva", rows)


@cache
def bbh(task: str) -> tuple[str, list[Row]]:
    """(description, three examples: input, target) of a sub-task. (Suzgun et al. 2022.)"""
    config = _lm_eval_yaml(f"bbh/cot_fewshot/{task}.yaml")
    samples = config["fewshot_config"]["samples"]
    rows = [{"input": s["input"], "target": s["target"]} for s in samples]
    return config["description"].strip(), _published(f"bbh/{task}", rows)


@cache
def truthfulqa() -> list[Row]:
    """Six: question, answer. (Lin et al. 2022.)"""
    text = _lm_eval_yaml("truthfulqa/truthfulqa_mc1.yaml")["doc_to_text"]
    examples = text.partition("'")[2].partition("'%}")[0]  # a literal of the template
    pairs = (block.split("\nA: ") for block in examples.removeprefix("Q: ").split("\n\nQ: "))
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    return _published("truthfulqa", rows)


def popqa(directory: Path | None) -> list[Row]:
    """Fifteen: question, obj."""
    if directory is not None:
        file = directory / "tulu3_fewshot" / "popqa_15shot.json"
        if not file.is_file():
            raise NoData(f"{file}: not there; PopQA's prompts need its examples")
        source, rows = str(file), {row["id"]: row for row in read(file)}
    else:
        source = "akariasai/PopQA"
        rows = {row["id"]: row for row in hub(source, None, "test")}
    if lost := [i for i in POPQA_IDS if i not in rows]:
        raise NoData(f"{source}: no row with the id {lost[0]}, an example of PopQA's prompts")
    chosen = [{"question": rows[i]["question"], "obj": rows[i]["obj"]} for i in POPQA_IDS]
    if digest(chosen)[:16] != DIGESTS["popqa"]:
        raise NoData(f"{source}: the examples of PopQA's prompts are not the published ones")
    return chosen


def _published(name: str, rows: list[Row]) -> list[Row]:
    """The rows, if they are the published ones."""
    if digest(rows)[:16] != DIGESTS[name]:
        raise UserError(
            f"the examples of {name} are not the published ones: lm_eval has changed its task "
            "files; install lm_eval 0.4.13"
        )
    return rows


def _lm_eval_yaml(path: str) -> dict[str, Any]:
    """A task file of the installed lm_eval, read as data: no function in it is loaded."""
    try:
        import lm_eval.tasks
    except ImportError as error:
        raise UserError(
            "the Tülu 3 suite needs lm_eval; run `pip install 'deltalearn[evaluate]'`"
        ) from error
    text = (Path(lm_eval.tasks.__file__).parent / path).read_text(encoding="utf-8")
    return yaml.load(text, Loader=_Plain)  # noqa: S506 (a SafeLoader)


class _Plain(yaml.SafeLoader):
    """Reads functions of a task file as their names."""


_Plain.add_multi_constructor("!function", lambda loader, suffix, node: str(node.value))

"""Protects the prompts of the Tülu 3 suite: what a model sees is what OLMES shows, to the letter.

The expected strings are built here from the raw data and the published examples, without the
code under test, for items at the beginning, in the middle and at the end of every benchmark.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import socket
from pathlib import Path

import pytest
import yaml
from helpers.data import DATA, GOLDEN, drop_data

pytest.importorskip("lm_eval")

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.run import Selection, load_tasks
from deltalearn.evaluate.tulu3 import INCLUDE_PATH, bbh, examples, gsm8k, math
from deltalearn.evaluate.tulu3.suite import ALL, BY_NAME, ELEVEN, averaged

PREFIX = "Here is the completed function:\n\n```python\n"


def template(messages: list[dict], add_generation_prompt: bool = True) -> str:
    """Tülu's chat format, written out."""
    text = ""
    for message in messages:
        end = "<end>\n" if message["role"] == "assistant" else "\n"
        text += f"<|{message['role']}|>\n{message['content']}{end}"
    if add_generation_prompt:
        return text + "<|assistant|>\n"
    return text.removesuffix("<end>\n")  # the last turn goes on


def chat(*turns: str, begun: str | None = None) -> str:
    """The expected prompt: turns of user and assistant in turn, and a begun answer."""
    text = ""
    for at, turn in enumerate(turns):
        text += f"<|assistant|>\n{turn}<end>\n" if at % 2 else f"<|user|>\n{turn}\n"
    return text + "<|assistant|>\n" + (begun or "")


def rendered(name: str, directory: Path = GOLDEN) -> dict[str, tuple[str, list]]:
    """{id: (prompt, continuations)} of three items of each task, as lm_eval asks them."""
    tasks = load_tasks(BY_NAME[name], directory)
    found = {}
    for task in tasks.tasks.values():
        size = len(task.eval_docs)
        task.build_all_requests(
            samples=sorted({0, size // 2, size - 1}),
            apply_chat_template=tasks.benchmark.chat,
            fewshot_as_multiturn=tasks.benchmark.chat,
            chat_template=template if tasks.benchmark.chat else None,
        )
        for request in task.instances:
            prompt, rest = request.args
            found.setdefault(request.doc["id"], (prompt, []))[1].append(rest)
    return found


def size(tasks) -> int:
    """Items of all strata."""
    return sum(len(task.eval_docs) for task in tasks.tasks.values())


def thirds(rows: list) -> list[tuple[int, dict]]:
    return [(at, rows[at]) for at in (0, len(rows) // 2, len(rows) - 1)]


def lines(path: str) -> list[dict]:
    file = GOLDEN / path
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as text:
        return [json.loads(line) for line in text]


def published(name: str) -> list | dict:
    return json.loads((GOLDEN / "tulu3_fewshot" / name).read_text())


# -- the eleven ----------------------------------------------------------------------------------


def mmlu_rows(split: str, subject: str) -> list[dict]:
    with (GOLDEN / "mmlu" / split / f"{subject}_{split}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def mmlu_question(row: dict) -> str:
    a, b, c, d = (row[f"choice{i}"] for i in range(4))
    return f"Question: {row['question']}\n A. {a}\n B. {b}\n C. {c}\n D. {d}"


def test_mmlu_mc():
    found = rendered("mmlu_mc")
    assert len(found) == 3 * 57
    for subject in ("abstract_algebra", "high_school_us_history", "world_religions"):
        turns = []
        for row in mmlu_rows("dev", subject):
            turns += [mmlu_question(row) + "\nAnswer:", "ABCD"[int(row["answer"])]]
        assert len(turns) == 10
        about = subject.replace("_", " ")
        turns[0] = (
            f"The following are multiple choice questions (with answers) about {about}.\n\n"
            + turns[0]
        )
        for at, row in thirds(mmlu_rows("test", subject)):
            prompt, continuations = found[f"{subject}/{at}"]
            assert prompt == chat(*turns, mmlu_question(row) + "\nAnswer:")
            assert continuations == ["A", "B", "C", "D"], "bare letters"


@pytest.mark.slow
def test_mmlu_cot():
    found = rendered("mmlu_cot")
    for subject in ("anatomy", "college_physics", "virology"):
        about = subject.replace("_", " ")
        for at, row in thirds(mmlu_rows("test", subject)):
            prompt, ((options),) = found[f"{subject}/{at}"]
            assert prompt == chat(
                f"The following are multiple choice questions about {about}. Summarize your "
                "reasoning concisely, then conclude with 'Therefore, the answer is: X' where X is "
                f"one of A, B, C, or D.\n\n{mmlu_question(row)}"
            )
            assert (options["max_gen_toks"], options["until"]) == (512, ["Question:"])


def test_popqa():
    turns = []
    for shot in published("popqa_15shot.json")[:15]:
        turns += [f"Q: {shot['question']} A:", shot["obj"]]
    found = rendered("popqa")
    for _, row in thirds(lines("popqa_subset/popqa_1000.jsonl")):
        prompt, (options,) = found[row["id"]]
        assert prompt == chat(*turns, f"Q: {row['question']} A:")
        assert (options["max_gen_toks"], options["until"]) == (15, ["\n\n"])


def test_truthfulqa():
    head = "".join(
        f"Q: {shot['question']}\nA: {shot['choices'][0]}\n\n"
        for shot in published("truthfulqa_6shot.json")
    )
    found = rendered("truthfulqa")
    for at, row in thirds(json.loads((GOLDEN / "truthfulqa/mc_task.json").read_text())):
        prompt, continuations = found[str(at)]
        assert prompt == chat(f"{head}Q: {row['question'].strip()}\nA:")
        assert set(continuations) == {*row["mc1_targets"], *row["mc2_targets"]}
        assert len(set(continuations)) == len(continuations), "each choice once, no space before"


def test_bbh():
    found = rendered("bbh")
    assert len(found) == 3 * 27
    examples = published("bbh_3shot.json")
    for task in ("boolean_expressions", "dyck_languages", "word_sorting"):
        text = (GOLDEN / "bbh" / "cot-prompts" / f"{task}.txt").read_text()
        description = text.split("-----\n")[1].split("\n\nQ:")[0].strip()
        turns = []
        for shot in examples[task]:
            turns += [f"Q: {shot['input']}\nA: Let's think step by step.", shot["target"]]
        turns[0] = f"{description}\n\n{turns[0]}"
        rows = json.loads((GOLDEN / "bbh" / "bbh" / f"{task}.json").read_text())["examples"]
        for at, row in thirds(rows):
            prompt, (options,) = found[f"{task}/{at}"]
            assert prompt == chat(*turns, f"Q: {row['input']}\nA: Let's think step by step.")
            assert (options["max_gen_toks"], options["until"]) == (512, [])


def test_gsm8k():
    turns = []
    for shot in published("gsm8k_8shot.json"):
        turns += [f"Question: {shot['question']}", f"Answer: {shot['answer']}"]
    found = rendered("gsm8k")
    for at, row in thirds(lines("gsm8k/test.jsonl")):
        prompt, (options,) = found[str(at)]
        assert prompt == chat(*turns, f"Question: {row['question']}", begun="Answer:")
        assert options["until"] == ["Question:", "</s>", "<|im_end|>"]
        assert options["max_gen_toks"] == 512


def test_math():
    turns = []
    for shot in published("minerva_math_4shot.json"):
        turns += [f"Problem:\n{shot['problem']}\n\nSolution:", shot["solution"]]
    found = rendered("math")
    for _, row in thirds(lines("math500/test.jsonl")):
        prompt, (options,) = found[row["unique_id"]]
        assert prompt == chat(*turns, f"Problem:\n{row['problem']}\n\nSolution:")
        assert (options["max_gen_toks"], options["until"]) == (1024, [])


def test_drop(tmp_path):
    found = rendered("drop", drop_data(tmp_path))
    drawn = random.Random(1234).sample(range(5), 3)
    head = "".join(
        f"Passage: Passage number {i}.\nQuestion: Which one is {i}?\nAnswer: one {i}, two {i}\n\n"
        for i in drawn
    )
    passages = json.loads((GOLDEN / "drop_fixture" / "drop.json").read_text()).values()
    rows = [{**pair, "passage": p["passage"]} for p in passages for pair in p["qa_pairs"]]
    for _, row in thirds(rows):
        prompt, (options,) = found[row["query_id"]]
        assert prompt == (
            f"{head}Passage: {row['passage']}\nQuestion: {row['question']}\nAnswer:"
        ), "plain text, no chat"
        assert options["until"] == ["Passage:", "Question:", "\n\n"]
        assert options["max_gen_toks"] == 50


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("humaneval", "humaneval/HumanEval.jsonl.gz"),
        ("humanevalplus", "humanevalplus/HumanEvalPlus-OriginFmt.jsonl.gz"),
    ],
)
def test_humaneval(name, file):
    found = rendered(name)
    for _, row in thirds(lines(file)):
        prompt, (options,) = found[row["task_id"]]
        assert prompt == chat(row["prompt"] + PREFIX, begun=PREFIX), "in the question and begun"
        assert options["until"] == [
            "\nclass", "\nif", "\nprint", "\n#", "\n```", "<|eot_id|>",
        ]  # fmt: skip
        assert (options["temperature"], options["top_p"]) == (0.8, 0.95)
        assert options["do_sample"] is True
    config = load_tasks(BY_NAME[name], GOLDEN).config
    assert config.repeats == 20
    assert config.unsafe_code is True, "lm_eval alone asks for permission too"


def test_ifeval_and_alpaca_eval():
    found = rendered("ifeval")
    for _, row in thirds(lines("ifeval/input_data.jsonl")):
        prompt, (options,) = found[str(row["key"])]
        assert prompt == chat(row["prompt"])
        assert (options["max_gen_toks"], options["until"]) == (2048, [])
    found = rendered("alpaca_eval")
    rows = json.loads((GOLDEN / "alpaca_eval/reference_gpt4_1106_preview.json").read_text())
    for at, row in thirds(rows):
        prompt, (options,) = found[str(at)]
        assert prompt == chat(row["instruction"])
        assert (options["max_gen_toks"], options["until"]) == (8192, [])


# -- what holds for all --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.data
def test_sizes_of_complete_data():
    whole = {"mmlu_mc", "mmlu_cot", "gsm8k", "alpaca_eval", "ifeval", "bbh", "truthfulqa"}
    whole |= {"humaneval", "humanevalplus"}
    for name in whole:
        assert size(load_tasks(BY_NAME[name], DATA)) == BY_NAME[name].full


def test_examples_are_the_published_ones():
    """From lm_eval's own task files, with OLMES's differences, to the letter."""
    assert gsm8k.worked_examples() == [
        {k: row[k] for k in ("question", "answer")} for row in published("gsm8k_8shot.json")
    ]
    assert math.worked_examples() == [
        {k: row[k] for k in ("problem", "solution")} for row in published("minerva_math_4shot.json")
    ]
    for task, rows in published("bbh_3shot.json").items():
        assert bbh.worked_examples(task)[1] == [
            {k: r[k] for k in ("input", "target")} for r in rows
        ]


def test_changed_examples_are_refused(monkeypatch):
    bbh.worked_examples.cache_clear()
    monkeypatch.setattr(examples, "digest", lambda rows: "0" * 64)
    with pytest.raises(UserError, match="not the published ones"):
        bbh.worked_examples("snarks")


@pytest.mark.slow
def test_no_network_with_local_data(monkeypatch):
    def refuse(*_):
        raise AssertionError("a network call")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for benchmark in ALL:
        if benchmark.name != "drop":
            assert size(load_tasks(benchmark, GOLDEN)) > 0


@pytest.mark.slow
def test_lm_eval_alone_finds_the_suite(monkeypatch):
    """Through its include path, without our command."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("DELTALEARN_DATA_DIR", str(GOLDEN))
    manager = TaskManager(include_path=str(INCLUDE_PATH), include_defaults=False)
    loaded = manager.load(["tulu3"])
    assert len(loaded["tasks"]) == 9 + 2 * 57 + 27 - 1
    weights = {
        name: [metric.weight_by_size for metric in group._config.aggregate_metric_list]
        for name, group in loaded["groups"].items()
        if group._config.aggregate_metric_list
    }
    assert weights == {"tulu3_mmlu_mc": [False], "tulu3_mmlu_cot": [False], "tulu3_bbh": [True]}


def test_a_folder_is_a_benchmark_of_the_suite_and_a_task_of_lm_eval():
    """To add a benchmark is to add a folder and its line in suite.py; neither is forgotten."""
    tasks = {}
    for path in INCLUDE_PATH.glob("*/*.yaml"):
        name = yaml.load(path.read_text(), Loader=examples._Plain)  # noqa: S506
        tasks[name.get("group") or name["task"]] = path.parent.name
    assert set(tasks) == {benchmark.task for benchmark in ALL}
    assert set(tasks.values()) == {path.parent.name for path in INCLUDE_PATH.glob("*/__init__.py")}
    group = yaml.safe_load((INCLUDE_PATH / "tulu3.yaml").read_text())
    assert set(group["task"]) == {benchmark.task for benchmark in ALL if benchmark.chat}


def test_rows_of_the_hub_are_those_of_the_files(monkeypatch):
    """GSM8K, of which both have one form; what the hub is asked for is in the task's folder."""
    import datasets

    asked = []

    def load_dataset(*place, split):
        asked.append((*place, split))
        return lines("gsm8k/test.jsonl")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.delenv("DELTALEARN_DATA_DIR", raising=False)
    assert gsm8k.load()["test"].to_list() == gsm8k.load(str(GOLDEN))["test"].to_list()
    assert asked == [("openai/gsm8k", "main", "test")]


def test_missing_data_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no data of gsm8k.*gsm8k/test\.jsonl"):
        load_tasks(BY_NAME["gsm8k"], tmp_path)


def test_dev_and_held_out_share_nothing_and_are_the_whole():
    ids = [str(i) for i in range(5000)]
    dev, held_out = (Selection(split).of("gsm8k", ids) for split in ("dev", "held-out"))
    assert dev | held_out == set(ids)
    assert not dev & held_out
    assert 900 < len(dev) < 1100
    assert Selection("dev").of("bbh", ids) != dev, "by benchmark and item"
    few = Selection("test", 20).of("gsm8k", ids)
    assert len(few) == 20
    assert few < Selection("test", 40).of("gsm8k", ids), "a larger limit keeps the smaller's"


def test_the_average_has_one_mmlu():
    names = {b.name for b in ALL}
    assert averaged(names) == ("mmlu_cot", *ELEVEN)
    assert averaged(names - {"mmlu_cot"}) == ("mmlu_mc", *ELEVEN)
    assert len(averaged(names)) == 11
    assert averaged(names - {"drop"}) is None

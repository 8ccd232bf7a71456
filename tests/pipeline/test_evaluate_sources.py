"""Protects a run from bad data: what cannot be used is named with its file, and the rest is run."""

from __future__ import annotations

import json
import shutil

import pytest
from helpers.data import DATA
from helpers.fault_server import FaultServer, well

pytest.importorskip("lm_eval")

from helpers.served_suite import Suite

from deltalearn.evaluate.harness.run import load_tasks
from deltalearn.evaluate.tulu3.sources import NoData, read
from deltalearn.evaluate.tulu3.suite import BY_NAME

WORD_PROBLEM = json.dumps({"question": "1 + 1?", "answer": "2\n#### 2"})


@pytest.mark.parametrize(
    ("benchmark", "file", "text", "message"),
    [
        ("gsm8k", "gsm8k/test.jsonl", WORD_PROBLEM + '\n{"question": ', "test.jsonl:2: not JSON"),
        (
            "gsm8k",
            "gsm8k/test.jsonl",
            WORD_PROBLEM + "\n[1]\n",
            ":2: an object is needed, not list",
        ),
        ("gsm8k", "gsm8k/test.jsonl", "", "test.jsonl: no rows in it"),
        ("gsm8k", "gsm8k/test.jsonl", '{"question": "1"}\n', "test.jsonl:1: no 'answer'"),
        ("ifeval", "ifeval/i.jsonl", '{"key": 1, "prompt": "x"}', "no 'instruction_id_list'"),
        ("alpaca_eval", "alpaca_eval/reference_x.json", '{"a": 1}', "reference_x.json:1: no"),
        (
            "alpaca_eval",
            "alpaca_eval/reference_x.json",
            "[",
            "x.json: begins as a JSON array",
        ),
        ("alpaca_eval", "alpaca_eval/reference_x.json", '[{"dataset": "x"}]', "row 1: no 'instr"),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", "no gzip", "HumanEval.jsonl.gz: cannot be"),
        ("drop", "drop/drop_dev.json", '{"p": {}}', "drop_dev.json: no 'qa_pairs'"),
        (
            "truthfulqa",
            "truthfulqa/mc_task.json",
            '[{"mc1_targets": 1, "mc2_targets": 1}]',
            "cannot be used",
        ),
    ],
)
def test_data_that_cannot_be_used_is_named(tmp_path, benchmark, file, text, message):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(NoData, match=message):
        load_tasks(BY_NAME[benchmark], tmp_path)


def test_nested_files_are_named_too(tmp_path):
    for file in ("drop/drop_dev.json", "drop/drop_train.json"):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"p": {"passage": "x"}}')
    with pytest.raises(NoData, match=r"drop_(dev|train).json: no 'qa_pairs'"):
        load_tasks(BY_NAME["drop"], tmp_path)


def test_rows_of_a_table(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("question,answer\na,1\nb\n")
    with pytest.raises(NoData, match=r"x\.csv:3: 1 cells where the header has 2"):
        read(path)
    path.write_text("question,answer\na,1\n")
    assert read(path) == [{"question": "a", "answer": "1"}]
    with pytest.raises(NoData, match=r"x\.bak: unknown kind of file"):
        read(tmp_path / "x.bak")
    path.write_bytes(b"question\n\xff\xfe\n")
    with pytest.raises(NoData, match="no UTF-8 CSV"):
        read(path)


def test_what_no_grader_knows_leaves_out_one_benchmark(tmp_path):
    suite = Suite(tmp_path)
    path = suite.data / "ifeval" / "input.jsonl"
    path.write_text(path.read_text().replace("no_comma", "no_such", 1))
    with FaultServer(well) as server:
        found, _ = suite.run(server, "ifeval", "alpaca_eval")
    assert set(found["benchmarks"]) == {"alpaca_eval"}
    assert "punctuation:no_such" in found["not_run"]["ifeval"]


@pytest.mark.data
def test_one_bad_file_leaves_out_one_benchmark(tmp_path):
    """An empty subject of MMLU, PopQA without its examples, or with others than the published."""
    suite = Suite(tmp_path)
    shutil.copytree(DATA / "mmlu", suite.data / "mmlu")
    (suite.data / "mmlu" / "test" / "anatomy_test.csv").write_text("")
    shutil.copytree(DATA / "popqa_subset", suite.data / "popqa_subset")
    names = ("mmlu_cot", "popqa", "ifeval")
    with FaultServer(well) as server:
        found, _ = suite.run(server, *names)
        assert set(found["benchmarks"]) == {"ifeval"}
        assert "anatomy_test.csv: no rows in it" in found["not_run"]["mmlu_cot"]
        assert "looked for in tulu3_fewshot/popqa_15shot.json" in found["not_run"]["popqa"]
        shots = suite.data / "tulu3_fewshot" / "popqa_15shot.json"
        shots.parent.mkdir()
        rows = json.loads((DATA / "tulu3_fewshot" / "popqa_15shot.json").read_text())
        for wrong, message in (
            (rows[1:], "popqa_15shot.json: no row with the id"),
            ([{**row, "obj": "x"} for row in rows], "popqa_15shot.json: the examples"),
        ):
            shots.write_text(json.dumps(wrong))
            found, _ = suite.run(server, *names)
            assert message in found["not_run"]["popqa"]

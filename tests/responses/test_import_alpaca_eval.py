"""Protects the way from real answers to pairs: AlpacaEval's outputs of one family in three sizes.

Counts and texts are those of the raw files, worked out here without the store; the pairs are read
by `datasets` and by TRL's DPOTrainer, to the last letter.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.cli import deltalearn
from helpers.data import DATA

FAMILY = {
    "1B": "FuseChat-Llama-3.2-1B-Instruct",
    "3B": "FuseChat-Llama-3.2-3B-Instruct",
    "8B": "FuseChat-Llama-3.1-8B-Instruct",
}
STEPS = [("3B", "1B", 804), ("8B", "3B", 803)]  # larger, smaller, pairs as counted by hand


def outputs_file(size: str) -> Path:
    return DATA / "alpaca_eval" / FAMILY[size] / "model_outputs.json"


pytestmark = pytest.mark.data("alpaca_eval")


@pytest.fixture(scope="module")
def raw() -> dict[str, dict[str, str]]:
    """Answers by size and instruction."""
    rows = {size: json.loads(outputs_file(size).read_text()) for size in FAMILY}
    assert all(row["generator"] == FAMILY[size] for size in FAMILY for row in rows[size])
    return {s: {row["instruction"]: row["output"] for row in rows[s]} for s in rows}


def expected(raw: dict[str, dict[str, str]], larger: str, smaller: str) -> list[tuple]:
    """What two answers can teach: both are there, and they differ."""
    sides = ((q, raw[larger][q], raw[smaller].get(q)) for q in raw[larger])
    return sorted((q, a, b) for q, a, b in sides if b and a.strip() and b.strip() and a != b)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """The three files, imported by the command; the first twice."""
    path = tmp_path_factory.mktemp("alpaca") / "responses.sqlite"
    for size in ("1B", "3B", "8B", "1B"):
        result = deltalearn("responses", "import", path, outputs_file(size))
        assert result.returncode == 0, result.stderr
        said = f"805 rows read, 805 answers added ({FAMILY[size]} 805)"
        assert said in result.stdout or (size == "1B" and "805 were there already" in result.stdout)
        assert "805 had no finish reason" in result.stdout
    return path


@pytest.fixture(scope="module")
def pairs(store) -> dict[str, Path]:
    """The two steps of the ladder as Parquet, by the larger size."""
    files = {}
    for larger, smaller, count in STEPS:
        files[larger] = store.parent / f"{larger}_over_{smaller}.parquet"
        result = deltalearn(
            "pairs", store, "--chosen", FAMILY[larger], "--rejected", FAMILY[smaller], "--out",
            files[larger],
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert "candidates 805" in result.stdout and f"pairs {count}" in result.stdout
        assert f"dropped: identical {805 - count}" in result.stdout
    return files


@pytest.mark.slow
def test_the_store_holds_every_answer_and_is_whole(store):
    assert deltalearn("responses", "count", store).stdout.splitlines()[0] == f"responses {3 * 805}"
    assert deltalearn("responses", "check", store).stdout == "2,415 rows, all whole\n"


@pytest.mark.parametrize(("larger", "smaller", "count"), STEPS)
def test_pairs_are_all_that_two_sizes_can_teach_letter_by_letter(
    raw, pairs, larger, smaller, count
):
    rows = pq.read_table(pairs[larger]).to_pylist()
    assert len(rows) == count
    for row in rows:
        sides = [row[name] for name in ("prompt", "chosen", "rejected")]
        assert [[turn["role"] for turn in side] for side in sides] == [
            ["user"], ["assistant"], ["assistant"],
        ]  # fmt: skip
        assert row["chosen_model"] == FAMILY[larger] and row["rejected_model"] == FAMILY[smaller]
        assert row["chosen_finish_reason"] == row["rejected_finish_reason"] == "stop"
    found = [tuple(row[n][0]["content"] for n in ("prompt", "chosen", "rejected")) for row in rows]
    assert sorted(found) == expected(raw, larger, smaller)


@pytest.mark.slow
def test_a_column_for_each_size_gives_the_same_pairs(raw, pairs, tmp_path):
    """The shape in which the authors keep a ladder: one row a prompt, models as columns."""
    ladder = tmp_path / "ladder.jsonl"
    rows = ({"instruction": q} | {size: raw[size][q] for size in FAMILY} for q in raw["1B"])
    ladder.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = [text for size in FAMILY for text in ("--column", size)]
    result = deltalearn("responses", "import", tmp_path, ladder, *columns)
    assert "805 rows read, 2,415 answers added (1B 805, 3B 805, 8B 805)" in result.stdout
    made = tmp_path / "pairs.parquet"
    deltalearn("pairs", tmp_path, "--chosen", "3B", "--rejected", "1B", "--out", made)
    texts = ["prompt", "chosen", "rejected"]
    one, other = (pq.read_table(file, columns=texts) for file in (made, pairs["3B"]))
    assert one.num_rows == 804 and one.equals(other)


@pytest.mark.slow
def test_trl_takes_the_pairs_as_they_are(raw, pairs, tiny_model, tiny_tokenizer, tmp_path):
    """Through the tiny byte-level tokenizer, which loses no letter."""
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl")
    cache = str(tmp_path / "cache")
    data = datasets.load_dataset("parquet", data_files=str(pairs["8B"]), cache_dir=cache)["train"]
    assert data.num_rows == 803 and trl.data_utils.is_conversational(data[0])
    some = data.select(range(0, 803, 8))
    config = trl.DPOConfig(
        output_dir=str(tmp_path), report_to=[], use_cpu=True, bf16=False, max_length=None
    )
    trainer = trl.DPOTrainer(
        str(tiny_model), args=config, train_dataset=some, processing_class=tiny_tokenizer
    )
    assert len(trainer.train_dataset) == 101
    for row, ids in zip(some, trainer.train_dataset, strict=True):
        question = row["prompt"][0]["content"]
        prompt, *answers = (
            tiny_tokenizer.decode(ids[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")
        )
        assert prompt == f"<|user|>{question}<|assistant|>"
        assert answers == [raw[size][question] + "<|end|>" for size in ("8B", "3B")]

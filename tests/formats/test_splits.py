"""Protects which files of a folder are read: those that `datasets` would read, and no test data.

A folder with test.jsonl beside train.jsonl is trained on train.jsonl alone, whoever reads it.
"""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from deltalearn.errors import UserError
from deltalearn.formats.preferences import PairReader
from deltalearn.formats.questions import read_items
from deltalearn.formats.rows import files_line, rows, source_digest
from deltalearn.prompts.read import read_prompts
from deltalearn.responses.importer import import_responses
from deltalearn.responses.store import ResponseStore

LAYOUTS = {
    "train beside test": ["train.jsonl", "test.jsonl"],
    "three of them": ["train.jsonl", "validation.jsonl", "test.jsonl"],
    "dev and val are validation": ["train.jsonl", "dev-1.jsonl", "my_val.jsonl"],
    "eval is test": ["training.jsonl", "eval.jsonl"],
    "words in names": ["my-train_2.jsonl", "my-test_2.jsonl", "about.jsonl"],
    "no words in names": ["trainer.jsonl", "contest.jsonl", "latest.jsonl"],
    "folders": ["train/a.jsonl", "train/deep/b.jsonl", "test/a.jsonl", "c.jsonl"],
    "folders win over files": ["test/train.jsonl", "train/test.jsonl"],
    "as the hub names files": ["data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl",
                               "data/test_prefs-00000-of-00001-0a1b.jsonl", "train.jsonl"],
    "such names elsewhere": ["train_sft-00000-of-00001.jsonl", "test_sft-00000-of-00001.jsonl"],
    "several configurations": ["main/train-00000-of-00001.jsonl", "main/test-00000-of-00001.jsonl",
                               "socratic/train-00000-of-00001.jsonl"],
    "one split": ["only/test.jsonl"],
    "no split": ["a.jsonl", "deep/b.jsonl"],
    "hidden": ["train.jsonl", ".hidden/test.jsonl", "__pycache__/test.jsonl", ".test.jsonl"],
    "compressed": ["train.jsonl.gz", "test.jsonl.gz"],
    "arrays": ["train.json", "test.json", "config.json"],
    "tables": ["train.csv", "test.csv"],
}  # fmt: skip


def write(folder: Path, names: list[str]) -> Path:
    """A folder in which each file has a row that holds its name."""
    import gzip

    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        row = {"id": name, "prompt": f"q of {name}", "answer": "a", "response": "b", "model": "M",
               "chosen": "a", "rejected": "b"}  # fmt: skip
        text = json.dumps(row) + "\n"
        if name.endswith(".json"):
            text = json.dumps([row])
        if name.endswith(".csv"):
            text = ",".join(row) + "\n" + ",".join(row.values()) + "\n"
        file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_are_those_of_datasets(layout, tmp_path):
    folder = write(tmp_path / "data set", LAYOUTS[layout])
    theirs = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    names = {split: sorted(data["id"]) for split, data in theirs.items()}
    if layout == "no split" or layout == "no words in names":
        assert names == {"train": sorted(row.value["id"] for row in rows(str(folder)))}
        return
    for split, ids in names.items():
        assert sorted(row.value["id"] for row in rows(str(folder), split)) == ids
    with pytest.raises(UserError, match=f"no split 'other'; there are {', '.join(names)}"):
        list(rows(str(folder), "other"))


def read_by(reader: str, folder: str, split: str | None = None) -> list[str]:
    """What a reader makes of a folder, told by the files that its prompts name."""
    if reader == "pairs":
        return [row.prompt[0]["content"] for row in PairReader(folder, split=split)]
    if reader == "prompts":
        return [p.messages[0]["content"] for p in read_prompts(folder, split=split).prompts]
    if reader == "questions":
        return [item.messages[0]["content"] for item in read_items(folder, split=split)]
    with ResponseStore(Path(":memory:")) as store:
        import_responses(store, folder, split=split)
        found = store.db.execute("SELECT messages FROM prompts").fetchall()
    return [json.loads(messages)[0]["content"] for (messages,) in found]


READERS = ["pairs", "prompts", "questions", "imports"]


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_takes_the_split_that_is_asked_for(reader, tmp_path):
    folder = str(write(tmp_path, ["train.jsonl", "test.jsonl", "dev.jsonl"]))
    assert read_by(reader, folder, "test") == ["q of test.jsonl"]
    assert read_by(reader, folder, "dev") == ["q of dev.jsonl"], "it is called validation"
    with pytest.raises(UserError, match="no split 'other'; there are train, validation, test"):
        read_by(reader, folder, "other")


@pytest.mark.parametrize("reader", READERS)
def test_the_split_where_none_is_asked_for(reader, tmp_path):
    """Training data for whoever trains; questions are never guessed."""
    folder = str(write(tmp_path / "two", ["train.jsonl", "test.jsonl"]))
    if reader == "questions":
        with pytest.raises(UserError, match="several splits; there are train, test: name one"):
            read_by(reader, folder)
    else:
        assert read_by(reader, folder) == ["q of train.jsonl"]
    alone = str(write(tmp_path / "one", ["test.jsonl"]))
    assert read_by(reader, alone) == ["q of test.jsonl"]
    neither = str(write(tmp_path / "neither", ["test.jsonl", "dev.jsonl"]))
    with pytest.raises(UserError, match="there are validation, test: name one"):
        read_by(reader, neither)


def test_the_case_of_a_name_does_not_make_it_training_data(tmp_path):
    """Here `datasets` differs: to it both are the training data."""
    folder = str(write(tmp_path, ["Train.jsonl", "Test.jsonl"]))
    assert read_by("pairs", folder) == ["q of Train.jsonl"]


README = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: parts/*
  - split: held_out
    path: [more/x.jsonl]
---
# A data set
"""


def test_a_readme_of_the_hub_says_which_files_are_which(tmp_path):
    folder = write(tmp_path / "set", ["parts/test.jsonl", "parts/b.jsonl", "more/x.jsonl"])
    (folder / "README.md").write_text(README)
    theirs = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    for split, data in theirs.items():
        ours = [row.value["id"] for row in rows(str(folder), split)]
        assert sorted(ours) == sorted(data["id"])
    several = README.replace("default", "one") + ""
    several = several.replace("---\n# A", "- config_name: two\n  data_files: more/*\n---\n# A")
    (folder / "README.md").write_text(several)
    with pytest.raises(UserError, match=r"several data sets \(one, two\)"):
        list(rows(str(folder)))


@pytest.mark.parametrize("text", ["---\n: [\n---\n", "---\nconfigs: 7\n---\n", "# none", "---\n"])
def test_a_readme_that_says_nothing_is_no_error(text, tmp_path):
    folder = write(tmp_path, ["train.jsonl", "test.jsonl"])
    (folder / "README.md").write_text(text)
    assert read_by("prompts", str(folder)) == ["q of train.jsonl"]


def test_the_files_are_named_and_they_alone_are_the_content(tmp_path):
    folder = str(write(tmp_path, ["train.jsonl", "test.jsonl"]))
    assert files_line(folder) == f"split train of {folder}: train.jsonl; not read: test.jsonl"
    assert list(source_digest(folder)) == ["train.jsonl"]
    (tmp_path / "test.jsonl").write_text("{}")
    before = source_digest(folder)
    (tmp_path / "train.jsonl").write_text("{}")
    assert source_digest(folder) != before
    plain = str(write(tmp_path / "plain", ["a.jsonl", "b.jsonl"]))
    assert files_line(plain) == f"files of {plain}: a.jsonl, b.jsonl"
    assert files_line(f"{plain}/a.jsonl") is None

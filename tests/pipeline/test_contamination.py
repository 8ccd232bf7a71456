"""Protects that a score is evidence: evaluated items among the training prompts are said.

Before anything is asked or tuned, in overlap.json, in the summary and on the page; and questions
that choose when to stop are never those that are reported, whatever file they are in.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from helpers.data import GOLDEN

from deltalearn.errors import UserError
from deltalearn.pipeline.contamination import compare_items, overlap_lines
from deltalearn.pipeline.run import run_recipe
from deltalearn.pipeline.run_options import RunOptions
from deltalearn.pipeline.tune import run_tune
from deltalearn.pipeline.tune_preview import check_modes, report_dry_run
from deltalearn.recipe import TUNE, load_recipe
from deltalearn.report.summary import _contaminated

QUESTIONS = [
    f"How many apples are left when {i} of the {i + 20} in a box are eaten?" for i in range(9)
]
OTHERS = [
    f"Which of the rivers in country number {i} is the one that is longest by far?"
    for i in range(9)
]


def rows(path: Path, questions: list[str], **more: str) -> Path:
    lines = (json.dumps({"prompt": q, "answer": "a", **more}) for q in questions)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def recipe(tiny_model, tmp_path):
    """`recipe(evaluate={...})` writes one, with other sections than those here."""
    return lambda **sections: write_recipe(str(tiny_model), tmp_path, **sections)


def write_recipe(model: str, folder: Path, **sections) -> Path:
    values = {
        "name": "r",
        "student": {"path": model},
        "models": {"larger": {"path": model}, "smaller": {"path": model}},
        "prompts": {"source": str(folder / "prompts.jsonl")},
        "arms": {"base": {}, "delta": {"chosen": "larger", "rejected": "smaller"}},
        "tune": {"batch_size": 2},
        "evaluate": {"questions": {"mine": {"source": str(folder / "questions.jsonl")}}},
        **sections,
    }
    (folder / "r.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder / "r.yaml"


def read_prompts(file: Path) -> list[str]:
    """What a run says that reads prompts and stops; it is kept in `out`."""
    said: list[str] = []
    options = RunOptions(out=file.parent / "out", until="prompts")
    run_recipe(load_recipe(str(file)), options, say=said.append)
    return said


def test_items_among_the_prompts_are_said_before_anything_is_asked(recipe, tmp_path):
    rows(tmp_path / "prompts.jsonl", [*OTHERS, f"Think. {QUESTIONS[3]}", QUESTIONS[5]])
    rows(tmp_path / "questions.jsonl", QUESTIONS)
    said = read_prompts(recipe())
    (line,) = [line for line in said if line.startswith("CONTAMINATED")]
    assert "2 of 9 items of mine are among the training prompts" in line
    assert "(exact 1, 8-gram 2, 13-gram 2; in 2 prompts)" in line
    assert any("8-gram: item 3 in prompt" in x and QUESTIONS[3] in x for x in said)
    found = json.loads((tmp_path / "out" / "overlap.json").read_text())
    assert found["prompts"] == 11
    assert [found["sets"]["mine"][k] for k in ("items", "any", "exact")] == [9, 2, 1]
    assert [e["item"] for e in found["sets"]["mine"]["first"]] == ["3", "5"]
    assert not read_prompts(tmp_path / "r.yaml"), "it is said once, and not computed again"
    (note,) = _contaminated(found)
    assert note.startswith("2 of 9 items of mine are among the training prompts")


def test_that_nothing_is_shared_is_said_too(recipe, tmp_path):
    rows(tmp_path / "prompts.jsonl", OTHERS)
    rows(tmp_path / "questions.jsonl", QUESTIONS)
    said = read_prompts(recipe())
    clean = "no evaluated item is among the 9 training prompts, by text, 8-grams or 13-grams"
    assert f"{clean}: mine (9)" in said
    assert not any("CONTAMINATED" in line for line in said)


def test_the_files_of_questions_are_named(recipe, tmp_path):
    rows(tmp_path / "prompts.jsonl", OTHERS)
    (tmp_path / "mine").mkdir()
    for split in ("train", "test"):
        rows(tmp_path / "mine" / f"{split}.jsonl", QUESTIONS)
    source = {"source": str(tmp_path / "mine"), "split": "test"}
    said = read_prompts(recipe(evaluate={"questions": {"mine": source}}))
    assert f"split test of {tmp_path / 'mine'}: test.jsonl; not read: train.jsonl" in said


def test_other_items_are_compared_anew(recipe, tmp_path):
    rows(tmp_path / "prompts.jsonl", OTHERS)
    rows(tmp_path / "questions.jsonl", QUESTIONS)
    file = recipe()
    read_prompts(file)
    rows(tmp_path / "questions.jsonl", [*QUESTIONS, OTHERS[0]])
    options = RunOptions(out=tmp_path / "out", until="prompts", update=True)
    said: list[str] = []
    run_recipe(load_recipe(str(file)), options, say=said.append)
    assert any(line.startswith("CONTAMINATED: 1 of 10 items of mine") for line in said)


def test_the_suite_is_compared_where_it_is_on_this_disk(recipe, tmp_path):
    first = json.loads((GOLDEN / "gsm8k" / "test.jsonl").open(encoding="utf-8").readline())
    rows(tmp_path / "prompts.jsonl", [*OTHERS, first["question"]])
    evaluate = {
        "benchmarks": ["gsm8k", "ifeval", "arc_easy"],
        "data_dir": str(GOLDEN),
        "limit": 10**6,
    }
    said = read_prompts(recipe(evaluate=evaluate))
    assert any(line.startswith("CONTAMINATED: 1 of ") and "gsm8k" in line for line in said)
    assert any("no evaluated item" in line and "ifeval (" in line for line in said)
    assert any(line.startswith("arc_easy is not compared") for line in said)
    evaluate = {"benchmarks": ["gsm8k"], "data_dir": str(tmp_path)}
    (tmp_path / "out").rename(tmp_path / "before")
    said = read_prompts(recipe(evaluate=evaluate))
    assert any(
        line.startswith("gsm8k is not compared") and "no data of gsm8k" in line for line in said
    )


def test_pairs_from_outside_and_raw_text_are_prompts_too():
    raw, turns = f"Q: {QUESTIONS[0]}\nA:", [{"role": "user", "content": QUESTIONS[1]}]
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, *turns]
    prompts = [("a", raw), ("b", turns), ("c", talk)]
    found = compare_items(prompts, {"mine": list(zip("xyz", QUESTIONS, strict=False))}, {})
    one = found["sets"]["mine"]
    assert (one["items"], one["any"], one["exact"], one["prompts"]) == (3, 2, 1, 3)
    assert [(e["item"], e["prompt"]) for e in one["first"]] == [("x", "a"), ("y", "b")]


def test_what_is_said_is_made_visible():
    prompts = [("a\x1b[31m", QUESTIONS[0])]
    lines = overlap_lines(compare_items(prompts, {"mine": [("1\x07", QUESTIONS[0])]}, {}))
    assert "\x1b" not in "".join(lines) and "\x07" not in "".join(lines)


@pytest.mark.parametrize("questions", [QUESTIONS, QUESTIONS[:6], [f"{q}  " for q in QUESTIONS]])
def test_questions_that_choose_are_not_those_that_are_reported_whatever_their_file(
    recipe, tmp_path, questions
):
    rows(tmp_path / "prompts.jsonl", OTHERS)
    rows(tmp_path / "questions.jsonl", QUESTIONS)
    dev = rows(tmp_path / "dev.jsonl", questions, source="another column")
    file = recipe(tune={"dev": {"source": str(dev)}, "eval_every": 1})
    said: list[str] = []
    options = RunOptions(out=tmp_path / "out")
    with pytest.raises(UserError, match=r"of evaluate.questions.mine: what chooses when to stop"):
        run_recipe(load_recipe(str(file), []), options, say=said.append)


def test_an_arms_own_questions_are_looked_at_as_well(recipe, tmp_path):
    rows(tmp_path / "prompts.jsonl", OTHERS)
    rows(tmp_path / "questions.jsonl", QUESTIONS)
    tune = {"dev": {"source": str(tmp_path / "questions.jsonl")}, "eval_every": 1}
    arms = {"base": {}, "delta": {"chosen": "larger", "rejected": "smaller", "tune": tune}}
    with pytest.raises(UserError, match="9 of 9 questions"):
        run_recipe(load_recipe(str(recipe(arms=arms))), RunOptions(out=tmp_path / "out"))


# -- pairs that are tuned on by themselves -------------------------------------------------------


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Pairs whose prompts say one of QUESTIONS and one of the suite's."""
    first = json.loads((GOLDEN / "gsm8k" / "test.jsonl").open(encoding="utf-8").readline())
    prompts = [*OTHERS[:2], f"Think. {QUESTIONS[3]}", first["question"]]
    lines = (json.dumps({"prompt": p, "chosen": "yes", "rejected": "no"}) for p in prompts)
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path / "pairs.jsonl"


def tuning(model: Path, pairs: Path, *more: str):
    options = [f"student.path={model}", f"pairs.source={pairs}", "device=cpu", "dtype=float32"]
    sizes = ["tune.steps=1", "tune.batch_size=2", "tune.dev=null"]
    return load_recipe(None, [*options, *sizes, *more], command=TUNE)


def test_pairs_are_compared_with_what_is_named(tiny_model, pairs, tmp_path):
    """Files, whatever their columns, benchmarks, and those of them that are on this disk."""
    loaded = tuning(tiny_model, pairs)
    mine = tmp_path / "mine.csv"
    mine.write_text("question\n" + "\n".join(QUESTIONS), encoding="utf-8")
    said: list[str] = []
    how = {"against": [str(mine), "gsm8k", "ifeval"], "data_dir": GOLDEN, "say": said.append}
    run_tune(loaded, tmp_path / "out", **how)
    found = json.loads((tmp_path / "out" / "overlap.json").read_text())
    met = {name: one["any"] for name, one in found["sets"].items()}
    assert met == {str(mine): 1, "gsm8k": 1, "ifeval": 0} and found["prompts"] == 4
    assert found["sets"][str(mine)]["first"][0]["text"] == QUESTIONS[3]
    contaminated = [line for line in said if line.startswith("CONTAMINATED")]
    trained = next(i for i, line in enumerate(said) if line.startswith("layout"))
    assert len(contaminated) == 2 and said.index(contaminated[1]) < trained
    said.clear()
    run_tune(loaded, tmp_path / "out", **how)
    assert contaminated == [line for line in said if line.startswith("CONTAMINATED")]
    shown = report_dry_run(loaded, against=how["against"], data_dir=GOLDEN)
    assert contaminated == [x for x in shown.splitlines() if x.startswith("CONTAMINATED")]


def test_all_of_the_suite_that_is_here_is_compared(tiny_model, pairs, tmp_path):
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    for file in (GOLDEN / "gsm8k").iterdir():
        (tmp_path / "data" / "gsm8k" / file.name).write_bytes(file.read_bytes())
    shown = report_dry_run(tuning(tiny_model, pairs), against=["tulu3"], data_dir=tmp_path / "data")
    assert "CONTAMINATED: 1 of" in shown and "ifeval is not compared" in shown


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no.jsonl", "--against no.jsonl: neither a file here nor a benchmark of the suite"),
        ("gsm9k", "there are tulu3, mmlu"),
        ("gsm8k", "--against gsm8k: .*gsm8k.*--data-dir"),
    ],
)
def test_what_is_not_to_be_had_is_said_before_anything_is_trained(
    tiny_model, pairs, tmp_path, name, says
):
    with pytest.raises(UserError, match=says):
        run_tune(tuning(tiny_model, pairs), tmp_path / "out", against=[name], data_dir=tmp_path)
    assert not (tmp_path / "out").exists()


def test_options_without_effect_are_refused():
    modes = {"preview": False, "dry_run": False, "tflops": None}
    with pytest.raises(UserError, match="--data-dir has no effect without --against"):
        check_modes(**modes, data_dir=Path("x"))
    with pytest.raises(UserError, match="--against has no effect with --preview"):
        check_modes(**{**modes, "preview": True}, against=["gsm8k"])

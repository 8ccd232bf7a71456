"""Protects what `deltalearn compare` refuses: two results that do not belong side by side.

A comparison of different items, settings, judges or splits must end in an error that says which.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.compared_runs import (
    ONES,
    ZEROS,
    alpaca,
    compared,
    gsm8k,
    items,
    run,
    write,
)

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.model import RequestIssues
from deltalearn.evaluate.harness.results import COLUMNS
from deltalearn.judge.judge import load_judge

# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shots": 5}, "GSM8K: shots 8 in .*a, 5 in .*b"),
        ({"chat": False}, "GSM8K: chat true in .*a, false in .*b"),
        ({"metric": "strict match"}, "GSM8K: metric exact match in .*a, strict match in .*b"),
        ({"max_tokens": 256}, "GSM8K: max_tokens 512 in .*a, 256 in .*b"),
        ({"stops": ["Q"]}, r'GSM8K: stops \["\\n\\n"\] in .*a, \["Q"\] in .*b'),
        ({"temperature": 0.8}, "GSM8K: temperature null in .*a, 0.8 in .*b"),
        ({"samples": 20}, "GSM8K: samples null in .*a, 20 in .*b"),
    ],
)
def test_different_settings(tmp_path, capsys, changed, message):
    a, b = gsm8k(tmp_path / "a", ONES), gsm8k(tmp_path / "b", ZEROS, changed)
    with pytest.raises(UserError, match=message) as caught:
        compared(a, b)
    assert "--allow-different-settings" in str(caught.value)
    text = run(capsys, a, b, allow_different_settings=True)
    assert f"NOT MEASURED ALIKE: GSM8K: {next(iter(changed))}" in text


@pytest.mark.parametrize("issues", [RequestIssues(shortened=1_234), RequestIssues(truncated=2)])
@pytest.mark.parametrize("side", [0, 1])
def test_contexts_that_cut_something(tmp_path, capsys, issues, side):
    """In the words of the evaluation itself; on either side, whatever the other's context."""
    changed = [{"context": 4096}, {"context": 1024}]
    changed[side]["notes"] = ["another note", *issues.notes()]
    a, b = gsm8k(tmp_path / "a", ONES, changed[0]), gsm8k(tmp_path / "b", ZEROS, changed[1])
    with pytest.raises(UserError, match=r"GSM8K: context 4096 in .*a, 1024 in .*b, which cut "):
        compared(a, b)
    text = run(capsys, a, b, allow_different_settings=True)
    assert "NOT MEASURED ALIKE: GSM8K: context 4096" in text
    assert f"note: GSM8K: {issues.notes()[0]}, in {(a, b)[side]}" in text


PROMPT = "Which answer to {instruction} is better: m {output_1} or M {output_2}?"


def judge(folder: Path, prompt: str = PROMPT, **settings) -> dict:
    """What results.json keeps of a judge from an evaluator of one's own, all of one name."""
    value = {
        "prompt_template": "prompt.txt",
        "completions_kwargs": {"model_name": "gpt", "temperature": 0, **settings},
        "fn_completion_parser": "logprob_parser",
        "completion_parser_kwargs": {"numerator_token": "m", "denominator_tokens": ["m", "M"]},
    }
    folder.mkdir()
    (folder / "prompt.txt").write_text(prompt)
    (folder / "configs.yaml").write_text(json.dumps({"mine": value}))
    identity = load_judge(folder / "configs.yaml").identity
    return asdict(identity) | {"shown": identity.shown}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"prompt": PROMPT + " Say M."}, "prompt: [0-9a-f]{58,}.* in .*a, [0-9a-f]{58,}.* in .*b"),
        ({"temperature": 1}, r"how\.settings\.temperature: 0 in .*a, 1 in .*b"),
        ({"top_p": 0.5}, r"how\.settings\.top_p: null in .*a, 0\.5 in .*b"),
    ],
)
def test_two_judges_of_one_name(tmp_path, changed, message):
    judges = [judge(tmp_path / "one"), judge(tmp_path / "two"), judge(tmp_path / "3", **changed)]
    a, again, other = (
        alpaca(
            tmp_path / name,
            seed,
            entries={"judge": identity["shown"], "alpaca_eval": {"judge": identity}},
        )[0]
        for seed, (name, identity) in enumerate(zip(("a", "again", "b"), judges, strict=True))
    )
    compared(a, again)
    for allow in (False, True):
        with pytest.raises(UserError, match=rf"two judges: both called mine \(gpt\), .*{message}"):
            compared(a, other, allow_different_settings=allow)


def test_different_limits(tmp_path, capsys):
    a, b = gsm8k(tmp_path / "a", ONES, limit=10), gsm8k(tmp_path / "b", ZEROS, limit=20)
    with pytest.raises(UserError, match=r"limit 10 in .*a, 20 in .*b"):
        compared(a, b)
    assert "NOT MEASURED ALIKE: limit 10" in run(capsys, a, b, allow_different_settings=True)


def test_dev_against_test(tmp_path):
    a, b = gsm8k(tmp_path / "a", ONES, split="dev"), gsm8k(tmp_path / "b", ZEROS)
    for allow in (False, True):
        with pytest.raises(UserError, match=r"different splits: dev in .*a, test in .*b"):
            compared(a, b, allow_different_settings=allow)


def test_two_ways_of_averaging(tmp_path):
    a, b = gsm8k(tmp_path / "a", ONES), gsm8k(tmp_path / "b", ZEROS, {"aggregation": "macro"})
    with pytest.raises(UserError, match=r"GSM8K: averaged in two ways: micro in .*a, macro in .*b"):
        compared(a, b, allow_different_settings=True)


def test_mmlu_asked_in_two_ways(tmp_path):
    strata = ["x", "y"] * 5
    a = write(tmp_path / "a", {"mmlu_mc": items(ONES, stratum=strata), "gsm8k": items(ONES)})
    b = write(tmp_path / "b", {"mmlu_cot": items(ZEROS, stratum=strata), "gsm8k": items(ONES)})
    with pytest.raises(UserError, match="MMLU was asked as MMLU mc of a and as MMLU CoT of b"):
        compared(a, b, allow_different_settings=True)


def test_items_missing_on_one_side(tmp_path, two_runs):
    short = gsm8k(tmp_path / "short", ZEROS[:8])
    message = r"GSM8K: 2 items are missing in .*short, the first 'q8'"
    for pair in ((two_runs[0], short), (short, two_runs[0])):
        with pytest.raises(UserError, match=message):
            compared(*pair, allow_different_settings=True)


@pytest.mark.parametrize(
    ("column", "value", "word"),
    [("gold", "another", "gold answer"), ("cluster", "c", "cluster"), ("stratum", "s", "stratum")],
)
def test_another_gold_for_the_same_item(tmp_path, two_runs, column, value, word):
    rows = items(ZEROS)
    rows[4][column] = value
    other = write(tmp_path / "other", {"gsm8k": rows})
    with pytest.raises(UserError, match=rf"GSM8K: the item 'q4' has another {word} in .*other"):
        compared(two_runs[0], other, allow_different_settings=True)


def test_no_benchmark_in_common(tmp_path, two_runs):
    other = write(tmp_path / "other", {"bbh": items(ONES)})
    with pytest.raises(UserError, match="no benchmark is scored on both sides: a has GSM8K, other"):
        compared(two_runs[0], other)


def test_benchmarks_of_one_side_are_left_out_with_a_note(tmp_path, two_runs, capsys):
    more = write(tmp_path / "more", {"gsm8k": items(ZEROS), "bbh": items(ONES)})
    assert f"note: BBH is left out: it has no score in {two_runs[0]}" in run(
        capsys, two_runs[0], more
    )
    with pytest.raises(UserError, match=r"bbh: it has no score in .*a; evaluate it there too"):
        compared(two_runs[0], more, benchmarks=("bbh",))
    with pytest.raises(UserError, match="arc: not scored here; there are gsm8k and bbh"):
        compared(two_runs[0], more, benchmarks=("arc",))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rows: rows[:-1], r"9 items, results\.json speaks of 10; evaluate gsm8k again"),
        (lambda rows: rows[:-1] + rows[:1], "the item 'q0' is there twice"),
        (lambda rows: [{**rows[0], "score": 1.2}, *rows[1:]], r"scores must be in \[0, 1\]"),
        (lambda rows: [{**rows[0], "score": math.nan}, *rows[1:]], r"scores must be in \[0, 1\]"),
        (
            lambda rows: [{**rows[0], "score": 0.0}, *rows[1:]],
            r"GSM8K is 0\.800000 in results\.json and 0\.700000 by its items",
        ),
    ],
    ids=["torn", "twice", "beyond", "nan", "of another run"],
)
def test_files_that_do_not_belong_together(two_runs, damage, message):
    path = two_runs[0] / "items" / "gsm8k.parquet"
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist(damage(rows), COLUMNS), path)
    with pytest.raises(UserError, match=message):
        compared(*two_runs)


def test_files_that_are_none(tmp_path, two_runs):
    path = two_runs[0] / "items" / "gsm8k.parquet"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"gsm8k\.parquet: cannot be read"):
        compared(*two_runs)
    path.unlink()
    with pytest.raises(UserError, match=r"gsm8k\.parquet: cannot be read"):
        compared(*two_runs)
    pq.write_table(pa.table({"id": ["q0"], "score": [1.0]}), path)
    with pytest.raises(UserError, match=r"evaluate gsm8k again"):
        compared(*two_runs)
    with pytest.raises(UserError, match=r"nowhere: no results\.json in it"):
        compared(tmp_path / "nowhere", two_runs[1])

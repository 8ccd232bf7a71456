"""Protects what `deltalearn compare` says: text, JSON, plot, plan and command line.

A difference that was not shown must never be called equality, and names of models are hostile text.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.compared_runs import (
    FAST,
    ONES,
    ZEROS,
    compared,
    gsm8k,
    items,
    run,
    spec,
    suite,
    write,
)
from typer.testing import CliRunner

from deltalearn.cli import app
from deltalearn.compare import forest
from deltalearn.compare import verdict as words
from deltalearn.compare.command import run_compare, run_plan
from deltalearn.errors import UserError
from deltalearn.evaluate.harness.model import RequestIssues

# -- what is said --------------------------------------------------------------------------------


def test_verdict_of_a_gain(suites, capsys):
    comparison = compared(suites["better"], suites["base"])
    first = words.verdict(comparison)[0]
    one = comparison.averages[0]
    assert first.startswith(
        f"good is better than base on the average of the 11 by {100 * one.difference:.2f} points "
        f"(95% interval +{100 * one.test.lo:.2f} to +{100 * one.test.hi:.2f}, p "
    )
    assert "no difference shown" not in first.lower()
    assert first in run(capsys, suites["better"], suites["base"])


def test_verdict_of_a_loss(suites):
    first = words.verdict(compared(suites["base"], suites["better"]))[0]
    assert first.startswith("base is worse than good on the average of the 11 by ")


def test_verdict_of_none_never_says_equal(suites, capsys):
    comparison = compared(suites["like"], suites["base"])
    first = words.verdict(comparison)[0]
    assert first.startswith("No difference shown between like and base on the average of the 11: ")
    detectable = f"{100 * comparison.averages[0].detectable:.2f}"
    assert "That does not show that there is none" in first
    assert f"a true difference of {detectable} points would be missed one time in five" in first
    text = run(capsys, suites["like"], suites["base"]).lower()
    for word in ("equal", "equivalent", "identical", "no difference between", "as good as"):
        assert word not in text
    assert "no difference shown on any of 12" in text


def test_verdict_of_one_benchmark_follows_the_test(two_runs):
    """60 points and p = 0.07."""
    first = words.verdict(compared(*two_runs))[0]
    assert first.startswith("No difference shown between a and b on GSM8K: +60.00 points (95%")
    assert "p = 0.070" in first


def test_by_benchmark_and_without_alpaca_eval(suites):
    sentences = words.verdict(compared(suites["better"], suites["base"]))
    by = next(s for s in sentences if s.startswith("By benchmark"))
    assert by.startswith("By benchmark, 12 tests held to 5% together (Holm): better on ")
    assert any(s.startswith("Without AlpacaEval: better by ") for s in sentences)
    sentences = words.verdict(compared(suites["like"], suites["base"]))
    assert any(s.startswith("Without AlpacaEval: no difference shown, ") for s in sentences)


def test_split_and_numbers_are_named(tmp_path, suites, capsys):
    assert "Test split, 1,440 items of 12 benchmarks." in run(
        capsys, suites["better"], suites["base"]
    )
    a, b = (gsm8k(tmp_path / n, ONES, split="dev") for n in "ab")
    assert "Development split, 10 items of 1 benchmark; scores to choose by, not to report." in run(
        capsys, a, b
    )


def test_subsets_are_named(tmp_path, capsys):
    part = {"gsm8k": {"full_n": 1319, "subset": True}}
    rows = {"gsm8k": items(ONES), "bbh": items(ONES)}
    a, b = (write(tmp_path / name, rows, part) for name in "ab")
    text = run(capsys, a, b)
    assert "SUBSETS: GSM8K 10 of 1,319." in text
    assert "10 of 1,319" in text.split("SUBSETS")[0]


def test_how_everything_was_measured_is_printed(suites, capsys):
    text = run(capsys, suites["better"], suites["base"])
    assert "MATH: flex exact match, macro of 6, 8 shots, 512 tokens, stops \\n\\n" in text
    assert "BBH: exact match, micro, 8 shots" in text
    assert "DROP: F1, micro, in 40 clusters, 8 shots" in text


def test_few_clusters_are_pointed_out(suites, capsys):
    text = run(capsys, suites["better"], suites["base"])
    assert "AlpacaEval 2: its 120 items come from 5 sources" in text
    assert "DROP: its" not in text


def test_backend_and_data_are_noted(tmp_path, two_runs, capsys):
    other = gsm8k(tmp_path / "other", ZEROS, backend="hf", data="local")
    text = run(capsys, two_runs[0], other)
    assert "different backend: vllm in" in text
    assert "different data: hub in" in text


def test_contexts_that_cut_nothing_are_noted(tmp_path, capsys):
    """lm_eval's default for servers, the model's own elsewhere; one line for all benchmarks."""
    rows = {"gsm8k": items(ONES), "bbh": items(ONES)}
    a = write(tmp_path / "a", rows, {name: {"context": 10240} for name in rows})
    b = write(tmp_path / "b", rows, {name: {"context": 2047} for name in rows})
    text = run(capsys, a, b)
    assert f"note: different context: 10240 in {a}, 2047 in {b}; nothing is known to be cut" in text
    assert text.count("different context") == 1
    part = write(tmp_path / "part", rows, {"gsm8k": {"context": None}, "bbh": {"context": 10240}})
    assert f"10240 in {a}, null in {part} (GSM8K); nothing is known" in run(capsys, a, part)


def test_precision_and_arguments_are_noted(tmp_path, capsys):
    known = {"dtype": "float32", "arguments": {}}
    other = {"dtype": "bfloat16", "arguments": {"add_bos_token": False}}
    a, b = gsm8k(tmp_path / "a", ONES, known), gsm8k(tmp_path / "b", ZEROS, other)
    text = run(capsys, a, b)
    assert f"note: different dtype: float32 in {a}, bfloat16 in {b}" in text
    assert f'note: different arguments: {{}} in {a}, {{"add_bos_token":false}} in {b}' in text
    assert "different" not in run(capsys, a, gsm8k(tmp_path / "c", ZEROS, known))


def test_what_the_context_cut_is_repeated(tmp_path, capsys):
    """Of both sides, also where both have the same context; hostile notes stay on their line."""
    notes = RequestIssues(shortened=3, truncated=1).notes()
    a = gsm8k(tmp_path / "a", ONES, {"context": 512, "notes": [*notes, "about something else"]})
    b = gsm8k(tmp_path / "b", ZEROS, {"context": 512, "notes": ["\x1b[31m to fit the context", 7]})
    found = compared(a, b).notes
    assert [note for note in found if "GSM8K" in note] == [
        f"GSM8K: the context left 3 answers less than the limit, in {a}",
        f"GSM8K: 1 prompts were cut on the left to fit the context, in {a}",
        f"GSM8K: ␛[31m to fit the context, in {b}",
    ]
    assert "something else" not in run(capsys, a, b)
    compared(a, gsm8k(tmp_path / "c", ZEROS, {"context": 512, "notes": None}))


def test_numbers_are_never_cut_in_a_narrow_terminal(suites, capsys, monkeypatch):
    from rich.console import Console

    from deltalearn.util import terminal

    class Narrow(Console):
        def __init__(self, **options):
            super().__init__(**options, width=80, force_terminal=True, color_system=None)

    monkeypatch.setattr(terminal, "Console", Narrow)
    run_compare(spec(suites["better"], suites["base"]))
    text = capsys.readouterr().out
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "in a wider terminal" in text


def test_hostile_names_are_shown_and_not_obeyed(tmp_path, capsys):
    evil = "\x1b[31m[bold]\u202egood\n model[/bold]"
    a = gsm8k(tmp_path / "a", ONES, model={"name": evil, "identity": "1"})
    b = gsm8k(
        tmp_path / "b", ZEROS, {"judge": "\x1b]0;x\x07"}, model={"name": "b", "identity": "2"}
    )
    c = gsm8k(tmp_path / "c", ZEROS, model={"name": "b", "identity": "2"})
    run_compare(spec(a, c), plot=tmp_path / "plot")
    text = capsys.readouterr().out
    assert not any(sign in text for sign in ("\x1b", "\u202e", "\x07"))
    assert "[bold]" in text and "⟨U+202E⟩" in text
    with pytest.raises(UserError) as caught:
        compared(a, b)
    assert "\x1b" not in str(caught.value)


# -- JSON ----------------------------------------------------------------------------------------

TOP = {
    "format", "a", "b", "split", "level", "alpha", "power", "bootstrap", "verdict", "benchmarks",
    "averages", "notes",
}  # fmt: skip
NUMBERS = {"a", "b", "difference", "se", "df", "test", "detectable", "variance", "verdict"}
ROW = {
    "name", "title", "n", "full_n", "subset", "strata", "clusters", "unpaired_se", "correlation",
    "constant", "discordant", "holm", "measured",
}  # fmt: skip


def test_json_schema(suites, tmp_path, capsys):
    path = tmp_path / "sub" / "compare.json"
    run_compare(spec(suites["arm"], suites["base"]), json_file=path)
    assert "average of the 11" in capsys.readouterr().out
    value = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert set(value) == TOP
    assert value["format"] == 1
    assert [run["name"] for run in value["a"]["runs"]] == ["seed-0", "seed-1", "seed-2"]
    assert value["bootstrap"] == {"draws": FAST, "seed": 0}
    for row in value["benchmarks"]:
        assert set(row) == NUMBERS | ROW
        assert set(row["test"]) == {"lo", "hi", "interval_by", "p", "p_by"}
        assert row["verdict"] in ("gain", "loss", "no difference shown")
        assert {"metric", "aggregation", "shots", "chat", "max_tokens", "stops", "judge"} <= set(
            row["measured"]
        )
    for average in value["averages"]:
        assert set(average) == NUMBERS | {"label", "benchmarks", "n"}
    assert value["verdict"] == words.verdict(compared(suites["arm"], suites["base"]))


def test_json_alone_on_standard_output(two_runs, capsys):
    run_compare(spec(*two_runs), json_file=Path("-"))
    value = json.loads(capsys.readouterr().out)
    assert value["benchmarks"][0]["discordant"] == [7, 1]


def test_json_has_no_nan(tmp_path, capsys):
    a, b = gsm8k(tmp_path / "a", [1]), gsm8k(tmp_path / "b", [0])
    run_compare(spec(a, b), json_file=Path("-"))
    (row,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["benchmarks"]
    assert row["se"] is None
    text = run(capsys, a, b)
    assert "No difference shown" in text


# -- the plot ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_plot_is_written_twice_and_is_the_same_again(suites, tmp_path, capsys):
    text = run(capsys, suites["better"], suites["base"], plot=tmp_path / "forest")
    assert "forest.svg" in text and "forest.png" in text
    png = (tmp_path / "forest.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", png[16:24])
    assert width > 2_000 and height > 1_200
    assert (tmp_path / "forest.svg").read_text().lstrip().startswith("<?xml")
    before = (tmp_path / "forest.svg").read_bytes()
    run(capsys, suites["better"], suites["base"], plot=tmp_path / "forest.png")
    assert (tmp_path / "forest.svg").read_bytes() == before


@pytest.mark.parametrize("name", ["forest.pdf", "v1.2"])
def test_a_plot_of_another_kind_is_refused_before_anything_else(two_runs, tmp_path, capsys, name):
    with pytest.raises(UserError, match=rf"--plot .*{name}: .* \.svg and \.png"):
        run(capsys, *two_runs, plot=tmp_path / name)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("arms", ["suites", "narrow"])
def test_texts_of_the_plot_do_not_touch(suites, tmp_path, monkeypatch, arms):
    """The longest labels and numbers that occur, and names as long as they get."""
    figures = []
    monkeypatch.setattr(forest, "save", lambda figure, *_: figures.append(_boxes(figure)))
    a, b = suites["better"], suites["base"]
    if arms == "narrow":
        name = {"name": "a model with a name that is as long as names are let be and longer still"}
        a = suite(tmp_path / "a", 9.0, 3, model=name, limit=7, size=18)
        b = suite(tmp_path / "b", -9.0, 4, model=name, limit=7, size=18)
    forest.save_forest(compared(a, b), tmp_path / "plot")
    (boxes, canvas) = figures[0]
    for text, box in boxes:
        assert canvas.x0 <= box.x0 and box.x1 <= canvas.x1, text
        assert canvas.y0 <= box.y0 and box.y1 <= canvas.y1, text
    for (one, x), (other, y) in itertools.combinations(boxes, 2):
        assert not x.overlaps(y), (one, other)


def _boxes(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]
    return [(t.get_text(), t.get_window_extent(renderer)) for t in texts], figure.bbox


# -- the plan ------------------------------------------------------------------------------------


def test_plan_prints_the_table(capsys):
    run_plan(0.16, None, None, None)
    text = " ".join(capsys.readouterr().out.split())
    for line in ("MMLU CoT 14,042 0.95 no", "PopQA 14,267 0.94 yes", "GSM8K 1,319 3.09 no"):
        assert line in text
    for line in ("HumanEval 164 8.75 no", "11-average 1.36 no", "BBH 6,511 1.39 no"):
        assert line in text
    assert "standard error of the 11-average 0.49 to 0.63 points" in text
    assert "To see 1 point a benchmark needs 12,559 items." in text


def test_plan_as_json(capsys):
    run_plan(None, 0.3, 2.5, Path("-"))
    value = json.loads(capsys.readouterr().out)
    assert value["average"]["independent"]["se"] == pytest.approx(0.0036, abs=5e-5)
    assert value["items_needed"] == math.ceil((2.801585 * 0.3 / 0.025) ** 2)
    assert len(value["benchmarks"]) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--plan needs either --discordance"),
        (["--discordance", "0.1", "--sd", "0.3"], "--plan needs either --discordance"),
        (["--discordance", "1.5"], "--discordance 1.5: a share above 0, at most 1"),
        (["--sd", "0"], "--sd 0.0"),
        (["--sd", "0.3", "--effect", "0"], "--effect 0.0"),
        (["--sd", "0.3", "x"], "A has no effect with --plan"),
        (["--sd", "0.3", "--plot", "x"], "--plot has no effect with --plan"),
        (["--sd", "0.3", "--no-clusters"], "--clusters has no effect with --plan"),
        (["--sd", "0.3", "--benchmark", "drop"], "--benchmark has no effect with --plan"),
    ],
)
def test_plan_refuses(options, message):
    assert message in error_of("--plan", *options)


# -- the command ---------------------------------------------------------------------------------


def error_of(*arguments) -> str:
    error = CliRunner().invoke(app, ["compare", *map(str, arguments)]).exception
    assert isinstance(error, UserError), error
    return str(error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "compare.a: missing; `deltalearn compare` needs it: give A, a directory"),
        (["x"], "compare.b: missing; `deltalearn compare` needs it: give B"),
        (["x", "y", "--discordance", "0.1"], "--discordance has no effect without --plan"),
        (["x", "y", "--draws", "10"], "compare.draws: must be at least 200 (given: 10)"),
        (["x", "y", "--seed", "-1"], "compare.seed: must be at least 0 (given: -1)"),
        (["x", "y", "--mmlu", "z"], "compare.mmlu: expected cot or mc"),
    ],
)
def test_options_without_sense(options, message):
    assert message in error_of(*options)


def test_mmlu_must_be_there(two_runs):
    with pytest.raises(UserError, match="--mmlu mc: it is not scored in both arms"):
        compared(*two_runs, mmlu="mc")


def test_command_line(suites, tmp_path):
    base = str(suites["base"])
    seeds = [str(suites["arm"] / f"seed-{i}") for i in range(3)]
    more = ["--also-a", seeds[1], "--also-a", seeds[2], "--benchmark", "gsm8k", "--draws", "500"]
    out = tmp_path / "numbers.json"
    more += ["--json", str(out), "--seed", "3"]
    result = CliRunner().invoke(app, ["compare", seeds[0], base, *more])
    assert result.exit_code == 0, result.output
    assert "GSM8K" in result.output
    value = json.loads(out.read_text())
    assert len(value["a"]["runs"]) == 3
    assert value["bootstrap"] == {"draws": 500, "seed": 3}


def test_a_comparison_leaves_a_recipe_by_which_it_is_the_same_again(suites, tmp_path):
    """So that no table or figure rests on the history of a shell."""
    base, seeds = str(suites["base"]), [str(suites["arm"] / f"seed-{i}") for i in range(3)]
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"compare: {{a: {seeds[0]}, also_a: [{seeds[1]}], b: {base}, benchmarks: [gsm8k, drop],"
        " draws: 999, clusters: false}\n"
    )

    def compare_to(name, *arguments):
        arguments = [*map(str, arguments), "--json", str(tmp_path / f"{name}.json")]
        result = CliRunner().invoke(app, ["compare", *arguments])
        assert result.exit_code == 0, (result.output, result.exception)
        return (tmp_path / f"{name}.json").read_text()

    changed = ("--draws", 500, "--benchmark", "drop", "--clusters")
    first = compare_to("first", "--recipe", file, *changed, "--plot", tmp_path / "forest.svg")
    value = json.loads(first)
    assert value["bootstrap"] == {"draws": 500, "seed": 0}
    assert [row["name"] for row in value["benchmarks"]] == ["drop"]
    assert value["benchmarks"][0]["clusters"] == 40
    assert len(value["a"]["runs"]) == 2
    resolved = tmp_path / "first.recipe.yaml"
    assert "draws: 500  # command line" in resolved.read_text()
    assert (tmp_path / "forest.recipe.yaml").read_text() == resolved.read_text()
    assert compare_to("again", "--recipe", resolved) == first
    # Another arm does not take the recipe's further seeds for its own.
    (alone,) = json.loads(compare_to("other", seeds[2], "--recipe", file))["a"]["runs"]
    assert alone["directory"] == seeds[2]


def test_command_imports_nothing_heavy():
    code = (
        "import sys, deltalearn.cli.scores; print({'numpy', 'scipy', 'pyarrow'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"

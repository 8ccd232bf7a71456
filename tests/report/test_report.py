"""Protects the report page: that it says what the numbers allow and no more, that nothing a model
or a stranger wrote can become markup, and that it is one deterministic file which loads nothing.

Every page here is made from a small run directory written by `fake_run.make_run`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.fake_run import (
    IMAGE,
    PAIR_DROPS,
    PAIR_SIDES,
    PROMPT_COUNTS,
    RESPONSE_COUNTS,
    SCRIPT,
    TUNE_DROPS,
    make_run,
)

from deltalearn.evaluate.harness.results import write_items
from deltalearn.report.compare import is_control
from deltalearn.report.curves import Log, health
from deltalearn.report.figures import percent, spread
from deltalearn.report.page import render_page
from deltalearn.report.summary import summarize
from deltalearn.report.view import Arm
from deltalearn.util.files import write_json
from deltalearn.util.svg import drawing, short_signed, value_axis
from deltalearn.util.text_format import (
    GAIN,
    LOSS,
    NONE,
    duration,
    measure,
    one_line,
    share,
    signed,
    verdict,
    visible,
)

HOSTILE = [
    SCRIPT,
    IMAGE,
    "$x_{$",
    "{{ 7*7 }}",
    "</pre></style><h1>",
    "\\frac{1}{",
    "a&lt;b",
    "图表",
]
UNSEEN = "nul\x00 bell\x07 esc\x1b[31m del\x7f c1\x9b rtl\u202e zero\u200b"
VOID = ("area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source")


class Page(HTMLParser):
    """A parsed page: its elements, their attributes, and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th", "p", "tr", "li"):
            self.words.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def page_of(run: Path) -> str:
    return render_page(run, summarize(run))


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("plain") / "run"
    return make_run(run, effects={"up": 0.2, "sft": -0.1, "level": None})


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory) -> Path:
    """A run in which everything that can be named or written by others attacks the page."""
    names = [text.replace("/", "") for text in HOSTILE]
    return make_run(
        tmp_path_factory.mktemp("hostile") / "run",
        effects={name: 0.04 * (i - 2) for i, name in enumerate([*names, "x" * 80, UNSEEN[4:20]])},
        models=("<script>alert(3)", "$y^{ {{ 6*6 }}"),
        tasks=(*HOSTILE, UNSEEN, "t" * 300),
        texts=(SCRIPT + UNSEEN, IMAGE + "{{ 7*7 }}\r\n$x_{" + "y" * 5000, "</pre><script>alert(2)"),
    )


@pytest.fixture(scope="module")
def hostile_page(hostile_run) -> str:
    return page_of(hostile_run)


def test_nothing_written_by_others_becomes_markup(hostile_page):
    page = Page(hostile_page)
    assert not {"script", "img", "iframe", "object", "embed", "foreignobject"} & set(page.tags)
    assert page.tags["h1"] == page.tags["body"] == page.tags["style"] == 1
    assert not [a for a in page.attributes if a[1].startswith("on")]
    assert page.open == []
    for text in [*HOSTILE, "</pre><script>alert(2)", "<script>alert(3)", "$y^{ {{ 6*6 }}"]:
        assert text in page.text, text  # shown as written: neither interpreted nor lost


def test_names_in_figures_are_text(hostile_page):
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", hostile_page)
    assert "$x_{$" in labels and "{{ 7*7 }}" in labels and "\\frac{1}{" in labels
    assert "&lt;script&gt;alert(1)&lt;script&gt;" in labels


def test_unseen_characters_are_shown(hostile_page):
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202e]", hostile_page)
    shown = "nul␀ bell␇ esc␛[31m del␡ c1⟨U+009B⟩ rtl⟨U+202E⟩ zero⟨U+200B⟩"
    assert Page(hostile_page).text.count(shown) >= 8  # a task's name, and in every sample
    assert visible("tab\tline\n 👩‍🔬 é") == "tab\tline\n 👩‍🔬 é"  # joiners make emoji: left alone
    assert one_line("a\nb\tc" + "d" * 9, 8) == "a␊b␉cdd…"
    assert visible("\ud800").encode() == "⟨U+D800⟩".encode()


def test_long_text_is_cropped_with_a_note(hostile_page):
    assert "y" * 1600 not in hostile_page
    assert "cropped: 1,500 of 5,045 characters" in hostile_page


def test_the_page_loads_nothing(hostile_page, plain_run):
    for html in (hostile_page, page_of(plain_run)):
        for tag, name, value in Page(html).attributes:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster"):
                assert value.startswith("#") or value == "data:,", (tag, name, value)
        assert "@import" not in html
        assert set(re.findall(r"url\((.)", html)) <= {"#"}
        assert "default-src 'none'" in html


def test_ids_are_unique_and_every_reference_resolves(hostile_page):
    page = Page(hostile_page)
    ids = Counter(value for _, name, value in page.attributes if name == "id")
    assert max(ids.values()) == 1
    wanted = {v[1:] for _, name, v in page.attributes if name == "href" and v.startswith("#")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", hostile_page))
    wanted |= {v for _, name, v in page.attributes if name == "aria-labelledby"}
    assert wanted and wanted <= set(ids)


def test_figures_cannot_style_the_page_and_are_described(hostile_page):
    page = Page(hostile_page)
    roles = [v for tag, name, v in page.attributes if (tag, name) == ("svg", "role")]
    assert roles == ["img"] * page.tags["svg"] and page.tags["svg"] >= 8
    assert page.tags["title"] == 1 + page.tags["svg"]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["curves.panels", "samples.samples", "counts.timings"])
def test_a_figure_that_fails_leaves_the_report(plain_run, part, monkeypatch, capfd):
    """Scores and verdict are worth more than a plot: what is missing is said in one line."""

    def fails(*_):
        raise RuntimeError("no font\nwas found")

    monkeypatch.setattr(f"deltalearn.report.{part}", fails)
    page = page_of(plain_run)
    assert "</html>" in page and "delta" in page
    said = [line for line in capfd.readouterr().err.splitlines() if "not known" in line]
    assert len(said) == 1 and "RuntimeError: no font was found" in said[0]


@pytest.mark.slow
def test_two_processes_write_the_same_page(plain_run):
    code = (
        "import sys; from pathlib import Path; from deltalearn.report.page import render_page;"
        "from deltalearn.report.summary import summarize;"
        "run = Path(sys.argv[1]); page = render_page(run, summarize(run));"
        "sys.stdout.buffer.write(page.encode())"
    )
    command = [sys.executable, "-c", code, str(plain_run)]
    other = {**os.environ, "PYTHONHASHSEED": "12345"}
    printed = subprocess.run(command, capture_output=True, check=True, env=other, timeout=120)
    assert printed.stdout.decode() == page_of(plain_run)


def test_report_stage_of_an_earlier_writing_does_not_show(plain_run, tmp_path):
    shutil.copytree(plain_run, tmp_path / "run")
    manifest = json.loads((plain_run / "run.json").read_text())
    later = {"key": "k", "outputs": [], "finished": "later", "seconds": 77.7, "counts": {}}
    manifest["stages"]["report"] = later
    write_json(tmp_path / "run" / "run.json", manifest)
    assert page_of(tmp_path / "run") == page_of(plain_run)


@pytest.mark.parametrize(
    ("lo", "hi", "said"),
    [(-1, 1, NONE), (0, 1, NONE), (-1, 0, NONE), (0, 0, NONE), (1e-9, 1, GAIN), (-1, -1e-9, LOSS)],
)
def test_verdict_is_no_difference_exactly_when_the_interval_includes_zero(lo, hi, said):
    entry = {"mean": (lo + hi) / 2, "lo": lo, "hi": hi}
    assert verdict(entry) == said
    claim = measure("gsm8k", {"title": "GSM8K"}, [entry]).claim(entry)
    assert claim.startswith("no difference shown:") == (said == NONE)
    assert ("gains" in claim, "loses" in claim) == (said == GAIN, said == LOSS)


def test_the_page_says_no_difference_of_those_arms_only(plain_run):
    summary = summarize(plain_run)
    entries = [
        (arm, metric, entry["diff_vs_base"][metric])
        for arm, entry in summary["arms"].items()
        for metric in summary["benchmarks"]
        if arm != "base"
    ]
    crossing = [entry for *_, entry in entries if entry["lo"] <= 0 <= entry["hi"]]
    assert 0 < len(crossing) < len(entries)
    html = render_page(plain_run, summary)
    text = Page(html).text
    assert text.count("no difference shown") == 2 * len(crossing)  # in the headline and the table
    assert "level ○ no difference shown" in text
    assert "up ▲ gains 20." in text and "sft ▼ loses 9." in text
    assert "1 of 3 tuned students beats the untouched one in expected accuracy; 1 falls" in text


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ({"a": 0.2}, "The tuned student beats the untouched one"),
        ({"a": -0.2}, "The tuned student falls below the untouched one"),
        ({"a": None}, "The tuned student is not shown to differ from the untouched one"),
        ({"a": 0.2, "b": 0.1}, "All 2 tuned students beat the untouched one"),
        ({"a": -0.2, "b": None}, "No tuned student is shown to beat the untouched one"),
    ],
)
def test_verdict_over_all_arms(tmp_path, effects, verdict):
    run = make_run(tmp_path, effects=effects, tasks=("all",), seeds=(0,), steps=3, pairs=2)
    assert verdict in re.search(r"<h1>(.*?)</h1>", page_of(run)).group(1)


def test_one_task_one_seed_and_log_likelihood_only(tmp_path):
    run = make_run(tmp_path, effects={"a": 0.2}, metrics=("loglik",), tasks=("all",), seeds=(8,))
    page = Page(page_of(run))
    assert "gains 0.200 nats per byte" in page.text
    assert "points" not in page.text and "reaching 0.66" in page.text
    assert not [v for _, name, v in page.attributes if name == "id" and v == "tasks"]
    assert "one training seed" in page.text and "each seed" not in page.text


def test_a_run_without_pairs_or_logs_still_has_a_page(tmp_path):
    run = make_run(tmp_path, effects={"a": 0.1, "b": 0.1}, pairs=0)
    shutil.rmtree(run / "arms" / "b")
    text = Page(page_of(run)).text
    assert "no pairs" in text and "b has no training log" in text


def test_every_dropped_count_is_on_the_page(plain_run):
    section = page_of(plain_run).partition('<section id="counts">')[2].partition("</section>")[0]
    text = Page(section).text
    numbers = [*PROMPT_COUNTS.values(), *RESPONSE_COUNTS.values(), *PAIR_DROPS.values()]
    numbers += [*PAIR_SIDES.values(), *TUNE_DROPS.values(), 811]
    for number in numbers:
        assert re.search(rf"(?<!\d)(?<!\d,){number:,}(?!,?\d)", text), number
    assert "a reason of the future" in text
    assert "empty: chosen 611, rejected 612; truncated: both 613" in text
    assert f"p.jsonl:3 {SCRIPT}" in text and f"not a prompt {IMAGE}" in text


def test_evaluated_items_among_the_prompts_are_on_the_page_and_in_the_notes(tmp_path):
    run = make_run(tmp_path / "run", effects={"up": 0.2}, steps=3, pairs=3)
    one = {"items": 40, "any": 12, "exact": 11, "8-gram": 12, "13-gram": 10, "prompts": 13}
    first = {"item": f"7{SCRIPT}", "prompt": "prompt 3", "kind": "exact", "text": f"why{IMAGE}"}
    overlap = {
        "prompts": 8001,
        "sets": {"mine": {**one, "first": [first]}},
        "not_compared": {"arc_easy": "it is a task of lm_eval"},
    }
    write_json(run / "overlap.json", overlap)
    manifest = json.loads((run / "run.json").read_text())
    manifest["stages"]["overlap"] = {**manifest["stages"]["prompts"], "counts": {}}
    write_json(run / "run.json", manifest)
    summary = summarize(run)
    assert summary["overlap"] == overlap
    assert "12 of 40 items of mine are among the training prompts" in summary["notes"][-1]
    page = Page(page_of(run))
    assert not {"script", "img"} & set(page.tags)
    for said in ("12 of 40 items of mine", "Compared with 8,001 training prompts", "prompt 3",
                 "arc_easy is not compared: it is a task of lm_eval"):  # fmt: skip
        assert said in page.text
    row = re.search(r">mine</th>(.*?)</tr>", page_of(run)).group(1)
    assert re.findall(r">([\d,]+)[ <]", row) == ["40", "12", "11", "12", "10", "13"]
    (run / "overlap.json").unlink()
    assert summarize(run)["overlap"] is None


def test_no_object_of_python_is_on_the_page(plain_run, hostile_page):
    """A name in a template may be that of a method instead of a key."""
    for html in (page_of(plain_run), hostile_page):
        assert not re.search(r"built-in method|object at 0x|&lt;bound|>None<|>nan<", html)


def test_a_control_that_is_ahead_is_not_the_tuned_student(tmp_path):
    """The tile is about delta learning, not about what it is compared with."""
    run = make_run(tmp_path, effects={"delta": 0.1, "sft": 0.3}, steps=3, pairs=3)
    tiles = Page(page_of(run)).text
    assert "tuned student" in tiles and "highest of" not in tiles
    assert re.search(r"delta, \+1\d\.\d points", tiles)


@pytest.mark.parametrize(
    ("chosen", "rejected", "method", "control"),
    [
        ("large", "small", "dpo_norm", False),
        ("small", "large", "dpo_norm", True),
        ("student", "small", "dpo_norm", True),
        ("large", "student", "dpo_norm", True),
        ("large", "small", "sft", True),
        ("elsewhere", "small", "dpo_norm", False),
    ],
)
def test_controls_are_told_by_what_they_learn_from(chosen, rejected, method, control):
    scores = {name: {"m": {"mean": mean}} for name, mean in (("large", 0.4), ("small", 0.2))}
    view = SimpleNamespace(
        is_scored=lambda name: name in scores, scores=scores.__getitem__,
        arms=[arm("delta"), arm("x", chosen, rejected, method)],
    )  # fmt: skip
    assert is_control(view, view.arms[1], SimpleNamespace(key="m")) == control
    alone = SimpleNamespace(**{**vars(view), "arms": [arm("sft", "large", "small", "sft")]})
    assert not is_control(alone, alone.arms[0], SimpleNamespace(key="m"))
    outside = replace(arm("strong"), chosen="", rejected="", outside="pairs.jsonl")
    assert not is_control(view, outside, SimpleNamespace(key="m"))


def arm(name: str, chosen: str = "large", rejected: str = "small", method: str = "dpo_norm"):
    return Arm(name, method, chosen, rejected, 0, 1.0)


@pytest.mark.parametrize("span", [1e-6, 3e-5, 1e-3, 0.002, 0.03, 0.7, 8, 40, 3000])
@pytest.mark.parametrize("start", [0, -1, 0.4995])
def test_no_two_ticks_of_an_axis_are_called_alike(span, start):
    with drawing("ticks", 400, 100) as figure:
        axes = figure.add_subplot()
        value_axis(axes, 20, [start, start + span], "x", short_signed)
        ticks = axes.get_xticks()
    for written in (short_signed, percent):
        labels = [written(tick) for tick in ticks]
        assert len(set(labels)) == len(labels) > 1
        assert [float(re.sub("[%+]", "", x).replace("−", "-")) for x in labels] == pytest.approx(
            ticks if written is short_signed else 100 * ticks, abs=1e-8
        )


def test_lengths_and_samples_of_pairs(plain_run):
    text = Page(page_of(plain_run)).text
    assert "4.0 3.0 100% / 0% / 0%" in text
    assert "8 of 30 pairs" in text
    places = [int(n) for n in re.findall(r"pair (\d+) · prompt id", text)]
    assert places == [2, 6, 10, 14, 17, 21, 25, 29]


def test_long_runs_make_small_pages(tmp_path):
    run = make_run(tmp_path, effects={"a": 0.1, "b": 0.2}, steps=5000)
    assert len(page_of(run)) < 300_000


def test_what_students_answer_is_shown_and_never_obeyed(tmp_path):
    run = make_run(tmp_path, effects={"a": 0.1})
    summary = summarize(run)
    assert "What the students answer" not in render_page(run, summary)
    for place in ("models/student", "arms/a/seed-0"):
        rows = [
            {"id": str(i), "stratum": "add", "cluster": "", "score": i % 2, "prompt": f"q {i}",
             "output": f"{place} says {i} {SCRIPT}", "extracted": "", "gold": IMAGE}
            for i in range(80)
        ]  # fmt: skip
        write_items(run / "scores" / place, "questions.greedy_accuracy", rows)
    page = render_page(run, summary)
    assert "What the students answer" in page and "6 of 80 questions" in page
    assert page.count("models/student says") == page.count("arms/a/seed-0 says") == 6
    assert SCRIPT not in page and IMAGE not in page


def test_health_tells_what_the_log_shows():
    arm = Arm("a", "dpo_norm", "l", "s", 0, 1.0)

    def tell(chosen: float, rejected: float, accuracy: float = 0.8, loss: float = 0.5) -> dict:
        last = {"loss": loss, "margin": chosen - rejected, "accuracy": accuracy}
        last |= {"chosen_logratio": chosen, "rejected_logratio": rejected}
        values = {key: np.full((2, 30), value) for key, value in last.items()}
        values["loss"][:, 0] = np.log(2)
        return health(Log(arm, values))

    assert "usual for DPO" in tell(-0.1, -0.4)["words"] and not tell(-0.1, -0.4)["looks"]
    assert "usual for DPO" not in tell(0.1, -0.4)["words"]
    assert "gained on the chosen" in tell(-0.4, -0.1)["words"]
    assert "not positive" in tell(-0.4, -0.1)["looks"][0]
    assert "hardly more than half" in tell(-0.1, -0.2, accuracy=0.52)["looks"][0]
    assert "lost more than 1 nat" in tell(-1.5, -3.0)["looks"][0]
    assert "above 0.693, where it began" in tell(-0.1, -0.4, loss=0.8)["looks"][0]


def test_curve_labels_never_overlap():
    places = spread([1.0, 1.01, 5.0, 1.02, 4.99], 0.5, 5.0)
    assert np.diff(np.sort(places)).min() >= 0.5 - 1e-9 and max(places) <= 5.0
    assert list(np.argsort(places)) == [0, 1, 3, 4, 2]


def test_numbers_in_words():
    assert [signed(v, 1) for v in (0.04, -0.04, 1.25, -3.0)] == ["0.0", "0.0", "+1.2", "−3.0"]
    assert [share(a, 5000) for a in (0, 1, 4999, 5000)] == ["0%", "<0.1%", ">99.9%", "100%"]
    assert [duration(s) for s in (0.23, 59.7, 200, 18720)] == [
        "0.2 s",
        "1 min 0 s",
        "3 min 20 s",
        "5 h 12 min",
    ]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
@pytest.mark.parametrize("kind", ["plain_run", "hostile_run"])
def test_a_browser_shows_the_page_without_complaint(kind, request, tmp_path):
    html = page_of(request.getfixturevalue(kind))
    (tmp_path / "report.html").write_text(html, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--disable-component-update", "--no-first-run", "--enable-logging=stderr"]
    address = (tmp_path / "report.html").as_uri()
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = ["chromium", *flags, profile, "--dump-dom", address]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in shown.stderr
    written, loaded = Page(html), Page(shown.stdout)
    assert loaded.tags == written.tags  # the browser found the elements we meant, and no others
    assert loaded.tags["svg"] >= 8

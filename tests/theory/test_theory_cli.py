"""Protects `deltalearn theory`: the numbers it prints are the closed form's, its JSON is one line,
what makes no sense is refused with exit code 2, and figures and page are whole and self-contained.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from deltalearn.theory.figures import PANELS
from deltalearn.theory.geometry import Geometry
from deltalearn.theory.setting import Setting

SMALL = ("--trials", "3", "--steps", "5", "--batch", "50", "--dimension", "20")
FIGURES = {
    "line-gaps", "line-dimensions", "phase-dimension", "phase-quality", "early-stopping",
    "shared-errors", "race-independent", "race-correlated", "sample-size", "other-inputs",
}  # fmt: skip


def theory(*arguments: str | Path, cwd: Path | None = None, **env: str):
    command = [sys.executable, "-m", "deltalearn", "theory", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **env}, timeout=240
    )


def numbers(*arguments: str, cwd: Path) -> dict:
    result = theory("--json", *arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1 and not list(cwd.iterdir())
    return json.loads(result.stdout, parse_constant=lambda text: pytest.fail(text))


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """What a small run without --out leaves in the current directory."""
    here = tmp_path_factory.mktemp("theory")
    result = theory(*SMALL, cwd=here)
    assert result.returncode == 0, result.stderr
    (here / "stdout.txt").write_text(result.stdout)
    return here


@pytest.fixture(scope="module")
def html(written) -> str:
    return (written / "runs/theory/theory.html").read_text(encoding="utf-8")


def test_the_table_says_what_the_closed_form_says(written):
    table = (written / "stdout.txt").read_text()
    golden = {
        "gap D": "0.2000",
        "pull k": "0.1600",
        "contrast N²": "1.5200",
        "teachers disagree": "42.3 %",
        "improves at first, D > a_0 k": "yes",
        "best distance s*": "0.0608",
        "break-even distance": "0.1235",
        "cosine in the limit, D / N": "0.1622",
        "95 % chance to improve": "179",
    }
    for what, value in golden.items():
        assert re.search(rf"{re.escape(what)}[^\n]* +{re.escape(value)} ", table), what
    assert re.search(r"best cosine +  0\.8022 ", table)
    assert re.search(r"best cosine +  0\.8370 ", table)  # of SFT
    assert re.search(r"cosine after the last step +  0\.\d{4} ± 0\.\d{5} \(s\.e\.\)", table)
    assert "runs/theory/theory.html" in table


@pytest.mark.slow
def test_json_is_one_line_with_the_golden_numbers(tmp_path):
    found = numbers("--trials", "10", "--steps", "10", "--batch", "2000", "--dimension", "50",
                    cwd=tmp_path)  # fmt: skip
    golden = {
        "gap": 0.2, "pull": 0.16, "initial_cosine": 0.8, "best_cosine": 0.802165,
        "best_step": 0.060811, "break_even_step": 0.123499, "limit_cosine": 0.162221,
    }  # fmt: skip
    for name, value in golden.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name
    assert found["improves"] is True
    simulation = found["simulation"]
    assert simulation["pairs"] == 20_000
    for name in ("cosine", "accuracy"):
        assert 0 < simulation[f"{name}_error"] < 1e-3
    away = abs(simulation["cosine"] - simulation["predicted_cosine"])
    assert away < 5 * simulation["cosine_error"]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sft", "dpo"])
def test_each_loss_ends_where_its_theory_expects(loss, tmp_path):
    size = ("--trials", "10", "--steps", "40", "--batch", "2000", "--dimension", "10")
    simulation = numbers("--loss", loss, *size, cwd=tmp_path)["simulation"]
    assert simulation["loss"] == loss and ("beta" in simulation) == (loss == "dpo")
    peak = {"sft": 0.8370, "dpo": 0.8022}[loss]
    assert simulation["predicted_cosine"] == pytest.approx(peak, abs=2e-4)
    assert simulation["cosine"] == pytest.approx(peak, abs=2e-3)


@pytest.mark.slow
def test_what_is_infinite_or_undefined_is_null(tmp_path):
    found = numbers(*SMALL, "--chosen", "0.3", "--rejected", "0.5", cwd=tmp_path)
    assert found["improves"] is False and found["best_step"] == 0
    assert found["best_cosine"] == found["initial_cosine"] == 0.8
    assert found["threshold_dimension"] is None
    rises = numbers(*SMALL, "--student", "0.1", "--chosen", "0.9", "--rejected", "0.1",
                    "--trials", "1", cwd=tmp_path)  # fmt: skip
    assert rises["break_even_step"] is None and rises["improves"] is True
    assert rises["simulation"]["cosine_error"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--student", "1.2"), "must lie in [-1, 1]"),
        (("--chosen", "nan"), "must lie in [-1, 1]"),
        (("--norm", "0"), "must be positive"),
        (("--errors", "0.9,0.9,-0.9"), "positive semi-definite"),
        (("--errors", "0.2,0.2"), "three correlations"),
        (("--errors", "0,0,2"), "no correlation"),
        (("--chosen", "0.6", "--rejected", "0.6", "--errors", "0,0,1"), "the same"),
        (("--dimension", "2"), "too small"),
        (("--rate", "-1"), "must be positive"),
        (("--rate", "nan"), "finite"),
        (("--temperature", "-1"), "temperature"),
        (("--seed", "-1"), "seed"),
        (("--loss", "ppo"), "no loss 'ppo'"),
        (("--inputs", "uniform"), "no inputs 'uniform'"),
        (("--inputs", "heavy", "--freedom", "2"), "more than 2"),
        (("--inputs", "correlated", "--correlation", "1"), "(-1, 1)"),
        (("--beta", "5"), "--beta has no effect without --loss dpo"),
        (("--freedom", "5"), "--freedom has no effect without"),
        (("--inputs", "normal", "--correlation", "0.5"), "--correlation has no effect without"),
        (("--no-figures", "--out", "x"), "--out has no effect"),
        (("--no-figures", "--json"), "--no-figures has no effect"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, said, tmp_path, monkeypatch, capsys):
    from deltalearn.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["deltalearn", "theory", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr()
    assert end.value.code == 2 and shown.out == ""
    assert shown.err.startswith("error: ") and said in shown.err
    assert shown.err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_refusal_ends_the_process_without_traceback(tmp_path):
    result = theory("--errors", "0.9,0.9,-0.9", cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def test_theory_needs_no_torch(tmp_path):
    code = (
        "import sys; from deltalearn.theory import figures, page, run;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=120)


def test_every_figure_is_there_as_svg_and_png(written):
    from PIL import Image

    folder = written / "runs/theory/figures"
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png")
    }
    for name in FIGURES:
        root = ET.parse(folder / f"{name}.svg").getroot()  # noqa: S314 - just written
        assert root.tag.endswith("svg") and len(list(root.iter())) > 50
        with Image.open(folder / f"{name}.png") as image:
            image.load()
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
            assert image.width > 1000


def test_the_page_loads_nothing_and_its_ids_are_unique(html):
    page = Page(html)
    assert page.tags["svg"] == len(FIGURES) and not page.tags["script"]
    for name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith("#") or value == "data:,", (name, value)
    assert "default-src 'none'" in html and "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    ids = Counter(value for name, value in page.attributes if name == "id")
    assert max(ids.values()) == 1
    wanted = set(re.findall(r"url\(#([^)]+)\)", html))
    wanted |= {v[1:] for name, v in page.attributes if name == "href" and v.startswith("#")}
    wanted |= {v for name, v in page.attributes if name == "aria-labelledby"}
    assert wanted and wanted <= set(ids)


def test_no_markup_is_shown_as_text(html):
    """Symbols in the table are typeset, and what is typeset is escaped once."""
    assert "student&#39;s cosine a<sub>0</sub>" in html
    assert "&lt;sub&gt;" not in html
    assert "&amp;" not in html


def test_the_page_says_what_the_table_says(html):
    assert "lifts the cosine from 0.800 to 0.8022; overdone, it ends at 0.162" in html
    for value in ("0.0608", "0.1235", "42.3 %", "150,000"):
        assert value in html
    assert "$" not in html and not re.search(r"\b[aku]_[0cr]\b", html)  # typeset everywhere


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry(0.8, 0.3, 0.5, errors=(0.3, 0.1, 0.6)),
        Geometry(-0.2, 1, -1),
        Geometry(1, 0.5, 0.5, norm=3),
    ],
)
def test_strange_settings_have_figures_too(geometry):
    setting = Setting(geometry, dimension=4, trials=1, seed=0)
    for build in PANELS:
        drawn = build(setting).inline()
        assert "NaN" not in drawn and drawn.startswith("<svg")


@pytest.mark.slow
def test_another_process_draws_the_same_bytes(written, tmp_path):
    names = ["line-dimensions", "phase-quality", "race-correlated"]
    code = (
        "import sys; from pathlib import Path; from deltalearn.theory import figures;"
        "from deltalearn.theory.geometry import Geometry;"
        "setting = figures.Setting(Geometry(0.8, 0.6, 0.4), dimension=20, trials=3, seed=0);"
        "builds = {f.__name__: f for f in figures.PANELS};"
        "[builds[name.replace('-', '_')](setting).save(Path(sys.argv[1])) for name in sys.argv[2:]]"
    )
    command = [sys.executable, "-c", code, str(tmp_path), *names]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": "12345"}, timeout=120)
    for name in names:
        for file in (f"{name}.svg", f"{name}.png"):
            first = (written / "runs/theory/figures" / file).read_bytes()
            assert first == (tmp_path / file).read_bytes(), file


@pytest.mark.parametrize("out", [None, "there"])
def test_json_comes_with_figures_only_where_a_place_is_given(out, tmp_path, monkeypatch, capsys):
    from deltalearn.cli import main
    from deltalearn.theory import run

    asked = []
    monkeypatch.setattr(run, "write_files", lambda *given: asked.append(given[-1]) or given[-1])
    monkeypatch.chdir(tmp_path)
    arguments = [*SMALL, "--json", *(["--out", out] if out else [])]
    monkeypatch.setattr(sys, "argv", ["deltalearn", "theory", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0 and asked == ([Path(out)] if out else [])
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and json.loads(printed)["improves"] is True


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_a_browser_shows_the_page_without_complaint(written, html, tmp_path):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--disable-component-update", "--no-first-run", "--enable-logging=stderr"]
    address = (written / "runs/theory/theory.html").as_uri()
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = ["chromium", *flags, profile, "--dump-dom", address]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in shown.stderr
    assert Page(shown.stdout).tags == Page(html).tags


def test_figures_of_other_settings_are_not_overwritten(tmp_path, monkeypatch):
    """The same again may be written again; other settings need --update or another --out."""
    from deltalearn.errors import UserError
    from deltalearn.theory import run
    from deltalearn.theory.options import Options

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "print_table", lambda *given: None)

    def write_files(geometry, theory, measured, out):
        out.mkdir(parents=True, exist_ok=True)
        (out / run.PAGE).write_text(f"{geometry.student}, {measured.plan.trials}")
        return out / run.PAGE

    monkeypatch.setattr(run, "write_files", write_files)
    few = {"trials": 3, "steps": 5, "batch": 50, "dimension": 20}
    page = tmp_path / "runs/theory" / run.PAGE
    for _ in range(2):
        run.run_theory(Options(**few))
    for changed, named in (
        ({"student": 0.7}, "student"),
        ({"trials": 4}, "trials"),
        ({"loss": "dpo", "beta": 3.0}, "loss, beta"),
        ({"inputs": "heavy"}, "inputs"),
    ):
        with pytest.raises(UserError, match=f"other settings .{named}.. Pass --update"):
            run.run_theory(Options(**{**few, **changed}))
    assert page.read_text() == "0.8, 3"
    run.run_theory(Options(**few, student=0.7, out=tmp_path / "other"))
    run.run_theory(Options(**few, student=0.7, update=True))
    assert page.read_text() == "0.7, 3"
    (page.parent / run.SETTING).unlink()  # as versions before this one left it
    with pytest.raises(UserError, match="Pass --update"):
        run.run_theory(Options(**few, student=0.7))
    with pytest.raises(UserError, match="--update has no effect"):
        run.run_theory(Options(**few, update=True, no_figures=True))

"""Protects AlpacaEval's numbers: win rates, length control, alignment, and whose judge they are.

Published annotations must give the published leaderboard, and both length controls what alpaca_eval
0.6.6 computes, live where it can be imported. Small cases are worked by hand.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from helpers.data import DATA
from scipy.optimize import minimize
from scipy.special import expit

from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.annotations import match, read_annotations, write_annotations
from deltalearn.evaluate.alpaca.length_control import (
    FULL,
    MINIMAL,
    ScoredPairs,
    fit_newton,
    length_controlled,
    minimal_rates,
    pseudo_scores,
    regression,
)
from deltalearn.evaluate.alpaca.length_data import find_length_data, read_length_data
from deltalearn.evaluate.alpaca.pairs import Output, pair_up, read_outputs
from deltalearn.evaluate.alpaca.result import NOT_THE_BOARD, item_rows, summary, win_rate
from deltalearn.judge.verdicts import Annotation, JudgeIdentity, Pair, Verdict, one_judge

ALPACA = DATA / "alpaca_eval"
SMALL, MIDDLE, LARGE = (
    f"FuseChat-Llama-{size}-Instruct" for size in ("3.2-1B", "3.2-3B", "3.1-8B")
)
GAMED = "gpt4_gamed"
JUDGE = JudgeIdentity("judge")
published = pytest.mark.data("alpaca_eval")

# Made with alpaca_eval 0.6.6, scikit-learn 1.9.1, setuptools 65.5 in an environment of its own:
# get_length_controlled_winrate(annotations, glm_name=..., save_weights_dir=None), with its
# hf_hub_download replaced by one that gives the file of `stand_in` below. Win rate times 100, then
# the coefficients of length, (difficulty,) constant.
BY_PACKAGE = {
    ("length_controlled_minimal", SMALL): (26.032184684624752, -0.9549316158, -1.0442964255),
    ("length_controlled_minimal", MIDDLE): (53.94108633243234, -0.9857326270, 0.1579711482),
    ("length_controlled_minimal", LARGE): (65.00322090673424, -0.9544019682, 0.6191807897),
    ("length_controlled_minimal", GAMED): (39.2337000932030, -13.9749855895, -0.4374992837),
    ("length_controlled_v1", SMALL): (24.657893095962, -1.2204713639, 0.0875730335, -1.1179024885),
    ("length_controlled_v1", MIDDLE): (54.070836266511, -1.1530941334, 0.0, 0.1631946789),
    ("length_controlled_v1", LARGE): (65.675029847601, -1.1953373329, 0.1383815305, 0.6503612027),
    ("length_controlled_v1", GAMED): (21.158487172614, -3.6722036606, 0.0534668333, -1.3158040927),
}


@published
def test_what_is_said_of_the_minimal_rate_is_so():
    """Beside the published rates, of three models and of one that was made to game the judge."""
    with (ALPACA / "leaderboard.csv").open(encoding="utf-8") as file:
        board = {row[""]: float(row["length_controlled_winrate"]) for row in csv.DictReader(file)}
    rates = {name: rate for (kind, name), (rate, *_) in BY_PACKAGE.items() if "minimal" in kind}
    above = {name: rate - board[name] for name, rate in rates.items()}
    three = sorted(round(above[name], 1) for name in (SMALL, MIDDLE, LARGE))
    assert (three[0], three[-1], round(above[GAMED])) == (-0.4, 0.8, 27)
    assert ".4 points below to .8 above" in NOT_THE_BOARD and "27 above" in NOT_THE_BOARD


@pytest.fixture(scope="module")
def annotated() -> dict[str, list[Annotation]]:
    return {
        m: read_annotations(ALPACA / m / "annotations.json.gz")
        for m in (SMALL, MIDDLE, LARGE, GAMED)
    }


@pytest.fixture(scope="module")
def judged(annotated) -> dict[str, ScoredPairs]:
    return {name: ScoredPairs.from_annotations(rows) for name, rows in annotated.items()}


@pytest.fixture(scope="module")
def stand_in(annotated, tmp_path_factory) -> Path:
    """A df_gamed.csv: one real gamed baseline, a model in place of the other, difficulty sin(i)."""
    path = tmp_path_factory.mktemp("sides") / "df_gamed.csv"
    names = "model", "index", "std_delta_len", "preference", "instruction_difficulty"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*names, "not_gamed_baseline"])
        for model in (GAMED, SMALL):
            plain = ScoredPairs.from_annotations(annotated[model])
            scaled = plain.delta / plain.delta.std(ddof=1)
            for i, (x, p) in enumerate(zip(scaled.tolist(), plain.score.tolist(), strict=True)):
                out.writerow([model, i, x, p, math.sin(i), False])
    return path


def annotation(
    preference: float | None,
    instruction: str = "Say hi.",
    output: str = "hi",
    reference: str = "hello",
    judge: JudgeIdentity = JUDGE,
    **more,
) -> Annotation:
    pair = Pair(instruction, reference, output, "reference", "model", "koala")
    return Annotation(pair, judge, Verdict(preference, **more))


def several(preferences, judge=JUDGE, lengths=None) -> list[Annotation]:
    lengths = lengths or [1 + (7 * i) % 11 for i in range(len(preferences))]
    return [
        annotation(p, f"instruction {i}", "x" * n, judge=judge)
        for i, (p, n) in enumerate(zip(preferences, lengths, strict=True))
    ]


def likelihood(judged: ScoredPairs) -> tuple[float, np.ndarray]:
    """(win rate, coefficients) of the minimal control without a penalty, which can be worked."""
    beta = fit_newton(*regression(judged, None))
    return float(expit(beta[-1])), beta


def scored(score, delta) -> ScoredPairs:
    return ScoredPairs(score, delta, np.arange(len(score)))


# -- published numbers ------------------------------------------------------------------------


@published
@pytest.mark.parametrize("model", [SMALL, MIDDLE, LARGE, GAMED])
def test_leaderboard(model, annotated):
    with (ALPACA / "leaderboard.csv").open(encoding="utf-8") as file:
        row = next(r for r in csv.DictReader(file) if r[""] == model)
    found = win_rate(annotated[model])
    assert 100 * found.win_rate == pytest.approx(float(row["win_rate"]), abs=5e-5)
    assert 100 * found.standard_error == pytest.approx(float(row["standard_error"]), abs=5e-5)
    assert 100 * found.discrete == pytest.approx(float(row["discrete_win_rate"]), abs=1e-9)
    counts = [int(row[key]) for key in ("n_wins", "n_wins_base", "n_draws", "n_total")]
    assert [found.wins, found.losses, found.ties, found.n] == counts
    assert int(found.mean_length) == int(row["avg_length"])
    assert found.unscored == 0
    assert one_judge(annotated[model]).shown == "weighted_alpaca_eval_gpt4_turbo"


@published
@pytest.mark.parametrize(
    ("model", "rate", "error", "counts", "length"),
    [
        (SMALL, 29.9219, 1.3935, (233, 570, 2), 2259.07),
        (MIDDLE, 51.2967, 1.4826, (424, 378, 3), 1976.29),
        (LARGE, 63.3316, 1.4225, (518, 286, 1), 2033.74),
    ],
)
def test_golden_win_rates(model, rate, error, counts, length, annotated):
    found = win_rate(annotated[model])
    assert round(100 * found.win_rate, 4) == rate
    assert round(100 * found.standard_error, 4) == error
    assert (found.wins, found.losses, found.ties) == counts
    assert round(found.mean_length, 2) == length


@published
@pytest.mark.parametrize(
    ("model", "published_fit", "unpenalised", "length", "constant", "sd"),
    [
        (SMALL, 26.03, 25.935, -0.9656, -1.0494, 791.23),
        (MIDDLE, 53.94, 53.950, -0.9867, 0.1583, 669.92),
        (LARGE, 65.00, 65.072, -0.9628, 0.6222, 677.27),
    ],
)
def test_golden_length_control(model, published_fit, unpenalised, length, constant, sd, judged):
    pytest.importorskip("sklearn")
    found = length_controlled(judged[model])
    assert found.name == MINIMAL
    assert round(100 * found.win_rate, 2) == published_fit
    assert round(found.sd, 2) == sd
    rate, beta = likelihood(judged[model])
    assert round(100 * rate, 3) == unpenalised
    assert beta.round(4).tolist() == [length, constant]


@published
@pytest.mark.parametrize(("variant", "model"), BY_PACKAGE)
def test_length_control_as_recorded_of_alpaca_eval(variant, model, judged, stand_in):
    pytest.importorskip("sklearn")
    sides = read_length_data(stand_in) if variant == "length_controlled_v1" else None
    rate, *coefficients = BY_PACKAGE[variant, model]
    found = length_controlled(judged[model], sides)
    assert found.name == (FULL if sides else MINIMAL)
    assert 100 * found.win_rate == pytest.approx(rate, abs=0.005)
    own = [found.length, *([found.difficulty] if sides else []), found.constant]
    assert own == pytest.approx(coefficients, abs=0.001)
    assert (found.difficulty is None) == (sides is None)


@published
@pytest.mark.parametrize(
    ("model", "rows", "rate"),
    [(LARGE, 801, 64.89962998582263), (MIDDLE, 402, 51.84842259281827), (MIDDLE, 203, 50.0)],
)
def test_both_copies_of_a_row_are_in_one_fold(model, rows, rate, annotated):
    """Of numbers that 5 does not divide: only then would other folds show. Made as BY_PACKAGE."""
    pytest.importorskip("sklearn")
    found = length_controlled(ScoredPairs.from_annotations(annotated[model][:rows]))
    assert 100 * found.win_rate == pytest.approx(rate, abs=0.005)


@published
@pytest.mark.parametrize(("variant", "model"), BY_PACKAGE)
@pytest.mark.filterwarnings("ignore")
def test_length_control_against_alpaca_eval_itself(variant, model, judged, stand_in, monkeypatch):
    reason = "alpaca_eval cannot be imported (it needs setuptools<81)"
    glm = pytest.importorskip(
        "alpaca_eval.metrics.glm_winrate", reason=reason, exc_type=ImportError
    )
    monkeypatch.setattr(glm, "hf_hub_download", lambda **_: str(stand_in))
    with gzip.open(ALPACA / model / "annotations.json.gz", "rt") as file:
        theirs = glm.get_length_controlled_winrate(
            json.load(file), glm_name=variant, save_weights_dir=None
        )
    ours = length_controlled(
        judged[model], read_length_data(stand_in) if variant == "length_controlled_v1" else None
    )
    expected = theirs["length_controlled_winrate"]
    assert 100 * ours.win_rate == pytest.approx(expected, abs=1e-6)


# -- made-up judgements: what needs no data ----------------------------------------------------

# Made with alpaca_eval 0.6.6 and scikit-learn 1.9.1 as BY_PACKAGE: the rates times 100, then the
# coefficients as there.
RAW_MADE_UP = 48.96362732919254, 0.9635993996714529
BY_PACKAGE_MADE_UP = {
    "length_controlled_minimal": (41.76685660842811, -1.3582665111391805, -0.33235154581915627),
    "length_controlled_v1": (41.16292184295857, -1.4695864854789153, 0.0, -0.3572343411894353),
}


@pytest.fixture(scope="module")
def made_up() -> list[dict]:
    """Rows of an annotations.json: 805 judgements that like length; the model writes more."""
    rng = random.Random(11)
    rows = []
    for i in range(805):
        ours, theirs = rng.randint(1, 1200), rng.randint(1, 900)
        share = 1 / (1 + math.exp(0.4 + rng.gauss(0, 1) - (ours - theirs) / 400))
        row = file_row(1 + round(share, 4), instruction=f"instruction {i}")
        rows.append(row | {"output_1": "r" * theirs, "output_2": "m" * ours, "index": i})
    return [row | {"generator_1": "reference", "generator_2": "model"} for row in rows]


@pytest.fixture(scope="module")
def made_up_sides(tmp_path_factory) -> Path:
    """A df_gamed.csv of two baselines that win by length."""
    path, rng = tmp_path_factory.mktemp("made up") / "df_gamed.csv", random.Random(5)
    names = "model", "index", "std_delta_len", "preference", "instruction_difficulty"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow([*names, "not_gamed_baseline"])
        for model, mean in (("short", 1), ("long", -2)):
            for i in range(805):
                x = rng.gauss(mean, 1)
                out.writerow([model, i, x, round(1 / (1 + math.exp(x)), 4), math.sin(i), False])
    return path


@pytest.mark.parametrize("variant", BY_PACKAGE_MADE_UP)
def test_made_up_judgements_give_what_alpaca_eval_gave(variant, made_up, made_up_sides, tmp_path):
    pytest.importorskip("sklearn")
    (tmp_path / "annotations.json").write_text(json.dumps(made_up))
    rows = read_annotations(tmp_path / "annotations.json")
    raw = win_rate(rows)
    assert (100 * raw.win_rate, 100 * raw.standard_error) == pytest.approx(RAW_MADE_UP, abs=5e-5)
    sides = read_length_data(made_up_sides) if variant == "length_controlled_v1" else None
    rate, *coefficients = BY_PACKAGE_MADE_UP[variant]
    found = length_controlled(ScoredPairs.from_annotations(rows), sides)
    assert 100 * found.win_rate == pytest.approx(rate, abs=0.005)
    own = [found.length, *([found.difficulty] if sides else []), found.constant]
    assert own == pytest.approx(coefficients, abs=0.001)


@pytest.mark.parametrize("variant", BY_PACKAGE_MADE_UP)
@pytest.mark.filterwarnings("ignore")
def test_made_up_judgements_give_what_alpaca_eval_gives(
    variant, made_up, made_up_sides, monkeypatch, tmp_path
):
    reason = "alpaca_eval cannot be imported (it needs setuptools<81)"
    glm = pytest.importorskip(
        "alpaca_eval.metrics.glm_winrate", reason=reason, exc_type=ImportError
    )
    monkeypatch.setattr(glm, "hf_hub_download", lambda **_: str(made_up_sides))
    theirs = glm.get_length_controlled_winrate(made_up, glm_name=variant, save_weights_dir=None)
    (tmp_path / "annotations.json").write_text(json.dumps(made_up))
    judged = ScoredPairs.from_annotations(read_annotations(tmp_path / "annotations.json"))
    sides = read_length_data(made_up_sides) if variant == "length_controlled_v1" else None
    expected = theirs["length_controlled_winrate"]
    assert 100 * length_controlled(judged, sides).win_rate == pytest.approx(expected, abs=1e-6)


@published
def test_minimal_control_of_a_gamed_baseline_is_called_extreme(judged):
    pytest.importorskip("sklearn")
    assert any("moves the win rate" in n for n in length_controlled(judged[GAMED]).notes)
    assert length_controlled(judged[LARGE]).notes == ()


@published
def test_shuffled_files_give_the_same_numbers(annotated, tmp_path):
    with gzip.open(ALPACA / MIDDLE / "annotations.json.gz", "rt", encoding="utf-8") as file:
        rows = json.load(file)
    random.Random(1).shuffle(rows)
    (tmp_path / "annotations.json").write_text(json.dumps(rows), encoding="utf-8")
    references = read_outputs(ALPACA / "reference_gpt4_1106_preview.json")
    outputs = read_outputs(ALPACA / MIDDLE / "model_outputs.json")
    random.Random(2).shuffle(outputs)
    pairs = pair_up(outputs, references)
    assert [p.instruction for p in pairs] == [r.instruction for r in references]
    assert match(read_annotations(tmp_path / "annotations.json"), pairs) == annotated[MIDDLE]


@published
def test_summary_names_judge_and_variant(annotated):
    pytest.importorskip("sklearn")
    found = summary(annotated[LARGE])
    assert found["metric"] == MINIMAL
    assert found["judge"] == "weighted_alpaca_eval_gpt4_turbo"
    assert round(100 * found["score"], 2) == 65.0
    assert (found["n"], found["full_n"], found["subset"]) == (805, 805, False)
    assert round(found["stderr"], 3) == 0.015  # the published one would be 0
    assert found["alpaca_eval"]["reference"] == "gpt4_1106_preview"
    json.dumps(found, allow_nan=False)
    assert summary(annotated[LARGE][:100])["subset"]


@published
def test_items_hold_all_that_the_numbers_need(annotated, judged):
    rows = item_rows(annotated[MIDDLE])
    assert len({row["id"] for row in rows}) == 805
    assert {row["cluster"] for row in rows} == {
        "helpful_base", "koala", "oasst", "selfinstruct", "vicuna"
    }  # fmt: skip
    assert 100 * np.mean([row["score"] for row in rows]) == pytest.approx(51.2967, abs=5e-5)
    again = ScoredPairs.of(*([row[key] for row in rows] for key in ("score", "output", "gold")))
    assert pseudo_scores(again).tolist() == pseudo_scores(judged[MIDDLE]).tolist()


# -- win rates by hand ------------------------------------------------------------------------


def test_win_rate_by_hand():
    """Shares 1, 0, 1/2, 1/4: mean 7/16, variance (1/3) sum of squares 0.546875 = 0.182292."""
    found = win_rate(several([2, 1, 1.5, 1.25], lengths=[1, 2, 3, 6]))
    assert found.win_rate == 0.4375
    assert found.standard_error == pytest.approx(math.sqrt(0.546875 / 3 / 4))
    assert (found.wins, found.losses, found.ties, found.n) == (1, 2, 1, 4)
    assert found.mean_length == 3
    assert found.discrete == 0.375


def test_unread_replies_are_no_ties():
    found = win_rate([*several([2, 2]), annotation(None, "broken", fault="malformed: ?")])
    assert (found.win_rate, found.ties, found.n, found.unscored) == (1.0, 0, 2, 1)
    with pytest.raises(ValueError, match="no score"):
        _ = annotation(None).score
    with pytest.raises(UserError, match="none of 1"):
        win_rate([annotation(None)])


def test_length_control_by_hand():
    """Two lengths, symmetric about the reference's: the fit is exact, its constant the mean logit.

    Shares 0.8 and 0.5 have logits ln 4 and 0; halfway is ln 2, a win rate of 2/3.
    """
    judged = scored(np.array([0.8, 0.5] * 10), np.array([30.0, -30.0] * 10))
    rate, beta = likelihood(judged)
    assert rate == pytest.approx(2 / 3, abs=1e-6)
    sd = 30 * math.sqrt(20 / 19)
    assert beta[0] == pytest.approx(math.log(2) / math.tanh(30 / sd), abs=1e-5)
    pytest.importorskip("sklearn")
    assert length_controlled(judged).sd == pytest.approx(sd)


def test_without_spread_of_lengths_nothing_is_controlled():
    judged = scored(np.array([0.9, 0.2, 0.7, 0.4, 0.3]), np.full(5, 12.0))
    assert likelihood(judged)[0] == pytest.approx(0.5, abs=1e-6)
    pytest.importorskip("sklearn")
    assert "no control" in length_controlled(judged).notes[0]


def test_delta_is_reference_minus_model_in_characters():
    judged = ScoredPairs.from_annotations([annotation(2, output="né€🙂", reference="1234567")])
    assert judged.delta.tolist() == [3]


def test_longer_answers_that_win_are_held_against_the_model():
    rng = np.random.default_rng(0)
    delta = rng.normal(-200, 300, 400)  # the model writes more
    share = 1 / (1 + np.exp(delta / 300))  # and wins by length alone
    assert share.mean() > 0.6
    assert likelihood(scored(share, delta))[0] == pytest.approx(0.5, abs=0.01)


def test_newton_finds_the_optimum():
    rng = np.random.default_rng(3)
    design, weight = rng.normal(size=(2, 60, 3)), rng.uniform(0.1, 2, size=(2, 60))
    target = rng.uniform(size=60)
    found = fit_newton(design, target, weight)

    for i in range(2):

        def loss(beta, i=i):
            z = design[i] @ beta
            return (weight[i] * (np.logaddexp(0, z) - target * z)).sum()

        best = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-8}).x
        assert found[i] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_model_that_always_wins_or_loses(share):
    rng = np.random.default_rng(4)
    judged = scored(np.full(50, share), rng.normal(size=50))
    assert likelihood(judged)[0] == pytest.approx(share, abs=1e-5)
    pytest.importorskip("sklearn")
    assert length_controlled(judged).win_rate == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("seed", range(30))
def test_few_rows_that_can_be_separated_converge(seed):
    """A hundred draws of a small set at once; whole Newton steps go round in circles here."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 12))
    judged = scored(rng.integers(0, 2, n).astype(float), rng.normal(size=n) * 1000)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=100).astype(float)
    rates = minimal_rates(judged, counts)
    assert ((rates >= 0) & (rates <= 1)).all()


def test_too_few_for_cross_validation():
    with pytest.raises(UserError, match="too few"):
        length_controlled(scored(np.array([0.5, 0.6]), np.array([1.0, 2.0])))
    with pytest.raises(UserError, match="no win rate"):
        length_controlled(scored(np.array([]), np.array([])))


def test_without_scikit_learn_the_remedy_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'scikit-learn>=1\.8'"):
        length_controlled(scored(np.linspace(0, 1, 9), np.arange(9.0)))


def test_scikit_learn_settings_are_left_alone():
    sklearn = pytest.importorskip("sklearn")
    before = sklearn.get_config()
    length_controlled(scored(np.linspace(0, 1, 30), np.arange(30.0) % 7))
    assert sklearn.get_config() == before


# -- side files -------------------------------------------------------------------------------


def write_sides(path: Path, size: int, **changes) -> Path:
    rows = ["index,std_delta_len,preference,instruction_difficulty,not_gamed_baseline"]
    for _ in range(2):
        for i in range(size):
            row = {"index": i, "x": i - size / 2, "p": 0.25, "difficulty": i / 10} | changes
            rows.append(",".join(str(v) for v in row.values()) + ",False")
    path.write_text("\n".join(rows) + "\n")
    return path


def test_difficulties_are_found_by_place_where_replies_are_unread(tmp_path):
    sides = read_length_data(write_sides(tmp_path / "df_gamed.csv", 6))
    rows = several([1.1, 1.9, 1.5, 1.2, 1.8, 1.3])
    unread = ScoredPairs.from_annotations([*rows[:2], annotation(None), *rows[3:]])
    assert unread.position.tolist() == [0, 1, 3, 4, 5]
    pytest.importorskip("sklearn")
    assert length_controlled(unread, sides).name == FULL


def test_a_part_of_the_set_has_the_minimal_control_and_says_so(tmp_path):
    pytest.importorskip("sklearn")
    sides = read_length_data(write_sides(tmp_path / "df_gamed.csv", 8))
    rows = several([1.1, 1.9, 1.5, 1.2, 1.8, 1.3, 1.6, 1.4])
    assert summary(rows, sides)["metric"] == FULL
    found = summary(rows[:6], sides)
    assert found["metric"] == MINIMAL
    assert found["alpaca_eval"]["sides"] is None
    assert "are of 8 instructions, and 6 are judged" in found["notes"][0]


def test_gamed_rows_weigh_a_tenth_each(tmp_path):
    """Own rows without spread and of share 1/2: only the gamed rows speak of length.

    Their share is 1/4 at x = 1 and 3/4 at x = -1, and they have no constant: the coefficient is
    -ln 3 / tanh(1) whatever the weight, and the model's own rate stays 1/2.
    """
    path = tmp_path / "df_gamed.csv"
    lines = ["index,std_delta_len,preference,instruction_difficulty"]
    lines += [f"{i},{x},{p},0" for x, p in ((1, 0.25), (-1, 0.75)) for i in range(8)]
    path.write_text("\n".join(lines))
    judged = scored(np.full(8, 0.5), np.full(8, 3.0))
    design, target, weight = regression(judged, read_length_data(path))
    length, difficulty, constant = fit_newton(design, target, weight)
    assert length == pytest.approx(-math.log(3) / math.tanh(1), abs=1e-4)
    assert (difficulty, constant) == pytest.approx((0, 0), abs=1e-9)
    assert weight.tolist() == [0.1] * 16 + [1.0] * 8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", "needs the columns"),
        ("", "not the file"),
        ("index,preference,std_delta_len,instruction_difficulty\n3,0.5,1,1\n", "from 0"),
        ("index,preference,std_delta_len,instruction_difficulty\n0,1.5,1,1\n", r"\[0, 1\]"),
        ("index,preference,std_delta_len,instruction_difficulty\n0,x,1,1\n", "not the file"),
    ],
)
def test_bad_side_files(text, says, tmp_path):
    (tmp_path / "df_gamed.csv").write_text(text)
    with pytest.raises(UserError, match=says):
        read_length_data(tmp_path / "df_gamed.csv")


def test_side_files_of_the_hub(tmp_path, monkeypatch):
    """Both found: read. Anything else, no network included: none, and the minimal one remains."""
    import huggingface_hub

    write_sides(tmp_path / "df_gamed.csv", 2)
    asked = []

    def download(repository, name, **options):
        asked.append((repository, name, options))
        if not (tmp_path / name).exists():
            raise OSError("offline")
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find_length_data() is None
    (tmp_path / "instruction_difficulty.csv").write_text(",instruction_difficulty\n0,0\n1,0.1\n")
    assert find_length_data().difficulty.tolist() == [0.0, 0.1]
    assert asked[0] == ("tatsu-lab/alpaca_eval", "df_gamed.csv", {"repo_type": "dataset"})


def test_difficulties_that_disagree_are_noted(tmp_path):
    gamed = write_sides(tmp_path / "df_gamed.csv", 3)
    other = tmp_path / "instruction_difficulty.csv"
    other.write_text(",instruction_difficulty\n0,0.0\n1,0.1\n2,0.2\n")
    assert read_length_data(gamed, other).notes == ()
    other.write_text(",instruction_difficulty\n0,0.0\n1,0.7\n2,0.2\n")
    assert "does not agree" in read_length_data(gamed, other).notes[0]
    assert len(read_length_data(gamed, other).sha256) == 2


# -- jackknife --------------------------------------------------------------------------------


def test_pseudo_values_refit_without_each_item():
    """Of three items by hand: 3 times the rate less twice that of the other two."""
    judged = scored(np.array([0.2, 0.9, 0.6]), np.array([10.0, -30.0, 5.0]))
    rate, _ = likelihood(judged)
    values = []
    for left_out in range(3):
        others = [i for i in range(3) if i != left_out]
        without, _ = likelihood(scored(judged.score[others], judged.delta[others]))
        values.append(3 * rate - 2 * without)
    found = pseudo_scores(judged)
    assert found - found.mean() == pytest.approx(np.array(values) - np.mean(values), abs=1e-9)
    assert found.mean() == pytest.approx(rate)


def test_the_error_of_a_summary_is_that_of_a_comparison():
    pytest.importorskip("sklearn")
    rows = several([1.1, 1.9, 1.4, 1.2, 1.8, 1.7])
    items = item_rows(rows)
    again = ScoredPairs.of(*([row[key] for row in items] for key in ("score", "output", "gold")))
    error = pseudo_scores(again).std(ddof=1) / math.sqrt(6)
    assert summary(rows)["stderr"] == pytest.approx(error)


# -- alignment --------------------------------------------------------------------------------


def outputs(*instructions: str, who: str = "model") -> list[Output]:
    return [Output(i, f"{who} on {i}", who) for i in instructions]


def test_pairs_follow_the_references():
    pairs = pair_up(outputs("b", "a"), outputs("a", "b", who="reference"))
    assert [(p.output_1, p.output_2) for p in pairs] == [
        ("reference on a", "model on a"),
        ("reference on b", "model on b"),
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        (("a",), ("a", "b"), "1 of 2 instructions have no output, the first 'b'"),
        (("a", "a"), ("a",), "the outputs have 'a' 2 times"),
        (("a",), ("a", "a"), "the references have 'a' 2 times"),
        (("a", "A"), ("a",), "1 outputs answer instructions that the references do not have"),
        (("a", "b "), ("a", "b"), "exactly as they are there"),
        ((), ("a",), "empty"),
    ],
)
def test_what_does_not_align_is_refused(ours, theirs, says):
    with pytest.raises(UserError, match=says):
        pair_up(outputs(*ours), outputs(*theirs, who="reference"))


def test_responses_are_of_one_model():
    mixed = [*outputs("a"), *outputs("b", who="another")]
    with pytest.raises(UserError, match="of several models: another, model"):
        pair_up(mixed, outputs("a", "b", who="reference"))


@pytest.mark.parametrize("missing", [{"output": None}, {"output": float("nan")}, {"output": 3}, {}])
def test_no_output_is_an_error_not_an_empty_answer(missing, tmp_path):
    path = tmp_path / "model_outputs.json"
    rows = [{"instruction": "a", "output": "", "generator": "m"}]
    path.write_text(json.dumps(rows))
    assert read_outputs(path)[0].output == ""
    path.write_text(json.dumps([*rows, {"instruction": "b", "generator": "m", **missing}]))
    with pytest.raises(UserError, match="row 1: output must be a string"):
        read_outputs(path)


def test_a_model_must_have_a_name(tmp_path):
    path = tmp_path / "model_outputs.json"
    path.write_text(json.dumps([{"instruction": "a", "output": "b"}]))
    with pytest.raises(UserError, match="no generator"):
        read_outputs(path)


@pytest.mark.parametrize("text", ["", "[", "{}", "[1]", "[]", "[" * 100_000, '{"a": 1}'])
def test_files_that_are_none(text, tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(text)
    for read in (read_outputs, read_annotations):
        with pytest.raises(UserError, match=r"annotations\.json"):
            read(path)
    with pytest.raises(UserError, match="not a JSON file"):
        read_annotations(tmp_path / "absent.json")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"[]" * 99)[:20])
    with pytest.raises(UserError, match="not a JSON file"):
        read_annotations(tmp_path / "cut.json.gz")


def file_row(preference, **changes) -> dict:
    row = {"instruction": "a", "output_1": "r", "output_2": "m", "annotator": "judge"}
    return row | {"preference": preference} | changes


@pytest.mark.parametrize(
    ("preference", "read"),
    [(1, 1.0), (2.0, 2.0), (1.25, 1.25), (0, 1.5), (-1, None), (None, None), (math.nan, None)],
)
def test_preferences_of_files(preference, read, tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([file_row(preference)]))
    (found,) = read_annotations(path)
    assert found.verdict.preference == read
    assert (found.verdict.fault is None) == (read is not None)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (file_row(2.5), r"in \[1, 2\]"),
        (file_row(0.3), r"in \[1, 2\]"),
        (file_row("1.5"), "must be a number"),
        (file_row(True), "must be a number"),
        (file_row(1.5, annotator=None), "without its judge"),
        (file_row(1.5, judge={"nobody": 1}), "judge is not one of ours"),
        (file_row(1.5, output_2=None), "output_2 must be a string"),
    ],
)
def test_bad_annotations(row, says, tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([row]))
    with pytest.raises(UserError, match=says):
        read_annotations(path)


def test_annotations_are_found_by_instruction_and_must_be_of_these_texts():
    first, second = annotation(2, "a"), annotation(1, "b")
    assert match([second, first], [first.pair, second.pair]) == [first, second]
    with pytest.raises(UserError, match="1 of 2 instructions have no annotation, the first 'b'"):
        match([first], [first.pair, second.pair])
    with pytest.raises(UserError, match="'a' 2 times"):
        match([first, first], [first.pair])
    for side, whose in (("output_1", "reference"), ("output_2", "model")):
        other = dataclasses.replace(first.pair, **{side: "another text"})
        with pytest.raises(UserError, match=f"judged another answer of {whose}"):
            match([first], [other])


def test_annotations_survive_a_file(tmp_path):
    judge = JudgeIdentity("judge", "model-1", "ab" * 32, "alpaca_eval 0.6.6", "{}")
    rows = [
        annotation(1.75, "a", judge=judge, swapped=True, reply="m", logprobs=({"m": -1.0},)),
        annotation(None, "b", judge=judge, fault="malformed: ?", swapped=False, marks=("## Task",)),
        annotation(1.5, "c \x00 🙂", judge=judge, asked=False),
    ]
    for name in ("annotations.json", "again.json"):
        write_annotations(tmp_path / name, rows)
        assert read_annotations(tmp_path / name) == rows
    written = json.loads((tmp_path / "annotations.json").read_text())
    assert written[0]["annotator"] == "judge (model-1)"
    assert written[0]["preference"] == 1.75


def test_half_characters_do_no_harm(tmp_path):
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([file_row(2, output_2="a\ud800b", instruction="\udfff")]))
    rows = read_annotations(path)
    assert rows[0].pair.output_2 == "a?b"
    write_annotations(tmp_path / "again.json", rows)
    assert item_rows(rows)[0]["prompt"] == "?"


# -- one judge --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "differ"),
    [
        (JudgeIdentity("other"), "name"),
        (JudgeIdentity("judge", "gpt-x"), "model"),
        (JudgeIdentity("judge", prompt="00"), "prompt"),
        (JudgeIdentity("judge", version="alpaca_eval 9"), "version"),
        (JudgeIdentity("judge", how="{}"), "how"),
    ],
)
def test_judges_never_mix(other, differ):
    ours, theirs = several([1.2, 1.4] * 5), several([1.2, 1.4] * 5, other)
    with pytest.raises(UserError, match=rf"two judges in one table: .*differ in {differ}\)"):
        one_judge([*ours, *theirs])
    for build in (item_rows, summary):
        with pytest.raises(UserError, match="two judges"):
            build([*ours[:5], *theirs[5:]])
    with pytest.raises(UserError, match="no annotations"):
        one_judge([])


def test_summary_tells_what_was_left_out():
    pytest.importorskip("sklearn")
    rows = [*several([1.1, 1.9, 1.4, 1.2, 1.8]), annotation(None, "x", fault="malformed: what?")]
    found = summary(rows)
    assert found["n"] == 5
    assert found["subset"]
    assert found["alpaca_eval"]["comparisons"]["faults"] == {"malformed": 1}
    assert any(
        "1 replies of the judge have no preference (1 malformed)" in n for n in found["notes"]
    )
    assert len(item_rows(rows)) == 5

"""Protects the sentences of the report: each is true of the numbers that it is made of.

Random scores, intervals and logs, and slow restatements that look at one case after the other.
"""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from deltalearn.report.compare import _relation, _verdict
from deltalearn.report.curves import STILL, Log, _movement, health
from deltalearn.report.summary import STUDENT
from deltalearn.report.view import Arm
from deltalearn.util.text_format import measure

METRIC = measure("m", {"title": "accuracy"}, [])
number = st.floats(-1, 1).map(lambda x: round(x, 2))


@st.composite
def entries(draw):
    """A mean with its interval, or without."""
    low, mean, high = sorted(draw(st.tuples(number, number, number)))
    if draw(st.integers(0, 9)) == 0:
        return {"mean": mean, "lo": None, "hi": None}
    return {"mean": mean, "lo": low, "hi": high}


def view(student, models, unscored=()):
    return SimpleNamespace(
        base={"m": student},
        is_scored=lambda name: name == STUDENT or name not in unscored,
        scores=lambda name: {"m": student if name == STUDENT else models[name]},
    )


def stands(model, student) -> str:
    if model["hi"] < student["lo"]:
        return "below"
    if student["hi"] < model["lo"]:
        return "above"
    return "unclear"


@given(entries(), entries(), entries(), st.booleans())
def test_where_two_models_stand_against_the_student(student, larger, smaller, both):
    models = {"larger": larger, "smaller": smaller} if both else {"larger": larger}
    text = _relation(view(student, models), list(models), METRIC)
    known = [student, *models.values()]
    if any(one["lo"] is None for one in known):
        assert text == f"; the student has {METRIC.score(student['mean'])}"
        return
    truth = {name: stands(one, student) for name, one in models.items()}
    said = {}
    if found := re.match(", (both |neither )?(not )?(below|above|clearly apart from) the", text):
        word = {"below": "below", "above": "above"}.get(found[3], "unclear")
        assert (found[1] is not None) == both
        assert (word == "unclear") == (found[2] is not None or found[1] == "neither ")
        said = dict.fromkeys(models, word)
    for name, word in re.findall(
        "(larger|smaller) is (below|above|not clearly apart from) it", text
    ):
        said[name] = word if word in ("below", "above") else "unclear"
    assert said == truth, text


def test_nothing_is_said_of_models_without_scores_and_of_the_student_himself():
    one = {"mean": 0.5, "lo": 0.4, "hi": 0.6}
    assert _relation(view(one, {"a": one}, unscored=("a",)), ["a"], METRIC) == ""
    assert _relation(view(one, {"a": one}), [STUDENT, "a"], METRIC) == ""


def test_the_sentence_that_said_the_opposite():
    """Of a smaller model that is weaker, and a larger one that is better than the student."""
    student = {"mean": -3.7, "lo": -3.8, "hi": -3.6}
    models = {
        "larger": {"mean": -3.2, "lo": -3.3, "hi": -3.1},
        "smaller": {"mean": -4.6, "lo": -4.7, "hi": -4.5},
    }
    told = _relation(view(student, models), list(models), METRIC)
    assert told.endswith("larger is above it and smaller is below it")


@given(st.lists(entries(), min_size=1, max_size=5))
def test_the_verdict_counts_gains_and_losses(differences):
    arms = [SimpleNamespace(name=str(i)) for i in range(len(differences))]
    seen = SimpleNamespace(arms=arms, difference=lambda name: {"m": differences[int(name)]})
    text = _verdict(seen, METRIC)
    gains = sum(d["lo"] is not None and d["lo"] > 0 for d in differences)
    losses = sum(d["hi"] is not None and d["hi"] < 0 for d in differences)
    total = len(differences)
    if total == 1:
        assert ("beats" in text, "falls below" in text) == (gains == 1, losses == 1)
        return
    number = re.match(r"(All )?(\d+|No)( of (\d+))? tuned student", text)
    assert (number[2] if number[2] != "No" else "0") == str(gains), text
    assert (number[1] is not None) == (gains == total)
    below = re.search(r"; (\d+) falls? below it", text)
    assert int(below[1] if below else 0) == losses


@given(st.floats(-0.02, 0.02), st.floats(-0.02, 0.02))
@example(STILL, 0.0)
@example(-STILL, -2 * STILL)
@example(2 * STILL, STILL)
def test_how_the_two_sides_moved(chosen, rejected):
    text = _movement(chosen, rejected)
    moved = max(abs(chosen), abs(rejected)) >= STILL
    assert (text == "neither side moved") == (not moved)
    if not moved:
        return
    if "gained on the chosen" in text:
        assert rejected > chosen
    elif text == "both moved alike":
        assert rejected == chosen
    else:
        assert chosen > rejected
    if "both became less likely" in text:
        assert chosen < 0 and rejected < 0
    if "both became more likely" in text:
        assert chosen > 0 and rejected > 0
    if "the chosen answers stayed" in text:
        assert abs(chosen) < STILL and rejected <= -STILL
    if "the chosen answers became more likely" in text:
        assert chosen >= STILL and rejected < STILL


def log(method: str, **values: list[float]) -> Log:
    arm = Arm("arm", method, "a", "b", 0, 1.0)
    return Log(arm, {name: np.array([row]) for name, row in values.items()})


@pytest.mark.parametrize("start", [math.log(2), 1.0, 0.01])
@pytest.mark.parametrize("end", [0.005, 0.5, 3.0])
def test_a_loss_is_measured_by_where_it_began(start, end):
    """Not all losses begin at ln 2."""
    found = health(log("hinge", loss=[start, end], margin=[0, 1], accuracy=[0, 1]))
    assert any("where it began" in look for look in found["looks"]) == (end > start)
    assert found["words"].startswith(f"Loss {start:.3f} → {end:.3f}; margin +1.000 nats per answer")


def test_a_method_without_a_reference_has_no_log_ratios():
    found = health(log("simpo", loss=[1.0, 0.5], margin=[0, 1], accuracy=[0, 1], grad_norm=[2, 3]))
    assert "nats per token: " not in found["words"]
    assert "clipped in 100% of the steps, to a norm of 1: it bounds" in found["words"]


def test_only_the_loss_is_known():
    assert health(log("orpo", loss=[1.0, 0.5]))["words"] == "Loss 1.000 → 0.500."

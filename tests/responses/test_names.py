"""Protects the names of answers: a name stands for the answers that it was given for, no others.

One model asked in two ways under two names is the contrastive set-up: `pairs`, `forget`, `export`
and `list` tell the two apart, a merge and a way through a file keep them apart, and identities work
as before. Which settings are meant can be said by a part of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from helpers.cli import deltalearn, fails
from helpers.fault_server import FaultServer, Reply, answer_to
from helpers.stores import answer, assert_whole, failure, put, requests

from deltalearn.errors import UserError
from deltalearn.pairs.candidates import candidates_of_models
from deltalearn.responses.export import export
from deltalearn.responses.importer import import_responses
from deltalearn.responses.maintenance import check, faults, forget_model, merge, overview
from deltalearn.responses.store import ResponseStore

GOOD, BAD = "be good", "be bad"


def name(path: Path, identity: str, called: str, **settings) -> None:
    (request, *_) = requests(identity, "q", **settings)
    with ResponseStore(path) as store:
        store.name_model(identity, called, request.settings_json)


@pytest.fixture
def path(tmp_path) -> Path:
    """M as `good` and as `bad`, each asked q1 and q2; and N, which is called nothing."""
    path = tmp_path / "store.sqlite"
    for called, system in (("good", GOOD), ("bad", BAD)):
        name(path, "M", called, system=system)
        first, second = requests("M", "q1", "q2", system=system)
        put(path, answer(first, f"{called} 1"), answer(second, f"{called} 2"))
    return put(path, answer(requests("N", "q1")[0], "n"))


def pairs_of(path: Path, chosen: str, rejected: str, how: str | None = None) -> list[tuple]:
    with ResponseStore(path, existing=True) as store:
        found = list(candidates_of_models(store, chosen, rejected, how))
    return [(c and c.text, r and r.text) for _, _, c, r in found]


def test_two_names_of_one_model_make_pairs_of_what_each_was_given_for(path):
    assert pairs_of(path, "good", "bad") == [("good 1", "bad 1"), ("good 2", "bad 2")]
    assert pairs_of(path, "bad", "N") == [("bad 1", "n"), ("bad 2", None)]
    with pytest.raises(UserError, match="good and good are the same answers: there is no delta"):
        pairs_of(path, "good", "good")
    with pytest.raises(UserError, match="no model 'ugly'; it has N, bad, good"):
        pairs_of(path, "ugly", "bad")


def test_an_identity_stands_for_all_answers_of_its_model(path):
    with pytest.raises(UserError, match="M has answers with 2 settings that fit; name one with --"):
        pairs_of(path, "M", "N")
    with ResponseStore(path) as store:
        assert [group.settings_json for group in store.named("M")] == [
            f'{{"max_tokens":9,"system":"{system}"}}' for system in (GOOD, BAD)
        ]


def test_forgetting_one_name_keeps_the_other(path):
    with ResponseStore(path) as store:
        assert forget_model(store, "bad") == 2
        assert [row["model"] for row in overview(store)] == ["N", "good"]
        with pytest.raises(UserError, match="no model 'bad'; it has N, good"):
            forget_model(store, "bad")
        assert store.db.execute("SELECT name FROM names").fetchall() == [("good",)]
        assert forget_model(store, "M") == 2, "what is left of the model, by its identity"
        assert store.db.execute("SELECT identity FROM models").fetchall() == [("N",)]
    assert_whole(path, 1)


def test_a_new_name_is_shown_and_the_old_one_still_works(path):
    name(path, "M", "better", system=GOOD)
    assert pairs_of(path, "good", "bad") == pairs_of(path, "better", "bad")
    with pytest.raises(UserError, match="good and better are the same answers"):
        pairs_of(path, "good", "better")
    with ResponseStore(path) as store:
        assert [row["model"] for row in overview(store)] == ["N", "bad", "better"]


def test_one_name_that_moved_to_another_model_must_be_made_clear(path):
    name(path, "N", "good")
    with pytest.raises(UserError, match="'good' names several models; give one of M, N"):
        pairs_of(path, "good", "bad")
    with ResponseStore(path) as store, pytest.raises(UserError, match="give one of M, N"):
        forget_model(store, "good")


def test_a_name_without_answers_says_so(path):
    name(path, "M", "later", system="be late")
    with pytest.raises(UserError, match="later has no answers yet"):
        pairs_of(path, "later", "bad")
    assert pairs_of(path, "good", "bad")[0] == ("good 1", "bad 1")


def test_errors_are_told_by_name(path):
    put(path, failure(requests("M", "q3", system=BAD)[0]))
    with ResponseStore(path) as store:
        assert faults(store) == [("bad", "refused", 1, "no")]


def test_export_writes_the_name_of_each_answer_and_can_be_given_one(path, tmp_path):
    with ResponseStore(path) as store:
        export(store, tmp_path / "all.jsonl")
        assert export(store, tmp_path / "bad.jsonl", ["bad"]) == 2
        assert export(store, tmp_path / "m.jsonl", ["M", "bad"]) == 4, "none is written twice"
        with pytest.raises(UserError, match="no model 'ugly'"):
            export(store, tmp_path / "ugly.jsonl", ["ugly"])
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [(row["model"], row["response"]) for row in rows] == [
        ("good", "good 1"), ("good", "good 2"), ("bad", "bad 1"), ("bad", "bad 2"), ("N", "n"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["rows.jsonl", "rows.parquet"])
def test_an_export_brings_both_names_into_another_store(path, tmp_path, kind):
    with ResponseStore(path) as store:
        export(store, tmp_path / kind)
    with ResponseStore(tmp_path / "other.sqlite") as store:
        import_responses(store, str(tmp_path / kind))
        again = import_responses(store, str(tmp_path / kind))
        assert (again.added, again.there) == (0, 5)
    assert pairs_of(tmp_path / "other.sqlite", "good", "bad") == pairs_of(path, "good", "bad")
    assert_whole(tmp_path / "other.sqlite", 5)


def test_a_merge_brings_names_of_answers_that_are_new_and_leaves_ours(path, tmp_path):
    other = tmp_path / "other.sqlite"
    name(other, "M", "nice", system=GOOD)
    name(other, "M", "ugly", system="be ugly")
    put(other, answer(requests("M", "q1", system=GOOD)[0], "nice"))
    put(other, answer(requests("M", "q1", system="be ugly")[0], "ugly"))
    put(other, answer(requests("N", "q1", system=BAD)[0], "n"), N="nobody")
    with ResponseStore(path) as store:
        for added in (2, 0):  # the second time nothing is new
            assert merge(store, other).added == added
            assert [(row["model"], row["responses"]) for row in overview(store)] == [
                ("N", 1), ("bad", 2), ("good", 2), ("nobody", 1), ("ugly", 1),
            ]  # fmt: skip
        assert check(store).problems == []


# -- settings ------------------------------------------------------------------------------------


@pytest.fixture
def twice(path) -> Path:
    """`good` and `bad` asked to think too, and `good` once more in a third way."""
    ways = (
        ("good", GOOD, {"thinks": True}),
        ("bad", BAD, {"thinks": True}),
        ("good", GOOD, {"x": 1}),
    )
    for called, system, template in ways:
        name(path, "M", called, system=system, template=template)
        (request,) = requests("M", "q1", system=system, template=template)
        put(path, answer(request, f"{called} {json.dumps(template)}"))
    return path


def test_a_part_of_the_settings_serves_two_models_that_were_asked_differently(twice):
    with pytest.raises(UserError, match=r"good has answers with 3 settings that fit.*\n.*system"):
        pairs_of(twice, "good", "bad")
    part = '{"template": {"thinks": true}}'
    assert pairs_of(twice, "good", "bad", part) == [
        ('good {"thinks": true}', 'bad {"thinks": true}')
    ]
    nothing = '{"template": null}'
    assert pairs_of(twice, "good", "bad", nothing)[1] == ("good 2", "bad 2")
    with pytest.raises(UserError, match="bad has answers with 0 settings that fit"):
        pairs_of(twice, "good", "bad", '{"template": {"x": 1}}')
    with pytest.raises(UserError, match="good has answers with 3 settings that fit"):
        pairs_of(twice, "good", "bad", '{"max_tokens": 9}')


def test_whole_settings_win_over_others_that_hold_them(tmp_path):
    """The plain answers of a model could not be meant otherwise: all others hold their settings."""
    path = tmp_path / "store.sqlite"
    for system in (None, "be brief"):
        a, b = (requests(model, "q1", system=system)[0] for model in ("A", "B"))
        put(path, answer(a, f"a {system}"), answer(b, f"b {system}"))
    assert pairs_of(path, "A", "B", '{"max_tokens":9}') == [("a None", "b None")]


@pytest.mark.parametrize(
    ("given", "text"), [("{", "not JSON"), ("5", "give an object"), ("[]", "give an object")]
)
def test_settings_that_are_no_object_are_refused(path, tmp_path, given, text):
    result = deltalearn(
        "pairs", path, "--chosen", "good", "--rejected", "bad", "--out", tmp_path / "p.parquet",
        "--settings", given,
    )  # fmt: skip
    fails(result, f"--settings {given}", text)


# -- from a recipe to pairs ----------------------------------------------------------------------


@pytest.mark.slow
def test_the_contrastive_recipe_from_end_to_end(tmp_path):
    """One model, two system prompts, two names: answers, pairs, a second limit, forgetting."""

    def plan(question: str, attempt: int) -> Reply:
        system = server.bodies[-1]["messages"][0]["content"]
        return Reply(200, answer_to(question, message={"content": f"{system}: {question}"}))

    (tmp_path / "prompts.jsonl").write_text('{"prompt": "q0"}\n{"prompt": "q1"}\n')
    out, file = tmp_path / "out", tmp_path / "pairs.parquet"
    made = ["pairs", out, "--chosen", "good", "--rejected", "bad", "--out", file]
    with FaultServer(plan) as server:
        served = {"path": "model", "server": {"url": server.url, "concurrency": 1}}
        models = {"good": served | {"system": GOOD}, "bad": served | {"system": BAD}}
        recipe = {"models": models, "prompts": {"source": str(tmp_path / "prompts.jsonl")}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        asked = ["generate", tmp_path / "recipe.yaml", "--out", out]
        first = deltalearn(*asked)
        pairs = deltalearn(*made)
        limited = deltalearn(*asked, "--max-tokens", "9", "--update")
    assert first.returncode == limited.returncode == 0, first.stderr + limited.stderr
    assert pairs.returncode == 0, pairs.stderr
    fails(deltalearn(*made), "good has answers with 2 settings", '"max_tokens":9')
    again = deltalearn(*made, "--settings", '{"max_tokens": 9}')
    assert again.returncode == 0, again.stderr
    rows = pq.read_table(file).to_pylist()
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows] == [
        (f"{GOOD}: q{i}", f"{BAD}: q{i}") for i in (0, 1)
    ]
    assert "4 answers of bad" in deltalearn("responses", "forget", out, "bad", "--yes").stdout
    listed = deltalearn("responses", "count", out).stdout
    assert listed.startswith("responses 4\n")

"""Protects what `generate` and `run` say of answers: what the store has, not what it once had.

Answers may be forgotten, merged or imported between two calls: what is missing is asked, what was
mended is counted, what depends on answers is made again where they changed and only there. Nobody
changes a store while a run works in it. A store may be there before its run.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from helpers.cli import deltalearn, fails, small
from helpers.fault_server import FaultServer, Reply, answer_to, well
from helpers.generation import counts_of_pairs, prompts_file, say_no_to_q2
from helpers.stores import answer, failure, put, requests

from deltalearn.errors import UserError
from deltalearn.generate import stage
from deltalearn.pairs.build import REASONS
from deltalearn.pipeline.directory import RunDirectory
from deltalearn.pipeline.pairs import REMEDIES, write_pairs_of_store
from deltalearn.recipe import GENERATE, load_recipe
from deltalearn.records import Response
from deltalearn.responses.store import ResponseStore


@pytest.fixture
def generate(tmp_path):
    """`generate(server, *options)`: ask it three questions as the model `model`, into `out`."""

    def generate(server: FaultServer, *options: str, out: str = "out", count: int = 3):
        return deltalearn(
            "generate", "--model", "a=model", "--prompts", prompts_file(tmp_path, count), "--url",
            server.url, "--out", tmp_path / out, *options,
        )  # fmt: skip

    return generate


def stage_of(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())["stages"]["generate/a"]


@pytest.mark.slow
def test_forgotten_answers_are_asked_again(generate, tmp_path):
    with FaultServer(well) as server:
        generate(server)
        deltalearn("responses", "forget", tmp_path / "out", "a", "--yes")
        again = generate(server)
        last = generate(server)
    assert again.returncode == last.returncode == 0, again.stderr
    assert "generated 3" in again.stdout
    assert "nothing to do" in last.stdout
    assert set(server.asked.values()) == {2}


@pytest.mark.slow
def test_errors_that_a_merge_mended_are_errors_no_more(generate, tmp_path):
    with FaultServer(say_no_to_q2) as server:
        assert generate(server).returncode == 3
        server.plan = well
        assert generate(server, out="other").returncode == 0
        asked = server.asked.total()
        deltalearn("responses", "merge", tmp_path / "out", tmp_path / "other")
        merged = generate(server)
        assert server.asked.total() == asked
    assert merged.returncode == 0, merged.stdout
    assert "errors " not in merged.stdout and "cached 3" in merged.stdout
    assert stage_of(tmp_path / "out")["counts"]["errors"] == 0


def test_answers_of_others_in_the_store_change_nothing(generate, tmp_path, write_lines):
    imported = write_lines([{"prompt": "q0", "response": "x", "model": "other"}], "data.jsonl")
    with FaultServer(well) as server:
        generate(server)
        before = stage_of(tmp_path / "out")
        deltalearn("responses", "import", tmp_path / "out", imported)
        assert "nothing to do" in generate(server).stdout
    assert stage_of(tmp_path / "out") == before
    listed = deltalearn("responses", "count", tmp_path / "out").stdout
    assert listed.startswith("responses 4\n")


def test_an_unchanged_store_is_not_read_again(generate, tmp_path, monkeypatch):
    """With many answers that would take longer than anything else in a finished run."""
    with FaultServer(well) as server:
        generate(server)
        mark = json.loads((tmp_path / "out" / "run.json").read_text())["answers"]["generate/a"]
        url = server.url
    from deltalearn.pipeline import generate as generating

    def fails_(*_: object) -> None:
        raise AssertionError("it is read again")

    monkeypatch.setattr(stage, "fingerprint", fails_)
    options = {
        "models.a": {"path": "model"},
        "prompts.source": str(tmp_path / "prompts.jsonl"),
        "models.*.server.url": url,
    }
    loaded = load_recipe(None, command=GENERATE, options=options)
    said: list[str] = []
    generating.run_generate(loaded, tmp_path / "out", say=said.append)
    assert said == [f"{tmp_path / 'out'}: everything is answered already, nothing to do"]
    with ResponseStore(tmp_path / "out" / "responses.sqlite") as store:
        assert store.version() == mark["mark"]


@pytest.mark.parametrize("change", ["add", "drop_errors", "forget", "merge"])
def test_whatever_changes_answers_changes_the_mark(tmp_path, change):
    from deltalearn.responses.maintenance import forget_model, merge

    first, second, third = requests("M", "q1", "q2", "q3")
    path = put(tmp_path / "store.sqlite", answer(first, "a"), failure(second))
    other = put(tmp_path / "other.sqlite", answer(third, "c"))
    with ResponseStore(path) as store:
        before = store.version()
        store.name_model("M", "m", first.settings_json)
        assert store.drop_errors([first.key]) == 0 and store.version() == before
        if change == "add":
            store.add([answer(third, "c")], engine="e")
        elif change == "drop_errors":
            assert store.drop_errors([second.key]) == 1
        elif change == "forget":
            forget_model(store, "m")
        else:
            merge(store, other)
        after = store.version()
        merge(store, other)
        if change in ("add", "merge"):
            assert store.version() == after, "there was nothing new in it"
    assert after != before
    with ResponseStore(other) as store:
        assert store.version() not in (before, after)


def test_a_fingerprint_is_of_what_pairs_are_made_of(tmp_path):
    """The same answers again have the same one, however long they took."""
    first, second = requests("M", "q1", "q2")
    found = {}
    for name, given in {
        "plain": {}, "again": {"seconds": 9.0, "tries": 3}, "text": {"text": "b"},
        "reasoning": {"reasoning": "<think></think>"}, "tokens": {"token_ids": (1, 2)},
        "cut": {"finish_reason": "length"},
    }.items():  # fmt: skip
        content = {"text": "a", "token_ids": (1,), "finish_reason": "stop", "prompt_tokens": 3}
        response = Response(first.key, **(content | given))
        put(tmp_path / f"{name}.sqlite", (first, response))
        with ResponseStore(tmp_path / f"{name}.sqlite") as store:
            found[name] = stage.fingerprint(store, [first, second])
    put(tmp_path / "more.sqlite", (first, response), answer(second, "b"))
    with ResponseStore(tmp_path / "more.sqlite") as store:
        found["more"] = stage.fingerprint(store, [first, second])
    assert found.pop("again") == found["plain"]
    assert len(set(found.values())) == len(found)


# -- recipes of `run` ----------------------------------------------------------------------------


def two_served(path: Path, url: str) -> Path:
    """The small recipe with both answering models behind a server."""
    file = small(path, generate={"max_tokens": 16})
    recipe = yaml.safe_load(file.read_text())
    for name in ("s", "xs"):
        recipe["models"][name] = {"path": name, "server": {"url": url}}
    file.write_text(yaml.safe_dump(recipe))
    return file


@pytest.mark.slow
def test_pairs_follow_the_answers_and_are_left_alone_where_those_are_the_same(tmp_path):
    def plan(question: str, attempt: int):
        model = server.bodies[-1]["model"]
        return Reply(200, answer_to(question, message={"content": f"{model} {wording} {question}"}))

    out, wording = tmp_path / "run", "says"
    with FaultServer(plan) as server:
        server.models = Reply(404, {})
        run = ["run", two_served(tmp_path, server.url), "--out", out, "--until", "pairs"]
        first = deltalearn(*run, *ONE_BY_ONE)
        assert first.returncode == 0, first.stdout + first.stderr
        same = forgotten_and_run(run, out)
        wording = "answers"
        other = forgotten_and_run(run, out)
        last = deltalearn(*run, *ONE_BY_ONE)
    assert "generate/xs" in same and "generate/s " not in same and "pairs/" not in same
    assert "generate/xs" in other and "generate/s " not in other and "pairs/" in other
    assert "nothing to do" in last.stdout
    assert counts_of_pairs(out)["pairs"] == 15


ONE_BY_ONE = [
    text for m in ("s", "xs") for text in ("--set", f"models.{m}.server.concurrency=1")
]  # fmt: skip


def forgotten_and_run(run: list, out: Path) -> str:
    assert "15 answers of xs" in deltalearn("responses", "forget", out, "xs", "--yes").stdout
    result = deltalearn(*run, *ONE_BY_ONE)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_generate_of_a_whole_recipe_tells_of_errors_and_of_being_done(tmp_path):
    def plan(question: str, attempt: int):
        return "400" if "abcd" in question else well(question, attempt)

    with FaultServer(plan) as server:
        server.models = Reply(404, {})
        command = ["generate", two_served(tmp_path, server.url), "--out", tmp_path / "run"]
        first, again = deltalearn(*command), deltalearn(*command)
        server.plan = well
        mended, last = deltalearn(*command, "--retry-errors"), deltalearn(*command)
    assert first.returncode == again.returncode == 3, first.stderr
    for result in (first, again):
        assert "10 requests ended in errors" in result.stdout
        assert "deltalearn responses errors" in result.stdout
        assert "--retry-errors" in result.stdout
    assert "nothing to do" in again.stdout and "nothing to do" not in first.stdout
    assert mended.returncode == last.returncode == 0
    assert "nothing to do" in last.stdout and "errors" not in mended.stdout + last.stdout


# -- one at a time -------------------------------------------------------------------------------


@pytest.mark.slow
def test_nobody_changes_the_store_of_a_run_at_work(tmp_path, write_lines):
    data = write_lines([{"prompt": "q0", "response": "x", "model": "other"}], "data.jsonl")
    options = {
        "models.a": {"path": "model"},
        "prompts.source": "p.jsonl",
        "models.*.server.url": "http://localhost:1/v1",
    }
    loaded = load_recipe(None, command=GENERATE, options=options)
    run = RunDirectory(tmp_path / "out", loaded)
    run.save()
    store = put(tmp_path / "out" / "responses.sqlite", answer(requests("M", "q1")[0], "a"), M="m")
    put(tmp_path / "other.sqlite", answer(requests("M", "q2")[0], "b"))
    changes = (
        ["merge", tmp_path / "out", tmp_path / "other.sqlite"], ["import", store, data],
        ["forget", tmp_path / "out", "m", "--yes"],
    )  # fmt: skip
    for change in changes:
        fails(deltalearn("responses", *change), "another deltalearn process is running here")
    for look in ("list", "count", "errors", "check"):
        assert deltalearn("responses", look, store).returncode == 0, "to look is no change"
    assert deltalearn("responses", "merge", tmp_path / "other.sqlite", store).returncode == 0
    run.__exit__(None)
    for change in changes:
        result = deltalearn("responses", *change)
        assert result.returncode == 0, result.stderr
    assert not (tmp_path / ".lock").exists(), "a store by itself is not locked"


# -- a store before its run ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_name_without_suffix_is_a_directory_that_generate_goes_on_with(
    generate, tmp_path, write_lines
):
    data = write_lines([{"prompt": "q0", "response": "x", "model": "other"}], "data.jsonl")
    imported = deltalearn("responses", "import", tmp_path / "out", data)
    assert imported.returncode == 0, imported.stderr
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["responses.sqlite"]
    with FaultServer(well) as server:
        result = generate(server)
    assert result.returncode == 0, result.stderr
    made = deltalearn(
        "pairs", tmp_path / "out", "--chosen", "a", "--rejected", "other", "--out",
        tmp_path / "pairs.parquet",
    )  # fmt: skip
    assert "pairs 1" in made.stdout


def test_a_pairing_without_a_pair_says_what_dropped_all_and_what_to_do(tmp_path):
    """Nor is a file of earlier pairs lost to it."""
    asked = {model: requests(model, "q1", "q2", "q3", "q4") for model in "AB"}
    file = tmp_path / "pairs.parquet"
    file.write_text("earlier pairs")
    store = put(
        tmp_path / "s.sqlite",
        *(answer(r, f"a{i}") for i, r in enumerate(asked["A"])),
        answer(asked["B"][0], "a0"),
        answer(asked["B"][1], "cut", "length"),
        failure(asked["B"][2]),
        A="large",
        B="small",
    )
    with pytest.raises(UserError) as error:
        write_pairs_of_store(store, "large", "small", file)
    assert str(error.value).startswith("no pair of large over small is left of 4 candidates\n")
    for said in ("  missing: 1 (rejected 1); let both", "  error: 1 (rejected 1); see `deltalearn",
                 "  truncated: 1 (rejected 1); raise generate.max_tokens",
                 "  identical: 1; both models say the same"):  # fmt: skip
        assert said in str(error.value)
    assert file.read_text() == "earlier pairs"
    assert set(REMEDIES) == set(REASONS)


@pytest.mark.parametrize("name", ["all.sqlite", "all.db"])
def test_a_name_with_the_suffix_of_a_database_is_a_file(tmp_path, write_lines, name):
    data = write_lines([{"prompt": "q0", "response": "x", "model": "other"}], "data.jsonl")
    assert deltalearn("responses", "import", tmp_path / name, data).returncode == 0
    assert (tmp_path / name).is_file()
    (tmp_path / "folder.db").mkdir()
    assert deltalearn("responses", "import", tmp_path / "folder.db", data).returncode == 0
    assert (tmp_path / "folder.db" / "responses.sqlite").is_file()


def test_a_directory_with_anything_else_in_it_is_still_refused(generate, tmp_path):
    put(tmp_path / "out" / "responses.sqlite", answer(requests("M", "q1")[0], "a"))
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with FaultServer(well) as server:
        fails(generate(server), "not empty and not a run of deltalearn")


# -- names and keys on the command line ----------------------------------------------------------


@pytest.mark.parametrize(
    "models", [("run1/final", "run2/final"), ("x=A", "x=B"), ("x=A", "y=B", "some/x")]
)
def test_two_models_of_one_name_are_both_named(tmp_path, models):
    result = deltalearn(
        "generate", *(text for model in models for text in ("--model", model)), "--prompts",
        prompts_file(tmp_path, 1), "--url", "http://localhost:1/v1", "--out", tmp_path / "out",
    )  # fmt: skip
    fails(result, f"--model {models[0]}", f"--model {models[-1]}", "NAME=PATH")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [["--key-env", "sk-4711"], ["--set", "models.a.server.body={api_key: sk-4711}"],
     ["--set", "models.a.server.api_key=sk-4711"]],
)  # fmt: skip
def test_a_key_in_a_recipe_is_shown_and_written_nowhere(generate, tmp_path, options):
    with FaultServer(well) as server:
        result = generate(server, *options)
    fails(result, "key_env")
    assert "4711" not in result.stdout + result.stderr
    assert not (tmp_path / "out").exists()


def test_the_bar_tells_what_was_there_and_what_failed(tmp_path, monkeypatch):
    notes: list[str] = []

    class Bar:
        def advance(self, steps: int, amount: int = 0, note: str = "") -> None:
            notes.append(note)

    class Engine:
        name = "engine"

        def answers(self, windows, stop):
            for window in windows:
                for request in window.wanted():
                    yield [Response(request.key, "", (), "error", 0, error="no")]

        def close(self) -> None:
            pass

    @contextmanager
    def progress(title, **_):
        yield Bar()

    monkeypatch.setattr(stage, "progress", progress)
    asked = requests("M", "q1", "q2", "q3")
    path = put(tmp_path / "store.sqlite", answer(asked[0], "a"))
    with ResponseStore(path) as store:
        stage.generate(store, asked, Engine, title="m")
    assert notes == ["1 cached  1 failed", "1 cached  2 failed"]


@pytest.mark.parametrize(
    "option", [("--engine", "vllm"), ("--device", "cpu"), ("--dtype", "float16")]
)
def test_an_option_for_a_model_that_is_here_is_refused_beside_a_server(tmp_path, option):
    refused = deltalearn(
        "generate", "--model", "a=m", "--prompts", prompts_file(tmp_path, 1), "--url",
        "http://localhost:1/v1", *option, "--out", tmp_path / "out",
    )  # fmt: skip
    fails(refused, f"{option[0]} has no effect beside --url")
    assert not (tmp_path / "out").exists()

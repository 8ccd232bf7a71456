"""Protects the response store: a response paid for is never lost, never altered, never doubled.

A batch is all or nothing, committed batches survive SIGKILL, and a file that is no store of this
version is refused rather than overwritten.
"""

from __future__ import annotations

import errno
import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalearn.errors import UserError, is_disk_full
from deltalearn.records import Prompt, Request, Response, Sampling
from deltalearn.responses.maintenance import check, merge
from deltalearn.responses.requests import RequestPlan, Settings
from deltalearn.responses.store import ResponseStore, checksum, prompt_digest
from deltalearn.util.files import canonical_json

PROBE = ({"role": "user", "content": "q"},)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "responses.sqlite"


def request(key: str, sample: int = 0, model: str = "model") -> Request:
    prompt = Prompt(f"prompt of {key}", ({"role": "user", "content": f"question of {key}"},))
    return Request(key, prompt, sample, prompt.messages, model, '{"max_tokens":5}')


def put(store: ResponseStore, *responses: Response) -> None:
    store.add([(request(r.key, i), r) for i, r in enumerate(responses)], engine="engine")


def stop(key: str, text: str = "text", ids: tuple[int, ...] = (1, 2)) -> Response:
    return Response(key, text, ids, "stop", 5)


def failed(key: str) -> Response:
    return Response(key, "", (), "error", 5, error="too long")


TEXTS = st.text(st.characters(codec="utf-8"))
RESPONSES = st.lists(
    st.builds(
        Response,
        key=st.text("0123456789abcdef", min_size=1),
        text=TEXTS,
        token_ids=st.lists(st.integers(0, 2**32 - 1), max_size=5).map(tuple),
        finish_reason=st.sampled_from(["stop", "length", "error"]),
        prompt_tokens=st.integers(0, 2**40),
        error=st.none() | TEXTS,
        reasoning=TEXTS,
        completion_tokens=st.none() | st.integers(0, 2**40),
        seed=st.none() | st.integers(0, 2**128 - 1),
        fault=st.none() | TEXTS,
        tries=st.integers(1, 100),
    ),
    unique_by=lambda r: r.key,
    max_size=5,
)


@given(RESPONSES)
def test_round_trip_of_any_text_and_ids(responses):
    with ResponseStore(Path(":memory:")) as store:
        put(store, *responses)
        keys = [r.key for r in responses]
        assert store.get(keys) == {r.key: r for r in responses}
        assert store.have(keys) == set(keys)
        assert store.count() == len(responses)


def test_awkward_texts_come_back_byte_for_byte(path):
    texts = [
        " lead",
        "trail \n",
        "\x00nul",
        "Größe 你好 🙂‍↔️",
        "",
        "\r\n",
        "'); DROP TABLE responses;",
    ]
    responses = [stop(str(i), text, tuple(range(i))) for i, text in enumerate(texts)]
    with ResponseStore(path) as store:
        put(store, *responses)
    with ResponseStore(path) as store:
        assert list(store.get(map(str, range(len(texts)))).values()) == responses


def test_only_the_keys_asked_for_are_given(path):
    with ResponseStore(path) as store:
        put(store, stop("a"), stop("b"), stop("c"))
        assert set(store.get(["a", "c", "unknown"])) == {"a", "c"}
        assert store.have(["b", "unknown"]) == {"b"}
        assert store.have([]) == set()
        assert store.get(iter(["a", "a"])) == {"a": stop("a")}


@pytest.mark.slow
def test_any_number_of_keys_can_be_asked_for(path):
    """SQLite's own limit on variables is 32766 by default."""
    keys = [f"{i:06}" for i in range(40_000)]
    with ResponseStore(path) as store:
        put(store, *(stop(k) for k in keys))
        assert store.have(keys) == set(keys)
        assert len(store.get(keys)) == store.count() == 40_000
        assert store.drop_errors(keys) == 0


def test_provenance_is_stored_with_the_response(path):
    with ResponseStore(path) as store:
        store.add([(request("k", 3, "hub:x@1"), stop("k"))], engine="transformers 5")
    query = """
        SELECT r.key, m.identity, r.prompt_id, r.sample, r.engine, s.json, p.messages, r.token_ids
        FROM responses r JOIN models m ON m.id = r.model JOIN settings s ON s.id = r.settings
        JOIN prompts p ON p.id = r.prompt
    """
    row = sqlite3.connect(path).execute(query).fetchone()
    assert row[:-2] == ("k", "hub:x@1", "prompt of k", 3, "transformers 5", '{"max_tokens":5}')
    assert json.loads(row[-2]) == [{"role": "user", "content": "question of k"}]
    assert row[-1] == b"\x01\0\0\0\x02\0\0\0"  # little-endian uint32, as the schema says


def test_a_model_is_called_what_it_was_called_last(path):
    with ResponseStore(path) as store:
        put(store, stop("a"))
        store.name_model("model", "large")
        store.name_model("model", "larger")
        assert store.db.execute("SELECT identity, name FROM models").fetchall() == [
            ("model", "larger")
        ]


def test_dropping_errors_forgets_errors_only_and_only_those_asked_for(path):
    cut = Response("cut", "text", (1,), "length", 5)
    with ResponseStore(path) as store:
        put(store, stop("good"), cut, failed("bad"), failed("other"))
        assert store.get(["bad"])["bad"].error == "too long"
        assert store.drop_errors(["good", "cut", "bad", "unknown"]) == 1
        assert store.have(["good", "cut", "bad", "other"]) == {"good", "cut", "other"}
        put(store, stop("bad", "now it worked"))  # it can be asked again
        assert store.get(["bad"])["bad"].text == "now it worked"


@pytest.mark.parametrize("batch", [["new", "old", "newer"], ["new", "newer", "new"]])
def test_a_batch_is_stored_whole_or_not_at_all(path, batch):
    with ResponseStore(path) as store:
        put(store, stop("old", "the first answer"))
        with pytest.raises(sqlite3.IntegrityError):
            put(store, *(stop(key, "another answer") for key in batch))
        assert store.have([*batch, "old"]) == {"old"}
        assert store.get(["old"])["old"].text == "the first answer"
        put(store, stop("new"))  # and the store goes on working
    with ResponseStore(path) as store:
        assert store.count() == 2


def test_an_answer_to_another_request_is_an_error_before_anything_is_stored(path):
    with ResponseStore(path) as store:
        with pytest.raises(ValueError, match="another request"):
            store.add([(request("a"), stop("a")), (request("b"), stop("c"))], engine="e")
        assert store.count() == 0


def test_reopening_keeps_everything_and_leaves_one_file(path):
    for i in range(3):
        with ResponseStore(path) as store:
            assert store.count() == i
            put(store, stop(str(i)))
    assert [p.name for p in path.parent.iterdir()] == ["responses.sqlite"]  # the log is folded in


def test_a_reader_does_not_stop_a_writer(path):
    with ResponseStore(path) as writer, ResponseStore(path) as reader:
        put(writer, stop("a"))
        assert reader.have(["a"]) == {"a"}
        put(writer, stop("b"))
        assert reader.count() == 2


def test_store_of_another_version_is_refused_and_untouched(path):
    with ResponseStore(path) as store:
        put(store, stop("a"))
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=9")
    db.close()
    with pytest.raises(UserError, match=r"responses\.sqlite: made by another version .*schema 9"):
        ResponseStore(path)
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (9,)
    assert db.execute("SELECT count(*) FROM responses").fetchone() == (1,)


SCHEMA_4 = """
CREATE TABLE models (id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE, name TEXT NOT NULL);
CREATE TABLE names (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, model INTEGER NOT NULL REFERENCES models,
    settings INTEGER NOT NULL REFERENCES settings, UNIQUE (model, settings, name)
);
CREATE TABLE prompts (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, messages TEXT NOT NULL
);
CREATE TABLE settings (id INTEGER PRIMARY KEY, how TEXT NOT NULL UNIQUE);
CREATE TABLE responses (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, model INTEGER NOT NULL REFERENCES models,
    settings INTEGER NOT NULL REFERENCES settings, prompt INTEGER NOT NULL REFERENCES prompts,
    sample INTEGER NOT NULL, prompt_id TEXT NOT NULL, text TEXT NOT NULL, thought TEXT NOT NULL,
    token_ids BLOB NOT NULL, finish_reason TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER, seconds REAL, seed TEXT, engine TEXT NOT NULL, fault TEXT,
    error TEXT, tries INTEGER NOT NULL, created INTEGER NOT NULL, checksum BLOB NOT NULL
);
CREATE INDEX responses_by_model ON responses (model, settings, prompt, sample);
CREATE TABLE state (mark TEXT NOT NULL);
CREATE VIEW called AS
SELECT coalesce(n.id, 0) AS id, coalesce(n.name, m.name) AS name, g.model, g.settings
FROM (SELECT DISTINCT model, settings FROM responses) g JOIN models m ON m.id = g.model
LEFT JOIN names n ON n.model = g.model AND n.settings = g.settings;
CREATE VIEW labels AS
SELECT model, settings, name, max(id) AS id FROM called GROUP BY model, settings;
PRAGMA user_version=4;
"""


def store_of_schema_4(path: Path) -> Request:
    """A file as the version before wrote it, with one answer that has reasoning; its request."""
    plan = RequestPlan("M", [Prompt("p", PROBE)], Settings(Sampling(0.0, 1.0, 5), system="brief"))
    request = next(iter(plan))
    content = (
        "p", "yes", "<think>hm</think>", b"\1\0\0\0", "stop", 3, None, 0.5, "7", "e", None, None,
        1, 9,
    )  # fmt: skip
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.executescript(SCHEMA_4)
    with db:
        db.execute("INSERT INTO models VALUES (1, 'M', 'model')")
        db.execute("INSERT INTO settings VALUES (1, ?)", [request.settings_json])
        db.execute(
            "INSERT INTO prompts VALUES (1, ?, ?)",
            [prompt_digest(request.prompt), canonical_json(list(PROBE))],
        )
        db.execute("INSERT INTO state VALUES ('AB')")
        row = (1, request.key, 1, 1, 1, 0, *content, checksum(content))
        db.execute("INSERT INTO responses VALUES (" + ", ".join("?" * len(row)) + ")", row)  # noqa: S608
    db.close()
    return request


def test_a_store_of_the_schema_before_is_opened_and_brought_up_to_date(path):
    request = store_of_schema_4(path)
    for _ in range(2):  # the second time it is of today
        with ResponseStore(path, existing=True) as store:
            assert store.get([request.key])[request.key] == Response(
                request.key, "yes", (1,), "stop", 3, None, "<think>hm</think>", seed=7
            )
            assert (check(store).rows, check(store).problems) == (1, [])
            assert store.named("model")[0].settings_json == request.settings_json
            assert store.version() == "AB"
            assert store.db.execute("PRAGMA user_version").fetchone() == (5,)


def test_a_store_of_the_schema_before_can_be_merged_into_another(path):
    request = store_of_schema_4(path)
    with ResponseStore(path.with_name("other.sqlite")) as store:
        assert merge(store, path).added == 1
        assert store.get([request.key])[request.key].reasoning == "<think>hm</think>"
        assert check(store).problems == []


@pytest.mark.parametrize("content", [b"this is a text file\n" * 100, b"\0" * 5000])
def test_file_that_is_no_database_is_refused_and_untouched(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"responses\.sqlite: not a response store"):
        ResponseStore(path)
    assert path.read_bytes() == content


# -- processes that die and disks that fill ------------------------------------------------------

WITHOUT_TORCH = """
import os, resource, signal, sys
from pathlib import Path
from deltalearn.errors import is_disk_full
from deltalearn.responses.store import ResponseStore
from deltalearn.records import Prompt, Request, Response

def put(store, batch):
    responses = [Response(f"{batch}.{i}", "x" * 500, (batch, i), "stop", 1) for i in range(8)]
    prompt = Prompt("p", ({"role": "user", "content": "q"},))
    store.add([(Request(r.key, prompt, 0, model="m"), r) for r in responses], engine="e")
    print(batch, flush=True)
"""

KILLED = """
store = ResponseStore(Path(sys.argv[1]))
for batch in range(3):
    put(store, batch)
# Die in the middle of the fourth batch, its rows written but not committed.
store.db.execute("BEGIN")
rows = [(f"3.{i}", "p", "x", "", b"", "stop", "e") for i in range(4)]
store.db.executemany(
    "INSERT INTO responses (key, model, settings, prompt, sample, prompt_id, text, reasoning, "
    "token_ids, finish_reason, prompt_tokens, engine, tries, created, checksum) "
    "VALUES (?, 1, 1, 1, 0, ?, ?, ?, ?, ?, 1, ?, 1, 0, x'00')", rows)
os.kill(os.getpid(), signal.SIGKILL)
"""


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_sigkill_loses_nothing_committed_and_leaves_no_half_batch(path):
    writer = run_python(KILLED, path)
    assert writer.returncode == -signal.SIGKILL, writer.stderr
    assert writer.stdout.split() == ["0", "1", "2"]
    with ResponseStore(path) as store:
        keys = [f"{batch}.{i}" for batch in range(5) for i in range(8)]
        assert store.have(keys) == {k for k in keys if k[0] in "012"}
        assert store.count() == 24
        assert store.get(["2.7"])["2.7"] == Response("2.7", "x" * 500, (2, 7), "stop", 1)
        put(store, stop("3.0"))  # the batch can be stored again


FILLS_UP = """
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    store = ResponseStore(Path(sys.argv[1]))
    for batch in range(1000):
        put(store, batch)
except Exception as error:
    print("full" if is_disk_full(error) else repr(error), flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize(
    "limit",
    [
        1_000,
        100_000,
        10_000,
    ],
)
def test_full_disk_is_recognised_and_loses_nothing_committed(path, limit):
    """A file-size limit stands for the disk; it stops SQLite at different files."""
    writer = run_python(FILLS_UP, path, limit)
    *stored, last = writer.stdout.split("\n")[:-1]
    assert last == "full", writer.stderr
    with ResponseStore(path) as store:
        assert store.count() == 8 * len(stored)
        assert store.have([f"{batch}.7" for batch in stored]) == {f"{b}.7" for b in stored}


def test_other_errors_are_no_full_disk(path):
    assert is_disk_full(OSError(errno.ENOSPC, "no space"))
    assert is_disk_full(OSError(errno.EDQUOT, "quota"))
    assert is_disk_full(Exception("I/O error: No space left on device (os error 28)"))
    assert not is_disk_full(OSError(errno.EACCES, "permission"))
    assert not is_disk_full(ValueError("a disk"))
    with ResponseStore(path) as store, pytest.raises(sqlite3.OperationalError) as caught:
        store.db.execute("SELECT * FROM nowhere")
    assert not is_disk_full(caught.value)

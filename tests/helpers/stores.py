"""Stores of responses made by hand, and what must hold of them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from deltalearn.records import Prompt, Request, Response, Sampling
from deltalearn.responses.maintenance import check
from deltalearn.responses.requests import RequestPlan, Settings
from deltalearn.responses.store import ResponseStore

GREEDY = Sampling(0.0, 1.0, 9)
SAMPLED = Sampling(1.0, 1.0, 9)
Answer = tuple[Request, Response]


def requests(model: str, *questions: str, sampling: Sampling = GREEDY, **given) -> list[Request]:
    prompts = [Prompt(f"id of {q}", ({"role": "user", "content": q},)) for q in questions]
    return list(RequestPlan(model, prompts, Settings(sampling, **given)))


def answer(request: Request, text: str, reason: str = "stop", **given) -> Answer:
    ids = given.pop("ids", tuple(range(len(text))))
    return request, Response(request.key, text, ids, reason, 3, **given)


def failure(request: Request, fault: str = "refused", error: str = "no") -> Answer:
    return answer(request, "", "error", fault=fault, error=error, completion_tokens=0)


def put(path: Path, *answers: Answer, engine: str = "engine 1", **names: str) -> Path:
    with ResponseStore(path) as store:
        store.add(answers, engine=engine)
        for identity, name in names.items():
            store.name_model(identity, name)
    return path


def texts(path: Path) -> dict[tuple[str, str], str]:
    """What a store answers, by model and question; each row is read through all its tables."""
    query = """
        SELECT m.name, json_extract(p.messages, '$[#-1].content'), r.text FROM responses r
        JOIN models m ON m.id = r.model JOIN prompts p ON p.id = r.prompt
        JOIN settings s ON s.id = r.settings
    """
    with ResponseStore(path, existing=True) as store:
        rows = store.db.execute(query).fetchall()
        assert len(rows) == store.count()
        return {(model, question): text for model, question, text in rows}


def assert_whole(path: Path, rows: int) -> None:
    with ResponseStore(path, existing=True) as store:
        found = check(store)
    assert (found.rows, found.problems) == (rows, [])


def overwrite_root(path: Path, name: str) -> None:
    """Put noise into the page at the root of a table or an index."""
    db = sqlite3.connect(path)
    size = db.execute("PRAGMA page_size").fetchone()[0]
    query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
    page = db.execute(query, [name]).fetchone()[0]
    db.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xa5" * size)

"""Protects reading: every row of every source becomes a prompt, or a counted reject with its place.

Nothing may vanish silently (read = prompts + rejected + duplicates + not selected), a bad row must
not take its neighbours with it, and a source that is not there must be a UserError, not a
traceback.
"""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltalearn.errors import UserError
from deltalearn.formats.questions import read_items
from deltalearn.formats.rows import rows
from deltalearn.prompts.read import PromptSet, read_prompts
from deltalearn.util.files import digest, write_jsonl


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def texts(found: PromptSet) -> list[str]:
    return [prompt.messages[-1]["content"] for prompt in found.prompts]


def assert_all_accounted_for(found: PromptSet) -> None:
    counts = {"duplicates": 0, "not_selected": 0, **found.counts}
    assert counts["prompts"] == len(found.prompts)
    assert counts["rejected"] == len(found.rejects)
    assert counts["read"] == sum(
        counts[k] for k in ("prompts", "rejected", "duplicates", "not_selected")
    )


# -- kinds of sources ----------------------------------------------------------------------------


def test_prompt_strings_and_message_lists(write_lines):
    path = write_lines(
        [
            {"prompt": "  Größe 你好 🙂\n"},  # kept to the last space
            {"messages": [system("be brief"), user("a"), assistant("b"), user("c")]},
            {"messages": None, "prompt": [user("d")]},  # as Parquet gives a column without a value
        ]
    )
    found = read_prompts(str(path))
    assert [p.messages for p in found.prompts] == [
        (user("  Größe 你好 🙂\n"),),
        (system("be brief"), user("a"), assistant("b"), user("c")),
        (user("d"),),
    ]
    assert found.counts == {"read": 3, "rejected": 0, "prompts": 3}


def test_messages_win_over_prompt_and_column_overrides_both(write_lines):
    path = write_lines([{"messages": [user("m")], "prompt": "p", "question": "q"}])
    assert texts(read_prompts(str(path))) == ["m"]
    assert texts(read_prompts(str(path), column="prompt")) == ["p"]
    assert texts(read_prompts(str(path), column="question")) == ["q"]


def test_prompts_are_found_in_the_columns_of_other_tools(write_lines):
    """A system column becomes a turn; half of a question is another question."""
    found = read_prompts(
        str(
            write_lines(
                [
                    {"instruction": "one"},
                    {"question": "two", "system": "be brief"},
                    {"input": "three"},
                    {"instruction": "translate", "input": "Haus"},
                ]
            )
        )
    )
    assert [p.messages for p in found.prompts] == [
        (user("one"),), (system("be brief"), user("two")), (user("three"),)
    ]  # fmt: skip
    assert "instruction and input" in found.rejects[0]["reason"]


def test_extra_keys_of_a_turn_are_left_out(write_lines):
    path = write_lines([{"messages": [{**user("a"), "name": "x", "weight": 1}]}])
    assert read_prompts(str(path)).prompts[0].messages == (user("a"),)


def test_parquet_gives_the_same_prompts_as_jsonl(write_lines, tmp_path):
    values = [
        {"id": "1", "messages": [user("a"), assistant("b"), user("c")]},
        {"id": "2", "messages": [user("d")]},
    ]
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(values), table, row_group_size=1)
    assert read_prompts(str(table)).prompts == read_prompts(str(write_lines(values))).prompts


def test_parquet_rows_have_places_too(tmp_path):
    table = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a", None, "b"]}), table)
    found = read_prompts(str(table))
    assert [r["where"] for r in found.rejects] == [f"{table}: row 2"]
    assert texts(found) == ["a", "b"]


def test_folder_is_read_recursively_in_sorted_order(write_lines, tmp_path):
    write_lines([{"prompt": "third"}], "in/sub/c.jsonl")
    write_lines([{"prompt": "first"}], "in/a.jsonl")
    write_lines([{"prompt": "no"}], "in/notes.txt")
    pq.write_table(pa.table({"prompt": ["second"]}), tmp_path / "in" / "b.parquet")
    assert texts(read_prompts(str(tmp_path / "in"))) == ["first", "second", "third"]


def test_package_data(lab_ladder):
    found = read_prompts("package://deltalearn.lab/ladder/prompts.jsonl", limit=3)
    first = json.loads((lab_ladder / "prompts.jsonl").read_text().partition("\n")[0])
    assert found.prompts[0].id == first["id"]
    assert found.counts == {"read": 5000, "rejected": 0, "not_selected": 4997, "prompts": 3}


def test_home_and_relative_paths(write_lines, tmp_path, monkeypatch):
    write_lines([{"prompt": "a"}], "p.jsonl")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert texts(read_prompts("~/p.jsonl")) == texts(read_prompts("p.jsonl")) == ["a"]


@pytest.fixture
def hub(monkeypatch) -> list[tuple]:
    """Replaces `datasets.load_dataset`; the calls it got."""
    import datasets

    calls = []

    def load_dataset(source, split):
        calls.append((source, split))
        if source != "org/data":
            raise FileNotFoundError(f"{source} is not on the hub\nsecond line")
        return datasets.Dataset.from_list([{"prompt": "a"}, {"prompt": ""}, {"prompt": "b"}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return calls


def test_hub_data_set(hub):
    found = read_prompts("org/data")
    assert texts(found) == ["a", "b"]
    assert [r["where"] for r in found.rejects] == ["org/data[train]: row 2"]
    read_prompts("org/data", split="test[:5]")
    assert hub == [("org/data", "train"), ("org/data", "test[:5]")]


def test_hub_failure_is_a_user_error_of_one_line(hub):
    with pytest.raises(UserError) as caught:
        read_prompts("org/other", split="dev")
    text = str(caught.value)
    assert text.startswith("org/other: no file or folder of that name here")
    assert "'dev'" in text and "FileNotFoundError: org/other is not on the hub" in text
    assert "\n" not in text


def test_hub_id_without_a_network_is_a_user_error():
    with pytest.raises(UserError, match="nobody/nothing: no file or folder of that name here"):
        read_prompts("nobody/nothing")


def test_a_file_here_is_never_looked_for_on_the_hub(hub, write_lines, tmp_path, monkeypatch):
    write_lines([{"prompt": "local"}], "org/data/x.jsonl")
    monkeypatch.chdir(tmp_path)
    assert texts(read_prompts("org/data")) == ["local"]
    assert hub == []


# -- sources that are not there ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("missing.jsonl", "no such file or folder (looked for from "),
        ("some/missing.parquet", "no such file or folder (looked for from "),
        ("/nowhere/at/all", "no such file or folder"),
        ("./nowhere", "no such file or folder (looked for from "),
        ("~/nowhere", "no such file or folder"),
        ("package://deltalearn.lab/nowhere.jsonl", "no such file or folder"),
        ("package://no_such_package/x.jsonl", "there is no Python package 'no_such_package' here"),
    ],
)
def test_missing_source_is_a_user_error(source, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read_prompts(source)
    assert str(caught.value).startswith(source) and says in str(caught.value)


@pytest.mark.parametrize("module", ["sys", "deltalearn.recipe.load"])
def test_module_that_is_no_package_is_a_user_error(module):
    with pytest.raises(UserError):
        read_prompts(f"package://{module}/x.jsonl")


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
def test_empty_file_is_a_user_error(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"empty\.jsonl: no usable prompt among 0 rows \(no rows\)"):
        read_prompts(str(path))


def test_file_of_bad_rows_only_is_a_user_error_with_the_first_reason(write_lines):
    path = write_lines([{"prompt": ""}, {"text": "a"}])
    with pytest.raises(UserError, match=r"among 2 rows; first problem: .*rows\.jsonl:1: message 0"):
        read_prompts(str(path))


def test_folder_without_tables_is_a_user_error(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="no file of rows in this folder"):
        read_prompts(str(tmp_path))


@pytest.mark.parametrize("name", ["data.txt", "data.jsonl.zip", "data.parquet.gz", "data"])
def test_unknown_suffix_is_a_user_error(tmp_path, name):
    (tmp_path / name).write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match="unknown kind of file; known are"):
        read_prompts(str(tmp_path / name))


def test_split_of_a_file_is_a_user_error(write_lines):
    with pytest.raises(UserError, match="split 'train' has no effect on files"):
        read_prompts(str(write_lines([{"prompt": "a"}])), split="train")


def torn(data: bytes) -> bytes:
    return data[: len(data) // 2]


def zeroed(data: bytes) -> bytes:
    return data[:10] + bytes(50) + data[60:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        torn,
        zeroed,
    ],
    ids=["empty", "torn", "zeroed"],
)
def test_damaged_parquet_is_a_user_error(tmp_path, damage):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": ["a" * 100, "b"] * 100}), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"rows\.parquet"):
        read_prompts(str(path))


# -- bad rows ------------------------------------------------------------------------------------

BAD_ROWS = {
    "bad JSON": (b'{"prompt": "a"', "not JSON"),
    "two values": (b'{"prompt": "a"} {"prompt": "b"}', "not JSON"),
    "not an object": (b'["a"]', "an object is needed, not list"),
    "null": (b"null", "an object is needed, not NoneType"),
    "not UTF-8": ('{"prompt": "Größe"}'.encode("latin-1"), "not UTF-8"),
    "no column": (
        {"text": "a"},
        "no column 'prompt'; there are text; prompts.column (--prompt-column) names another",
    ),
    "no columns": ({}, "no column 'prompt'; there are none"),
    "empty prompt": ({"prompt": ""}, "message 0 is empty"),
    "blank prompt": ({"prompt": " \n\t"}, "message 0 is empty"),
    "number": ({"prompt": 5}, "prompt must be a string or a non-empty list"),
    "no messages": ({"messages": []}, "messages must be a string or a non-empty list"),
    "wrong role": ({"messages": [{"role": "tool", "content": "a"}]}, "message 0 has role 'tool'"),
    "no role": ({"messages": [{"content": "a"}]}, "message 0 has role None"),
    "no content": ({"messages": [user("a"), {"role": "user"}]}, "message 1 must have a role"),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "message 0 must"),
    "string turn": ({"messages": ["a"]}, "message 0 must have a role and a content"),
    "only an answer": (
        {"messages": [assistant("a")]},
        "the last turn must be the user's, not the assistant's",
    ),
    "only a system turn": ({"messages": [system("a")]}, "the user's, not the system's"),
    "system turn last": ({"messages": [user("a"), system("b")]}, "the user's, not the system's"),
    "two answers last": (
        {"messages": [user("a"), assistant("b"), assistant("c")]},
        "the user's, not the assistant's",
    ),
    "tools": (
        {"messages": [user("before")], "tools": [{"type": "function", "function": {"name": "w"}}]},
        "the row has tools: tools are not supported",
    ),
    "tools as JSON": ({"prompt": "a", "tools": '[{"name": "w"}]'}, "the row has tools: tools are"),
    "a call": (
        {"messages": [user("a"), {**assistant(""), "tool_calls": [{"id": "1"}]}, user("b")]},
        "message 1 has tool_calls: tools are not supported",
    ),
    "a call instead of text": (
        {"messages": [user("a"), {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        "message 1 has tool_calls: tools are not supported",
    ),
    "id a list": ({"prompt": "a", "id": ["x"]}, "id must be a non-empty string or an integer"),
    "id a boolean": ({"prompt": "a", "id": True}, "id must be a non-empty string or an integer"),
    "id empty": ({"prompt": "a", "id": ""}, "id must be a non-empty string or an integer"),
    "id taken": ({"prompt": "a", "id": "before"}, "id 'before' stands for another prompt already"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_row_is_kept_with_its_line_and_reason_and_its_neighbours_survive(write_lines, name):
    bad, reason = BAD_ROWS[name]
    path = write_lines([{"prompt": "good", "id": "before"}, bad, {"prompt": "also good"}])
    found = read_prompts(str(path))
    assert texts(found) == ["good", "also good"]
    (reject,) = found.rejects
    assert reject["where"] == f"{path}:2"
    assert reason in reject["reason"]
    assert reject["row"] is not None or bad == b"null"
    if isinstance(bad, dict):
        assert reject["row"] == bad
    json.dumps(found.rejects)  # they are written as JSONL
    assert_all_accounted_for(found)


def test_torn_last_line_costs_only_itself(tmp_path):
    path = tmp_path / "torn.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "b"}\n{"prom')
    found = read_prompts(str(path))
    assert texts(found) == ["a", "b"]
    assert found.rejects[0]["where"] == f"{path}:3"
    assert found.rejects[0]["row"] == '{"prom'


def test_last_line_without_a_newline_is_read(tmp_path):
    path = tmp_path / "open.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "b"}')
    assert texts(read_prompts(str(path))) == ["a", "b"]


def test_windows_line_ends_and_blank_lines(write_lines):
    path = write_lines([{"prompt": "a"}, b"", b"  ", {"prompt": "b"}, b"oops"], end=b"\r\n")
    found = read_prompts(str(path))
    assert texts(found) == ["a", "b"]
    assert found.rejects[0]["where"] == f"{path}:5"  # blank lines count as lines
    assert found.counts["read"] == 3  # ... but not as rows


def test_line_separators_inside_a_string_do_not_split_the_row(tmp_path):
    text = "a\u2028b\u2029c\x85d\x0be\rf"
    path = tmp_path / "separators.jsonl"
    write_jsonl(path, [{"prompt": text}])
    assert texts(read_prompts(str(path))) == [text]


def test_byte_order_mark_does_not_cost_the_first_row(write_lines):
    path = write_lines([b'\xef\xbb\xbf{"prompt": "a"}', {"prompt": "b"}])
    assert texts(read_prompts(str(path))) == ["a", "b"]


@pytest.mark.parametrize(
    "bad", [rb'{"prompt": "half an emoji \ud83d"}', b"[" * 100_000], ids=["surrogate", "nesting"]
)
def test_row_that_python_cannot_hold_is_rejected_alone(write_lines, bad):
    found = read_prompts(str(write_lines([{"prompt": "a"}, bad])))
    assert texts(found) == ["a"] and len(found.rejects) == 1


def test_rejected_parquet_row_can_be_written_as_jsonl(tmp_path):
    table = tmp_path / "rows.parquet"
    when = pa.array([0, 0], pa.timestamp("s"))
    pq.write_table(pa.table({"prompt": ["a", None], "when": when, "blob": [b"x", b"y"]}), table)
    found = read_prompts(str(table))
    write_jsonl(tmp_path / "rejects.jsonl", found.rejects)


# -- what is removed, merged and named -----------------------------------------------------------


def test_final_answer_is_removed_and_counted(write_lines):
    path = write_lines(
        [
            {"messages": [user("a"), assistant("b")]},
            {"messages": [user("c"), assistant("d"), user("e"), assistant("f")]},
            {"messages": [user("g")]},
        ]
    )
    found = read_prompts(str(path))
    assert [p.messages for p in found.prompts] == [
        (user("a"),),
        (user("c"), assistant("d"), user("e")),
        (user("g"),),
    ]
    assert found.counts["final_answers_removed"] == 2


def test_final_answer_of_a_rejected_row_is_not_counted(write_lines):
    path = write_lines([{"prompt": "a"}, {"messages": [user("b"), assistant("c"), assistant("d")]}])
    assert read_prompts(str(path)).counts.get("final_answers_removed", 0) == 0


def test_duplicates_are_counted_and_the_first_is_kept(write_lines):
    path = write_lines(
        [
            {"id": "one", "prompt": "a"},
            {"id": "two", "messages": [user("a")]},  # the same conversation, written otherwise
            {"id": "three", "messages": [user("a"), assistant("answer")]},
            {"id": "four", "messages": [system(""), user("a")]},  # another conversation
        ]
    )
    found = read_prompts(str(path))
    assert [p.id for p in found.prompts] == ["one", "four"]
    assert found.counts["duplicates"] == 2
    assert_all_accounted_for(found)


def test_exact_repetition_with_an_id_is_a_duplicate_not_a_conflict(write_lines):
    found = read_prompts(str(write_lines([{"id": "x", "prompt": "a"}] * 3)))
    assert found.counts["duplicates"] == 2 and found.rejects == []


def test_a_row_with_tools_is_no_duplicate_of_the_question_without_them(write_lines):
    path = write_lines([{"prompt": "a"}, {"prompt": "a", "tools": [{"name": "w"}]}])
    found = read_prompts(str(path))
    assert (found.counts["rejected"], found.counts.get("duplicates", 0)) == (1, 0)


@pytest.mark.parametrize("tools", [None, [], {}, "", "[]", " [ ] ", "{}", "null", "hammer", 5])
def test_a_column_of_tools_without_any_costs_no_row(write_lines, tools):
    """Data sets have the column in every row; another column may be called so."""
    turns = [user("a"), {**assistant("b"), "tool_calls": tools}, user("c")]
    path = write_lines([{"messages": turns, "tools": tools}])
    assert texts(read_prompts(str(path))) == ["c"]


def test_ids_are_kept_or_derived_from_the_content(write_lines):
    path = write_lines([{"prompt": "a", "id": 7}, {"prompt": "b", "id": None}, {"prompt": "c"}])
    ids = [p.id for p in read_prompts(str(path)).prompts]
    assert ids == ["7", digest([user("b")])[:16], digest([user("c")])[:16]]


def test_derived_id_depends_on_content_not_on_place(write_lines):
    one = read_prompts(str(write_lines([{"prompt": "a"}, {"prompt": "b"}], "1.jsonl")))
    two = read_prompts(str(write_lines([{"prompt": "b"}], "2.jsonl")))
    assert one.prompts[1] == two.prompts[0]


def test_id_column(write_lines):
    path = write_lines([{"prompt": "a", "id": "x", "uid": "y"}])
    assert read_prompts(str(path), id_column="uid").prompts[0].id == "y"


# -- limit ---------------------------------------------------------------------------------------


@pytest.fixture
def hundred(write_lines) -> str:
    return str(write_lines([{"prompt": f"p{i}"} for i in range(100)]))


def test_limit_takes_the_first(hundred):
    found = read_prompts(hundred, limit=3)
    assert texts(found) == ["p0", "p1", "p2"]
    assert found.counts["not_selected"] == 97
    assert_all_accounted_for(found)


def test_random_limit_is_reproducible_and_depends_on_the_seed(hundred):
    def draw(seed: int, limit: int = 20) -> list[str]:
        return texts(read_prompts(hundred, limit=limit, select="random", seed=seed))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert len(set(draw(1))) == 20
    assert draw(1) != [f"p{i}" for i in range(20)]
    assert draw(1, limit=5) == draw(1)[:5]  # a larger limit adds, it does not draw anew


def test_limit_counts_usable_prompts_only(write_lines):
    path = write_lines([{"prompt": ""}, {"prompt": "a"}, {"prompt": "a"}, {"prompt": "b"}])
    found = read_prompts(str(path), limit=2)
    assert texts(found) == ["a", "b"]
    assert "not_selected" not in found.counts


def test_limit_beyond_the_end_changes_nothing(hundred):
    found = read_prompts(hundred, limit=1000, select="random")
    assert found.prompts == read_prompts(hundred).prompts


# -- property ------------------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)
TURNS = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system", "tool"]),
        "content": st.text("ab \n", max_size=2) | JSON_VALUES,
    }
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.text("ab ü", max_size=2) | JSON_VALUES,
        "messages": st.lists(TURNS, max_size=3) | JSON_VALUES,
        "id": JSON_VALUES,
    },
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS | JSON_VALUES, max_size=6))
def test_every_row_is_accounted_for_whatever_it_holds(write_lines, values):
    path = write_lines([{"prompt": "always there", "id": "always"}, *values])
    found = read_prompts(str(path))
    assert found.counts["read"] == 1 + len(values)
    assert_all_accounted_for(found)
    assert len({p.id for p in found.prompts}) == len(found.prompts)
    for prompt in found.prompts:
        assert prompt.messages[-1]["role"] == "user"
        assert all(isinstance(m["content"], str) for m in prompt.messages)


# -- evaluation items come from the same sources, but a bad row is an error ----------------------


def test_items_from_strings_and_messages(write_lines):
    path = write_lines(
        [
            {"id": 3, "prompt": "q", "answer": "a", "kind": "t1"},
            {"prompt": [system("s"), user("q2")], "answer": " b ", "kind": "t2"},
        ]
    )
    one, two = read_items(str(path), task_column="kind")
    assert (one.id, one.task, one.messages, one.answer) == ("3", "t1", (user("q"),), "a")
    assert (two.id, two.task, two.messages, two.answer) == (
        "1",
        "t2",
        (system("s"), user("q2")),
        " b ",
    )
    assert [item.task for item in read_items(str(path))] == ["all", "all"]
    assert len(read_items(str(path), limit=1)) == 1


def test_item_columns_can_be_named(write_lines):
    path = write_lines([{"q": "Q", "a": "A", "prompt": "no", "answer": "no"}])
    (item,) = read_items(str(path), prompt_column="q", answer_column="a")
    assert (item.messages, item.answer) == ((user("Q"),), "A")


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"prompt": "q"}, "column 'answer' must be a non-empty str; the row has prompt"),
        ({"prompt": "q", "answer": ""}, "column 'answer' must be a non-empty str"),
        ({"prompt": "q", "answer": 4}, "column 'answer' must be a non-empty str"),
        ({"prompt": [], "answer": "a"}, "column 'prompt' must be a non-empty str or list"),
        ({"prompt": "q", "answer": "a"}, "column 'task' must be a non-empty str"),
        (b"{", "not JSON"),
        (b"7", "an object is needed"),
    ],
)
def test_bad_item_names_its_row(write_lines, bad, says):
    path = write_lines([{"prompt": "q", "answer": "a", "task": "t"}, bad])
    with pytest.raises(UserError) as caught:
        read_items(str(path), task_column="task")
    assert str(caught.value).startswith(f"{path}:2: ") and says in str(caught.value)


@pytest.mark.parametrize(
    "prompt", [["q"], [{"role": "user"}], [{"role": "oracle", "content": "q"}], [assistant("q")]]
)
def test_item_with_a_bad_conversation_names_its_row(write_lines, prompt):
    with pytest.raises(UserError, match=r"rows\.jsonl:1"):
        read_items(str(write_lines([{"prompt": prompt, "answer": "a"}])))


@pytest.mark.parametrize("ids", [["x", "x"], ["1", None]])
def test_two_items_of_one_id_are_an_error(write_lines, ids):
    path = write_lines([{"id": i, "prompt": f"q{n}", "answer": "a"} for n, i in enumerate(ids)])
    with pytest.raises(UserError, match=r"rows\.jsonl:2"):
        read_items(str(path))


def test_no_item_is_a_user_error(write_lines):
    with pytest.raises(UserError, match="no evaluation item in it"):
        read_items(str(write_lines([])))


def test_rows_are_read_lazily(write_lines):
    """A limit of evaluation items stops before a bad row that would not be used."""
    path = write_lines([{"prompt": "q", "answer": "a"}, b"oops"])
    assert len(read_items(str(path), limit=1)) == 1
    assert next(iter(rows(str(path)))).value == {"prompt": "q", "answer": "a"}


def test_folder_may_move(write_lines, tmp_path):
    """Ids and content do not depend on where the file lies."""
    path = write_lines([{"prompt": "a"}], "one/p.jsonl")
    before = read_prompts(str(path)).prompts
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert read_prompts(str(tmp_path / "two")).prompts == before

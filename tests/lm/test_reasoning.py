"""Protects thinking traces: kept apart from the answer, to the letter, and taught only on demand.

A trace must never be taken for an answer nor an answer for a trace: an answer about the marks stays
whole, and a trace that never ended leaves nothing to be taught as an answer.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.cli import deltalearn, fails
from helpers.fault_server import FaultServer, Reply, answer_to
from hypothesis import given
from hypothesis import strategies as st

from deltalearn.generate.engines.hf import TransformersEngine
from deltalearn.generate.engines.local import LocalPrompts, answer_of
from deltalearn.generate.stage import Window
from deltalearn.lm.control import AnswerReader
from deltalearn.lm.locate import locate
from deltalearn.lm.reasoning import join_reasoning, opening_mark, split_reasoning
from deltalearn.pairs import PairCounts, build_pairs
from deltalearn.records import Prompt, Response, Sampling
from deltalearn.responses.requests import RequestPlan, Settings

# -- one text ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "reasoning", "text"),
    [
        ("", "", ""),
        ("plain", "", "plain"),
        (" \n", "", " \n"),
        ("<think>a</think>b", "<think>a</think>", "b"),
        ("\n <think>\na\n</think>\n\nb \n", "\n <think>\na\n</think>\n\n", "b \n"),
        ("<think></think>b", "<think></think>", "b"),  # switched off, as Qwen3 writes it
        ("<think>\n\n</think>\n\nb", "<think>\n\n</think>\n\n", "b"),
        # Never closed, or nothing behind.
        ("<think>a", "<think>a", ""),
        ("<think>a</thin", "<think>a</thin", ""),
        ("<think>", "<think>", ""),
        ("<think>a</think>", "<think>a</think>", ""),
        ("<think>a</think>\n\n", "<think>a</think>\n\n", ""),
        # Opened by the prompt, which shows in the end alone.
        ("a\n</think>\n\nb", "<think>a\n</think>\n\n", "b"),
        ("a\n</think>b", "<think>a\n</think>", "b"),
        ("a\r\n  </think> b", "<think>a\r\n  </think> ", "b"),
        ("a.</think>\nb", "<think>a.</think>\n", "b"),
        ("a </think> \r\nb", "<think>a </think> \r\n", "b"),
        ("a</think>", "<think>a</think>", ""),
        ("</think>\n\nb", "<think></think>\n\n", "b"),
        ("</think>b", "<think></think>", "b"),
        ("so 4.</think>**4**", "<think>so 4.</think>", "**4**"),  # as DeepSeek-V3.1 writes it
        # Several: the first is the trace, what follows is the answer.
        ("<think>a</think>b<think>c</think>d", "<think>a</think>", "b<think>c</think>d"),
        ("<think>a</think>use </think> here", "<think>a</think>", "use </think> here"),
        ("<think>a<think>b</think>c</think>d", "<think>a<think>b</think>", "c</think>d"),
        # About the marks, or other marks.
        ("Write <think> and </think> around it.", "", "Write <think> and </think> around it."),
        ("Begin with <think>.", "", "Begin with <think>."),
        ("Write </think> at the end.", "", "Write </think> at the end."),
        ("</think> closes it.", "", "</think> closes it."),
        ("Use `</think>`.\nThat is all.", "", "Use `</think>`.\nThat is all."),
        ('The **"</think>"** mark', "", 'The **"</think>"** mark'),
        ("(</think>, that is)", "", "(</think>, that is)"),
        ("<b>x</think></b>", "", "<b>x</think></b>"),
        ("<thinking>a</thinking>b", "", "<thinking>a</thinking>b"),
    ],
)
def test_what_is_the_trace_and_what_the_answer(written, reasoning, text):
    assert split_reasoning(written) == (reasoning, text)


@pytest.mark.parametrize(
    ("written", "reasoning", "text"),
    [
        ("a</think>b", "<think>a</think>", "b"),
        ("a </think> b", "<think>a </think> ", "b"),  # known to be the end, however it stands
        ("a", "<think>a", ""),
        ("", "<think>", ""),
        ("a<think>b</think>c", "<think>a<think>b</think>", "c"),
        ("<think>a</think>b", "<think>a</think>", "b"),  # a model that opens it once more
    ],
)
def test_inside_a_trace_that_the_prompt_opened(written, reasoning, text):
    assert split_reasoning(written, opened="<think>") == (reasoning, text)


PARTS = st.sampled_from(["<think>", "</think>", "a", "b c", " ", "\n", "<", ">", "/think", "é"])


@given(st.lists(PARTS, max_size=8).map("".join), st.sampled_from(["", "<think>"]))
def test_nothing_is_lost_and_splitting_again_changes_nothing(written, opened):
    """Pairs that keep their traces can be imported, split and joined again."""
    reasoning, text = split_reasoning(written, opened)
    assert reasoning + text in (written, "<think>" + written)
    assert split_reasoning(reasoning + text) == (reasoning, text)
    assert not reasoning or reasoning.lstrip().startswith("<think>")
    assert not reasoning or text == text.lstrip()


def test_a_trace_given_apart_gets_the_usual_marks():
    joined = join_reasoning("hm", "yes")
    assert joined == ("<think>\nhm\n</think>\n\n", "yes")
    assert split_reasoning("".join(joined)) == joined
    assert join_reasoning("", "<b>") == ("", "<b>")


def test_a_prompt_leaves_the_model_inside_a_trace_only_if_that_is_its_end():
    assert opening_mark("<|assistant|><think>\n") == "<think>"
    assert not opening_mark("<|assistant|><think>\n\n</think>\n\n")
    assert not opening_mark("<|user|>what is <think>?<|assistant|>")


# -- generation here -----------------------------------------------------------------------------

ASKED = list(
    RequestPlan(
        "m",
        [Prompt(q, ({"role": "user", "content": q},)) for q in ("one", "two, a little longer")],
        Settings(Sampling(0, 1, 6)),
    )
)


@pytest.fixture
def thinker(tiny_model, tiny_tokenizer, tmp_path) -> Path:
    """The tiny model with a chat template that opens a trace, as DeepSeek's distilled ones do."""
    path = shutil.copytree(tiny_model, tmp_path / "thinker")
    file = path / "chat_template.jinja"
    text = file.read_text()
    assert text.count("'<|assistant|>'") == 1
    file.write_text(text.replace("'<|assistant|>'", "'<|assistant|><think>\\n'"))
    return path


def test_a_local_model_whose_template_opens_the_trace(thinker, cpu, loaded):
    """The tiny model writes noise and never closes it: all trace, no answer."""
    engine = TransformersEngine(locate(str(thinker)), cpu, Sampling(0, 1, 6), 1000)
    window = Window(ASKED, frozenset(r.key for r in ASKED))
    found = [r for group in engine.answers(iter([window]), lambda: False) for r in group]
    tokenizer = loaded(thinker)[1]
    assert len(found) == 2
    for response in found:
        assert response.text == "" and response.token_ids
        assert response.reasoning == "<think>" + tokenizer.decode(response.token_ids)


@pytest.mark.parametrize(
    ("written", "reasoning", "text"),
    [("hm</think>\n\nyes", "<think>hm</think>\n\n", "yes"), ("hm", "<think>hm", "")],
)
def test_ids_of_an_answer_count_its_trace(thinker, loaded, written, reasoning, text):
    tokenizer = loaded(thinker)[1]
    ids, _ = LocalPrompts(tokenizer).ids_or_errors(ASKED[:1])
    answer = tokenizer(written, add_special_tokens=False)["input_ids"]
    found = answer_of("k", ids[ASKED[0].key], answer, True, AnswerReader(tokenizer), context=96)
    assert (found.reasoning, found.text) == (reasoning, text)
    assert found.tokens == len(answer) and list(found.token_ids) == answer


# -- generation at a server, and pairs -----------------------------------------------------------

# What the larger model says to each question: the message, and further changes of the reply.
REPLIES = {
    "marks": ({"content": "<think>\nhm\n</think>\n\ngood"}, {}),
    "apart": ({"reasoning_content": "hm", "content": "good"}, {}),
    "none": ({"content": "good"}, {}),
    "about": ({"content": "It is <think> and </think>."}, {}),
    "endless": ({"content": "<think>and so on"}, {"finish_reason": "length"}),
    "same answer": ({"content": "<think>hm</think>bad"}, {}),
}
TRACE = "<think>\nhm\n</think>\n\n"
TAUGHT = {"none": "good", "about": "It is <think> and </think>."}
POLICIES = {
    "keep": (
        TAUGHT | {"marks": TRACE + "good", "apart": TRACE + "good",
                  "same answer": "<think>hm</think>bad"},
        "dropped: truncated 1",
    ),
    "strip": (TAUGHT | {"marks": "good", "apart": "good"}, "dropped: empty 1, identical 1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """What a model that thinks and one that does not said to each question."""
    out = tmp_path_factory.mktemp("reasoning")

    def plan(question: str, attempt: int) -> Reply:
        if server.bodies[-1]["model"] == "plain":
            return Reply(200, answer_to(question, message={"content": "bad"}))
        message, changes = REPLIES[question]
        return Reply(200, answer_to(question, message=message, **changes))

    lines = "".join(f'{{"prompt": "{question}"}}\n' for question in REPLIES)
    (out / "prompts.jsonl").write_text(lines)
    with FaultServer(plan) as server:
        server.models = Reply(404, {})
        result = deltalearn(
            "generate", "--model", "large=thinking", "--model", "small=plain", "--url", server.url,
            "--prompts", out / "prompts.jsonl", "--out", out / "run", "--concurrency", "1",
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    large, small = [line for line in result.stdout.splitlines() if "generate/" in line]
    assert "with reasoning 4" in large and "truncated 1" in large and "with reasoning" not in small
    return out / "run"


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_pairs_keep_or_strip_traces_by_policy(store, policy):
    taught, dropped = POLICIES[policy]
    out = store / f"{policy}.parquet"
    options = [] if policy == "keep" else ["--reasoning", policy]  # keep is the default
    result = deltalearn(
        "pairs", store, "--chosen", "large", "--rejected", "small", "--out", out, *options
    )
    assert f"pairs {len(taught)}" in result.stdout and dropped in result.stdout
    rows = pq.read_table(out).to_pylist()
    found = {row["prompt"][0]["content"]: row["chosen"][0]["content"] for row in rows}
    assert found == taught
    assert {row["rejected"][0]["content"] for row in rows} == {"bad"}


def test_another_policy_is_refused(store):
    result = deltalearn(
        "pairs", store, "--chosen", "large", "--rejected", "small", "--out", store / "x.parquet",
        "--reasoning", "hide",
    )  # fmt: skip
    fails(result, "reasoning", "keep", "strip")
    assert not (store / "x.parquet").exists()


def test_the_cap_on_lengths_counts_traces_under_either_policy():
    """Token counts are of all that was written; a trace is not counted apart."""
    prompt = Prompt("p", ({"role": "user", "content": "q"},))
    short = Response("s", "bad", (1, 2), "stop", 1)
    thinks = Response("l", "good", tuple(range(9)), "stop", 1, reasoning=TRACE)
    for policy in ("keep", "strip"):
        for cap, pairs in ((6, 0), (7, 1)):
            counts = PairCounts()
            given = [(prompt, 0, thinks, short)]
            list(build_pairs(given, counts, reasoning=policy, max_length_difference=cap))
            assert counts.pairs == pairs

"""Protects what reaches a server: the same ids that the transformers back-end gives to the model.

A tokenizer that begins every text with a BOS does so once, whether a chat template has written one
already or not; what a server counts and cuts by itself is not put down as known.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.completions import completions
from helpers.data import DATA
from helpers.fault_server import FaultServer, well

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance

from deltalearn.evaluate.harness.backends import BackendOptions, load
from deltalearn.evaluate.harness.served import Server
from deltalearn.pipeline.evaluate import evaluate
from deltalearn.pipeline.evaluate_options import Options
from deltalearn.recipe.evaluation import EvaluateSpec

PLAIN = "Passage: a dog.\nQuestion: who?\nAnswer:"
TALK = [{"role": "user", "content": "the quick dog"}]


@pytest.fixture(scope="module", params=["adds a BOS", "has a BOS", "has none"])
def place(request, tiny_model, tiny_tokenizer, tmp_path_factory) -> Path:
    """The tiny model with a tokenizer that adds a BOS to texts, or only knows one, or does not."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    out = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(tiny_model, out)
    if request.param == "has none":
        return out
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.add_special_tokens({"bos_token": "<|system|>"})
    tokenizer.chat_template = "{{ bos_token }}" + tiny_tokenizer.chat_template
    if request.param == "adds a BOS":
        pair = ("<|system|>", tokenizer.bos_token_id)
        single = f"{pair[0]} $A"
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single=single, special_tokens=[pair]
        )
    tokenizer.save_pretrained(out)
    return out


def request(prompt: str, kind: str) -> tuple:
    rest = {"until": ["\n\n"], "max_gen_toks": 4} if kind == "generate_until" else " dog"
    return prompt, rest


def ask(model, prompt: str, kind: str) -> None:
    asked = [Instance(kind, {}, request(prompt, kind), 0)]
    getattr(model, kind)(asked, disable_tqdm=True)


def read_by_model(model, monkeypatch) -> list[list[int]]:
    """Where the ids land that the transformers back-end gives to its model."""
    seen: list[list[int]] = []
    generate, call = model.model.generate, model._model_call

    def generating(input_ids, **options):
        seen.append(input_ids[0].tolist())
        return generate(input_ids=input_ids, **options)

    def calling(ids, *rest, **options):
        seen.append(ids[0].tolist())
        return call(ids, *rest, **options)

    monkeypatch.setattr(model.model, "generate", generating)
    monkeypatch.setattr(model, "_model_call", calling)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_a_server_is_sent_what_the_model_reads_here(place, monkeypatch, kind, chat):
    here = load(
        BackendOptions(kind="hf", model=str(place), device="cpu", dtype="float32", batch_size=1)
    )
    with completions() as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        there = load(BackendOptions(kind="openai", model="m", url=url, tokenizer=str(place)))
        prompts = [model.apply_chat_template(TALK) if chat else PLAIN for model in (here, there)]
        assert prompts[0] == prompts[1]
        read = read_by_model(here, monkeypatch)
        ask(here, prompts[0], kind)
        ask(there, prompts[0], kind)
        Server(there).ask(kind, [request(prompts[0], kind)], lambda *_: None, lambda: False)
        sent, ours = (body["prompt"][0] for body in server.bodies)
    assert sent == ours, "whether lm_eval sends it or we do"
    if kind == "loglikelihood":  # a model is not shown the last token, which it predicts
        sent = sent[:-1]
    assert read == [sent]
    bos = here.tokenizer.bos_token_id
    adds = bos is not None and here.tokenizer("x").input_ids[0] == bos
    assert (sent[0] == bos) == (bos is not None and (adds or chat))
    assert sent.count(bos) <= 1


def test_ids_without_a_bos_and_prompts_as_text_on_demand(place):
    """As text, a server adds the BOS; in ids, on demand nobody does."""
    with completions() as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        for argument in ({"add_bos_token": False}, {"tokenized_requests": False}):
            options = BackendOptions(
                kind="openai", model="m", url=url, tokenizer=str(place), options=argument
            )
            ask(load(options), PLAIN, "generate_until")
        ids, text = (body["prompt"] for body in server.bodies)
    tokenizer = load(options).tokenizer
    assert ids == [tokenizer(PLAIN, add_special_tokens=False).input_ids]
    assert text == PLAIN
    assert load(options).tok_encode(PLAIN) == ids[0]


@pytest.mark.data
def test_the_context_of_a_chat_is_not_known(tmp_path):
    """lm_eval puts a number of its own in its place, which nothing is measured by."""
    with FaultServer(well) as server:
        for context in (None, 512):
            found = evaluate(
                Options(
                    backend=BackendOptions(
                        kind="openai", model="model", url=server.url, context=context
                    ),
                    out=tmp_path / str(context),
                    name="m",
                    spec=EvaluateSpec(benchmarks=("ifeval",), limit=2, data_dir=str(DATA)),
                    say=lambda line: None,
                )
            )
            assert found["benchmarks"]["ifeval"]["context"] is None

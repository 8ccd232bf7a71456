"""Protects the structure of answers: what control tokens set apart is never run together.

Each family's marks are ids of its own tokenizer, here as in its published settings: which of them
are special decides what decoding leaves out. An answer is the answer alone; a control token that
has no place in it makes the request an error with a name.
"""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from deltalearn.generate.engines.local import answer_of
from deltalearn.lm.control import AnswerReader
from deltalearn.lm.reasoning import is_unfinished, lost_marks, opening_mark, split_reasoning

HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|constrain|>")
THINKS = "<|channel|>analysis<|message|>it is in France<|end|><|start|>assistant"
FAMILIES = {  # special tokens, plain added tokens
    "harmony": (HARMONY, ()),
    "mistral": (("[THINK]", "[/THINK]", "[INST]", "[TOOL_CALLS]"), ()),
    "qwen": (("<|im_start|>", "<|im_end|>"), ("<think>", "</think>", "<tool_call>")),
    "phi": (("<think>", "</think>"), ()),
    "cohere": (
        ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
         "<|START_ACTION|>"), (),
    ),
    "seed": (("<seed:think>", "</seed:think>", "<seed:cot_budget_reflect>"), ()),
    "gemma": (("<|channel>", "<channel|>", "<|turn>", "<turn|>"), ()),
    "granite": (("<|start_of_role|>", "<|end_of_role|>"), ()),  # its <think> is plain text
}  # fmt: skip


def tokenizer_of(special, plain, model=None):
    inner = model or Tokenizer(models.BPE())
    if model is None:
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=260, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )  # fmt: skip
        inner.train_from_iterator(["Paris is in France"], trainer)
    inner.add_special_tokens(["<|pad|>", "<|eos|>", *special])
    inner.add_tokens([AddedToken(token, normalized=False) for token in plain])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|eos|>", pad_token="<|pad|>")


@pytest.fixture(scope="module")
def tokenizers():
    return {name: tokenizer_of(*tokens) for name, tokens in FAMILIES.items()}


def read(tokenizer, written, prompt=""):
    reader = AnswerReader(tokenizer)
    opened = reader.opened(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return reader.read(tokenizer(written, add_special_tokens=False)["input_ids"], opened)


@pytest.mark.parametrize(
    ("family", "prompt", "written", "reasoning", "answer"),
    [
        ("harmony", "<|start|>assistant", THINKS + "<|channel|>final<|message|>Paris",
         THINKS + "<|channel|>final<|message|>", "Paris"),
        ("harmony", "<|start|>assistant", "<|channel|>final<|message|>Paris<|end|>",
         "<|channel|>final<|message|>", "Paris"),
        ("harmony", "<|start|>assistant",
         "<|channel|>final <|constrain|>json<|message|>{}",
         "<|channel|>final <|constrain|>json<|message|>", "{}"),
        ("harmony", "<|start|>assistant<|channel|>final<|message|>", "Paris", "", "Paris"),
        ("harmony", "<|start|>assistant<|channel|>analysis<|message|>",
         "hm<|end|><|start|>assistant<|channel|>final<|message|>Paris",
         "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>",
         "Paris"),
        ("harmony", "<|start|>assistant", THINKS, THINKS, ""),
        ("harmony", "<|start|>assistant", THINKS + "<|channel|>commentary to=f<|message|>{}",
         THINKS + "<|channel|>commentary to=f<|message|>{}", ""),
        ("harmony", "<|start|>assistant", "Paris", "", "Paris"),
        ("mistral", "[/INST]", "[THINK]hm[/THINK]Paris", "[THINK]hm[/THINK]", "Paris"),
        ("mistral", "[/INST]", "[THINK]hm", "[THINK]hm", ""),
        ("mistral", "[THINK]", "hm[/THINK] Paris", "[THINK]hm[/THINK] ", "Paris"),
        ("mistral", "", "hm [/THINK] Paris", "[THINK]hm [/THINK] ", "Paris"),
        ("qwen", "", "<think>\nhm\n</think>\n\nParis", "<think>\nhm\n</think>\n\n", "Paris"),
        ("qwen", "<think>\n", "hm </think> Paris", "<think>hm </think> ", "Paris"),
        ("qwen", "<think>\n\n</think>\n\n", "Paris", "", "Paris"),
        ("qwen", "", "Write <think> and </think>.", "", "Write <think> and </think>."),
        ("qwen", "", "<think>hm</think><tool_call>", "<think>hm</think>", "<tool_call>"),
        ("phi", "", "<think>hm</think>Paris", "<think>hm</think>", "Paris"),
        ("cohere", "",
         "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Paris<|END_RESPONSE|>",
         "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>", "Paris"),
        ("cohere", "", "<|START_RESPONSE|>Paris<|END_RESPONSE|>", "<|START_RESPONSE|>", "Paris"),
        ("cohere", "", "<|START_THINKING|>hm<|END_THINKING|>",
         "<|START_THINKING|>hm<|END_THINKING|>", ""),
        ("seed", "", "<seed:think>a<seed:cot_budget_reflect>b</seed:think>Paris",
         "<seed:think>a<seed:cot_budget_reflect>b</seed:think>", "Paris"),
        ("gemma", "", "<|channel>thought\nhm<channel|>Paris",
         "<|channel>thought\nhm<channel|>", "Paris"),
        ("gemma", "<|channel>thought\n", "hm<channel|>Paris", "<|channel>hm<channel|>", "Paris"),
        ("gemma", "<|channel>thought\n<channel|>", "Paris", "", "Paris"),
        ("granite", "", "<think>hm</think>Paris", "<think>hm</think>", "Paris"),
    ],
)  # fmt: skip
def test_reasoning_is_apart_and_the_answer_alone(
    tokenizers, family, prompt, written, reasoning, answer
):
    parts = read(tokenizers[family], written, prompt)
    assert (parts.reasoning, parts.answer, parts.stray) == (reasoning, answer, None)
    assert is_unfinished(reasoning) == (bool(reasoning) and not answer and family != "cohere")


@pytest.mark.parametrize(
    ("family", "written", "stray"),
    [
        ("harmony", THINKS + "<|channel|>final<|message|>Par<|channel|>is", "<|channel|>"),
        ("harmony", "<|channel|>final<|message|>Paris<|end|><|start|>user", "<|start|>"),
        ("harmony", "<|channel|>final<|message|>Paris<|end|>, I say", "<|end|>"),
        ("mistral", "[THINK]hm[/THINK]Paris[TOOL_CALLS]f", "[TOOL_CALLS]"),
        ("mistral", "Paris[INST]and?", "[INST]"),
        ("qwen", "Paris<|im_start|>user\nand?", "<|im_start|>"),
        ("qwen", "<|im_start|>Paris", "<|im_start|>"),
        ("phi", "Paris<think>hm</think>", "<think>"),
        ("cohere", "<|START_THINKING|>hm<|END_THINKING|><|START_ACTION|>[]", "<|START_ACTION|>"),
        ("gemma", "Paris<|turn>user", "<|turn>"),
        ("granite", "Paris<|pad|>", "<|pad|>"),
    ],
)
def test_a_control_token_within_an_answer_is_an_error_that_names_it(
    tokenizers, family, written, stray
):
    tokenizer = tokenizers[family]
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    found = answer_of("k", [1], ids, True, AnswerReader(tokenizer), context=99)
    assert found.finish_reason == "error" and found.fault == "control" and found.text == ""
    assert found.error is not None and f"control token {stray} within" in found.error
    assert found.tokens == len(ids)  # they were paid for


def test_text_without_marks_is_what_decoding_gives(tokenizers):
    """As transformers decodes it, spaces and broken characters included."""
    tokenizer = tokenizers["qwen"]
    for written in ("", " Paris ", "\n\n", "Größe 🙂", "a<b>c</b>"):
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        for cut in range(len(ids) + 1):
            expected = tokenizer.decode(ids[:cut], clean_up_tokenization_spaces=False)
            assert AnswerReader(tokenizer).read(ids[:cut]).answer == expected


def test_words_of_a_sentencepiece_keep_their_spaces_between_marks():
    """Its decoder drops the first space of what it is given; a piece is not decoded alone."""
    words = ["<unk>", "▁it", "▁is", "▁Paris", "▁"]
    inner = Tokenizer(models.Unigram([(word, -float(i)) for i, word in enumerate(words)], 0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = tokenizer_of(("[THINK]", "[/THINK]"), (), inner)
    ids = tokenizer.convert_tokens_to_ids(["[THINK]", "▁it", "▁is", "[/THINK]", "▁it", "▁Paris"])
    parts = AnswerReader(tokenizer).read(ids)
    assert (parts.reasoning.split(), parts.answer) == (["[THINK]", "it", "is[/THINK]"], "it Paris")


@pytest.mark.parametrize(
    ("written", "reasoning", "text"),
    [
        ("[THINK]hm[/THINK]Paris", "[THINK]hm[/THINK]", "Paris"),
        (THINKS + "<|channel|>final<|message|>Paris<|return|>",
         THINKS + "<|channel|>final<|message|>", "Paris"),
        ("<seed:think>hm", "<seed:think>hm", ""),
        ("<|START_THINKING|>hm<|END_THINKING|>Paris", "<|START_THINKING|>hm<|END_THINKING|>",
         "Paris"),
        ("Harmony writes <|channel|>final<|message|>.", "",
         "Harmony writes <|channel|>final<|message|>."),
        ("hm\n[/THINK]\nParis", "[THINK]hm\n[/THINK]\n", "Paris"),
    ],
)  # fmt: skip
def test_a_server_that_writes_the_marks_is_read_alike(written, reasoning, text):
    assert split_reasoning(written) == (reasoning, text)


def test_a_server_that_leaves_the_marks_out_is_noticed():
    assert lost_marks("analysisthe user asks.assistantfinalParis")
    assert lost_marks("analysisWe need a tool.assistantcommentaryf()assistantfinalParis")
    assert not lost_marks("analysis of the final assistant")
    assert not lost_marks("An analysis: assistantfinal")


@pytest.mark.parametrize(
    ("end", "mark"),
    [
        ("[/INST][THINK]", "[THINK]"), ("a thought", ""), ("", ""), ("[/THINK]", ""),
        ("<|start|>assistant<|channel|>analysis<|message|>", "<|channel|>analysis<|message|>"),
        ("<|start|>assistant<|channel|>final<|message|>", "<|channel|>final<|message|>"),
        ("<|start|>assistant", ""),
    ],
)  # fmt: skip
def test_what_the_end_of_a_prompt_opens(end, mark):
    assert opening_mark(end) == mark

"""A tiny chat Llama for evaluation, made on the spot: real tokens, long context, brief answers."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTEXT = 10_240
TEXT = "the answer is so a b c d yes no true false 1 2 3 12 40 return x if def Therefore , ."
WORDS = TEXT.split()
STEPS = 150


def make(out: Path) -> Path:
    """Train it for some seconds to answer anything with a few words and an end; its directory."""
    torch.manual_seed(0)
    rng = random.Random(0)
    texts = [_text(rng, 12) for _ in range(400)]
    tokenizer = _tokenizer(texts)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,  # of 64, which vLLM supports
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        model(**_batch(rng, tokenizer, rng.choice((10, 60)))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def _batch(rng: random.Random, tokenizer: PreTrainedTokenizerFast, words: int) -> dict:
    """Questions and brief answers; only answers and their ends are learnt."""
    rows = []
    for _ in range(8):
        question = [{"role": "user", "content": _text(rng, words)}]
        prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        asked = tokenizer.encode(prompt)
        answer = tokenizer.encode(_text(rng, rng.randint(2, 8)) + "<|im_end|>")
        rows.append((asked + answer, [-100] * len(asked) + answer))
    longest = max(len(ids) for ids, _ in rows)
    ids = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row, _ in rows]
    labels = [row + [-100] * (longest - len(row)) for _, row in rows]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts,
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )

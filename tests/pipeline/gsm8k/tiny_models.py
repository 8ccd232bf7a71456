"""Three tiny byte-level BPE Llamas trained for seconds on GSM8K's training text."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from deltalearn.lm.chat import answer_ids, prompt_ids
from deltalearn.lm.logprobs import collate, padded_logprobs

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# name: width, optimiser steps
SIZES = {"smaller": (32, 15), "larger": (64, 30), "student": (64, 60)}


def train_all(train_file: Path, out: Path) -> dict[str, Path]:
    """Train the three models on the first 400 training problems; return their directories."""
    with train_file.open(encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines][:400]
    tokenizer = _tokenizer(problems)
    rows = _rows(tokenizer, problems)
    return {name: _train(name, tokenizer, rows, out / name) for name in SIZES}


def _tokenizer(problems: list[dict]) -> PreTrainedTokenizerFast:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        (p["question"] + "\n" + p["answer"] for p in problems),
        vocab_size=1000,
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


def _rows(tokenizer, problems: list[dict]) -> list[tuple[list[int], list[int]]]:
    conversations = [[{"role": "user", "content": p["question"]}] for p in problems]
    answers = [p["answer"] for p in problems]
    prompts = prompt_ids(tokenizer, conversations)
    return list(zip(prompts, answer_ids(tokenizer, answers, [True] * len(answers)), strict=True))


def _train(name: str, tokenizer, rows: list, out: Path) -> Path:
    width, steps = SIZES[name]
    torch.manual_seed(0)
    rng = random.Random(name)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=2 * width,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        loss = -padded_logprobs(model, collate(rng.sample(rows, 8))).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out

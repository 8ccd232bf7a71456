"""Chat templates of real models, from their published settings, and a tokenizer to try them with.

Most are the copies that TRL ships to recognise models by; the others are written out.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = [
    "The quick brown fox jumps over the lazy dog, while 7 wizards ask what a prime number is.",
    "\n\n ".join(["blank", "lines", "are", "one", "token"] * 3),
]
OF_TRL = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
MARKS = ("<think>", "</think>")
# Llama 2 and the first Mistrals put a space before an answer and another before its end.
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
MISTRAL_V3 = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}"
    "{%- endif %}{{- bos_token }}{%- for message in loop_messages %}"
    "{%- if message['role'] == 'user' %}{%- if loop.last and system_message is defined %}"
    "{{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}{%- else %}"
    "{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- elif message['role'] == 'assistant' %}{{- ' ' + message['content'] + eos_token }}"
    "{%- endif %}{%- endfor %}"
)
# Of V7 the system turn has marks of its own, and no space stands anywhere.
MISTRAL_V7 = (
    "{{- bos_token }}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}"
    "{%- elif message['role'] == 'user' %}{{- '[INST]' + message['content'] + '[/INST]' }}"
    "{%- else %}{{- message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
TULU3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'assistant' %}"
    "{% if not loop.last %}{{ '<|assistant|>\\n'  + message['content'] + eos_token + '\\n' }}"
    "{% else %}{{ '<|assistant|>\\n'  + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)  # SmolLM2
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{{ messages[0]['content'].strip() }}{% else %}{% set rest = messages %}"
    "{{ 'A chat between a curious user and an assistant.' }}{% endif %}{% for message in rest %}"
    "{% if loop.index0 == 0 %}{{ '\\n\\n' }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ 'USER: ' + message['content'].strip() + '\\n' }}{% else %}"
    "{{ 'ASSISTANT: ' + message['content'].strip() + eos_token + '\\n' }}{% endif %}"
    "{% if loop.last and message['role'] == 'user' and add_generation_prompt %}{{ 'ASSISTANT:' }}"
    "{% endif %}{% endfor %}"
)
DEEPSEEK_LLM = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'User: ' + message['content'] + '\\n\\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
PHI4 = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}"
    "{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% elif (message['role'] == 'user') %}"
    "{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% elif (message['role'] == 'assistant') %}"
    "{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
GRANITE = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}"
    "{%- set rest = messages[1:] %}{%- else %}"
    "{%- set system = 'Knowledge Cutoff Date: April 2024.\\nToday\\'s Date: ' + "
    "strftime_now('%B %d, %Y') + '.\\nYou are Granite, developed by IBM.' %}"
    "{%- set rest = messages %}{%- endif %}"
    "{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}"
    "{%- for message in rest %}"
    "{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + "
    "'<|end_of_text|>\\n' }}{%- if loop.last and add_generation_prompt %}"
    "{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}{%- endfor %}"
)
OLMO2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'assistant' %}"
    "{% if not loop.last %}{{ '<|assistant|>\\n'  + message['content'] + eos_token + '\\n' }}"
    "{% else %}{{ '<|assistant|>\\n'  + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Published:
    """A model's template with its control tokens.

    Attributes:
        template: Text, or the name of a file that TRL ships.
        end: The token with which a turn ends.
        control: Other control tokens.
        plain: Added tokens that are no control tokens.
        before: What it puts before an answer.
        arguments: Of the template.
        eos: The tokenizer's own end, where that is another one.
    """

    template: str
    end: str
    control: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    before: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    eos: str = ""

    @property
    def text(self) -> str:
        if self.template.endswith(".jinja"):
            return (OF_TRL / self.template).read_text(encoding="utf-8")
        return self.template


IM = ("<|im_start|>",)
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>")
EMPTY = "<think>\n\n</think>\n\n"
REAL = {
    "llama-2": Published(LLAMA2, "</s>", ("<s>",), before=" "),
    "llama-3.1": Published("llama3_1.jinja", "<|eot_id|>", HEADERS),
    "llama-3.2": Published("llama3_2.jinja", "<|eot_id|>", HEADERS),
    "qwen2.5": Published("qwen2_5.jinja", "<|im_end|>", IM),
    "qwen3": Published("qwen3.jinja", "<|im_end|>", IM, MARKS, EMPTY),
    "qwen3 without thoughts": Published(
        "qwen3.jinja", "<|im_end|>", IM, MARKS, "", {"enable_thinking": False}
    ),
    "qwen3.5": Published("qwen3_5_think.jinja", "<|im_end|>", IM, MARKS, "\n</think>\n\n"),
    "gemma-2": Published("gemma.jinja", "<end_of_turn>", ("<start_of_turn>", "<bos>")),
    "gemma-3": Published("gemma3.jinja", "<end_of_turn>", ("<start_of_turn>", "<bos>")),
    "mistral-v0.3": Published(MISTRAL_V3, "</s>", ("<s>", "[INST]", "[/INST]"), before=" "),
    "mistral-v7": Published(
        MISTRAL_V7, "</s>", ("<s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
    ),
    "phi-3": Published("phi3.jinja", "<|end|>", ("<|user|>", "<|assistant|>"), eos="<|endoftext|>"),
    "phi-4": Published(PHI4, "<|im_end|>", (*IM, "<|im_sep|>")),
    "zephyr": Published(ZEPHYR, "</s>"),
    "tulu-3": Published(TULU3, "<|end_of_text|>"),
    "smollm2": Published(CHATML, "<|im_end|>", IM),
    "r1-distill": Published(
        "deepseek_r1_distill.jinja", "<｜end▁of▁sentence｜>",
        ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"), MARKS, "\n</think>\n\n",
    ),
    "olmo-2": Published(OLMO2, "<|endoftext|>"),
    "vicuna": Published(VICUNA, "</s>", ("<s>",), before=" "),
    "deepseek-llm": Published(
        DEEPSEEK_LLM, "<｜end▁of▁sentence｜>", ("<｜begin▁of▁sentence｜>",), before=" "
    ),
    "gpt-oss": Published(
        "gptoss.jinja", "<|return|>",
        ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"), (), "<|channel|>final<|message|>",
    ),
    "granite": Published(GRANITE, "<|end_of_text|>", ("<|start_of_role|>", "<|end_of_role|>")),
    "command-r": Published(
        "cohere.jinja", "<|END_OF_TURN_TOKEN|>",
        ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
         "<|SYSTEM_TOKEN|>"),
    ),
}  # fmt: skip


@cache
def _byte_level() -> str:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        TEXT * 3,
        trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False),
    )
    return inner.to_str()


def tokenizer_of(
    template: str,
    end: str = "<|im_end|>",
    control: tuple[str, ...] = IM,
    plain: tuple[str, ...] = MARKS,
    eos: str = "",
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a template and its control tokens; every text survives it.

    Args:
        template: Of Jinja.
        end: Its end of a turn.
        control: Its other control tokens; one that looks like a beginning of text is the BOS.
        plain: Added tokens that are no control tokens.
        eos: The tokenizer's end, if it is not that of a turn.
    """
    inner = Tokenizer.from_str(_byte_level())
    inner.add_special_tokens(["<pad>", end, eos or end, *control])
    inner.add_tokens([AddedToken(token, normalized=False) for token in plain])
    bos = next((t for t in control if t in BEGINS), None)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=eos or end,
        pad_token="<pad>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
        **({"bos_token": bos} if bos else {}),
    )


BEGINS = ("<s>", "<bos>", "<BOS_TOKEN>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>")


@cache
def real_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of one of REAL."""
    model = REAL[name]
    return tokenizer_of(model.text, model.end, model.control, model.plain, model.eos)

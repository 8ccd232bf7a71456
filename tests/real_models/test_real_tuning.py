"""Protects tuning of pretrained models: the losses of TRL, ln 2, adapters, what is written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from helpers.real_models import files_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from deltalearn.generate.engines.hf import TransformersEngine
from deltalearn.lm.load import Placement, load_model, load_tokenizer
from deltalearn.lm.locate import locate
from deltalearn.recipe import TuneSpec
from deltalearn.records import Prompt, Request, Sampling
from deltalearn.tune import PairRow, ReferenceCache, prepare_examples, tune
from deltalearn.tune.student import load_student, save_student, trainable_parameters
from deltalearn.util.files import digest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # TRL has all logits of 262,144 rows
NAMES = ("smollm2", "qwen", "gemma")
PAIRS = [
    ("What is the capital of France?", "The capital of France is Paris.", "Lyon, I think."),
    ("Add 17 and 25.", "17 + 25 = 42.", "17 and 25 make 32, because 1 + 2 = 3 and 5 + 7 = 12."),
    ("Name a colour.", "Blue.", "A colour is what you see when you open your eyes to the light."),
    ("Write hello in Python.", "print('hello')", "echo hello"),
]
STEPS = 2
TEMPLATE = (  # Gemma's, which its base model does not ship
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' "
    "+ ('model' if message['role'] == 'assistant' else message['role']) "
    "+ '\n' + message['content'] + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def rows() -> list[PairRow]:
    return [
        PairRow(p, ({"role": "user", "content": p},), c, r, "stop", "stop") for p, c, r in PAIRS
    ]


@pytest.fixture(scope="module", params=NAMES)
def student(request, short, tmp_path_factory):
    """The first layers of a model, with a chat template."""
    files = short(request.param)
    if request.param != "gemma":
        return files
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("template")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        (folder / "gemma.jinja").write_text(TEMPLATE)
        return locate(str(files.directory), None, str(folder / "gemma.jinja"))


def tuned(student, out: Path, dtype: str = "float32", **settings) -> list[dict]:
    examples, counts = prepare_examples(load_tokenizer(student), rows(), 256)
    assert len(examples) == len(PAIRS), counts
    spec = TuneSpec(
        **{"lr": 1e-5, "batch_size": len(PAIRS), "steps": STEPS, "scheduler": "constant",
           "warmup_ratio": 0.0, "max_grad_norm": 1e9, **settings}
    )  # fmt: skip
    with ReferenceCache(out / "reference.sqlite") as reference:
        tune(
            student, examples, spec, 0, out, reference=reference, placement=Placement("cpu", dtype)
        )
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses_of_trl(student, out: Path) -> list[float]:
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    turns = [
        {
            "prompt": [{"role": "user", "content": p}],
            "chosen": [{"role": "assistant", "content": c}],
            "rejected": [{"role": "assistant", "content": r}],
        }
        for p, c, r in PAIRS
    ]
    config = trl.DPOConfig(
        output_dir=str(out), per_device_train_batch_size=len(PAIRS), max_steps=STEPS,
        learning_rate=1e-5, lr_scheduler_type="constant", max_grad_norm=1e9, weight_decay=0.0,
        logging_steps=1, report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
        loss_type=["sigmoid"], beta=0.1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    tokenizer = load_tokenizer(student)
    trainer = trl.DPOTrainer(
        model=load_model(student, Placement("cpu", "float32")),
        ref_model=load_model(student, Placement("cpu", "float32")),
        args=config,
        train_dataset=datasets.Dataset.from_list(turns),
        processing_class=tokenizer,
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_losses_are_trls_step_by_step(student, tmp_path):
    ours = [line["loss"] for line in tuned(student, tmp_path / "ours", method="dpo", beta=0.1)]
    theirs = losses_of_trl(student, tmp_path / "trl")
    assert ours[0] == pytest.approx(math.log(2), abs=1e-4)
    assert ours[-1] < ours[0] - 1e-3, "nothing was learnt, so nothing is shown"
    assert ours == pytest.approx(theirs, abs=2e-4)


def test_the_first_loss_is_ln_2_in_bfloat16_and_what_is_written_answers(student, tmp_path, cpu):
    log = tuned(student, tmp_path, "bfloat16", steps=1)
    assert log[0]["loss"] == pytest.approx(math.log(2), abs=2e-2)
    final = tmp_path / "final"
    plain = AutoModelForCausalLM.from_pretrained(final, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(final)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    whole = plain.generate(ids, do_sample=False, max_new_tokens=6, eos_token_id=[])
    engine = TransformersEngine(locate(str(final)), cpu, Sampling(0.0, 1.0, 6), 4096)
    (answer,) = engine.answer([request("Hi")])
    assert list(answer.token_ids) == whole[0, ids.shape[1] :].tolist()[: len(answer.token_ids)]
    assert answer.prompt_tokens == ids.shape[1]


def request(text: str) -> Request:
    turns = ({"role": "user", "content": text},)
    return Request(digest(text), Prompt(text, turns), 0, turns)


IDS = torch.arange(100, 140).reshape(2, 20)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS, use_cache=False).logits


def stepped(model) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-3)
    for _ in range(2):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in trainable_parameters(model).items()}


@pytest.mark.parametrize("bits", [None, 4])
def test_merged_adapters_compute_as_unmerged(student, cpu, tmp_path, bits):
    """After QLoRA they are merged into the weights as they were read, so nearly."""
    pytest.importorskip("bitsandbytes" if bits else "peft")
    spec = TuneSpec(lora={"r": 4, **({"bits": bits} if bits else {})})
    model = load_student(student, spec, cpu, seed=0)
    before = logits(model)
    weights = stepped(model)
    save_student(weights, student, spec, cpu, tmp_path / "final")
    after = logits(model)
    moved = (after - before).abs().max()
    assert moved > 1e-2 * before.abs().max()
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "final", dtype=torch.float32))
    if bits is None:
        assert (merged - after).abs().max() < 1e-4 * after.abs().max()
    else:
        base = logits(AutoModelForCausalLM.from_pretrained(student.directory, dtype=torch.float32))
        cosine = torch.cosine_similarity((merged - base).flatten(), (after - before).flatten(), 0)
        assert cosine > 0.7, "the adapters do not do to the model what they did to its few bits"


def test_whole_model_is_written_bit_for_bit(cpu, tmp_path):
    """A student that is not changed, read and written, has the numbers of the GGUF file."""
    files = files_of("smollm2")
    model = load_student(files, TuneSpec(), cpu, seed=0)
    weights = {name: p.detach() for name, p in trainable_parameters(model).items()}
    save_student(weights, files, TuneSpec(), cpu, tmp_path / "final")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "final").state_dict()
    source = AutoModelForCausalLM.from_pretrained(files.directory).state_dict()
    assert ours.keys() == source.keys()
    assert all(torch.equal(ours[name], source[name]) for name in source)

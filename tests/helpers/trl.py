"""Ids that TRL's own preparation makes of preference pairs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from deltalearn.formats.preferences import PairRow


def trl_ids(tokenizer, *rows: PairRow) -> list[tuple[list[int], list[int], list[int]]]:
    """What TRL's own preparation makes of the same pairs."""
    datasets = pytest.importorskip("datasets")
    trainer = pytest.importorskip("trl.trainer.dpo_trainer")
    cells = [
        {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
        if isinstance(row.prompt, str)
        else {
            "prompt": list(row.prompt),
            "chosen": [{"role": "assistant", "content": row.chosen}],
            "rejected": [{"role": "assistant", "content": row.rejected}],
            **({"chat_template_kwargs": dict(row.template)} if row.template else {}),
        }
        for row in rows
    ]
    settings = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    prepared = trainer.DPOTrainer._prepare_dataset(
        SimpleNamespace(_tokenizer=tokenizer),
        datasets.Dataset.from_list(cells),
        tokenizer,
        settings,
        "train",
    )
    return [(r["prompt_ids"], r["chosen_ids"], r["rejected_ids"]) for r in prepared]

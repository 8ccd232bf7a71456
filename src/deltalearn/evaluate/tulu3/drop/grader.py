"""DROP: F1 of the words, numbers must match, the best of all reference answers.

Source: the official evaluator of Dua et al. 2019, arXiv 1903.00161 (allennlp's `drop_em_and_f1`),
of which lm_eval has a copy, as `drop::llama3` of OLMES uses it: the output is one span, whatever it
holds. Spans are bags of words, aligned one to one so that the sum of their F1 is largest; a span
without partner on either side counts 0, and so does one whose reference has numbers of which the
output has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deltalearn.errors import UserError, needs
from deltalearn.evaluate.tulu3.grade import Grade
from deltalearn.evaluate.tulu3.sources import NoData


def grade(output: str, golds: Sequence[Sequence[str]]) -> Grade:
    """The best F1 over the reference answers, each rounded to 2 decimals.

    golds: from `gold`: for each accepted answer its spans (one for a number or a date). Answers
    whose first span is blank are passed over.
    UserError if there is no reference answer, or if lm_eval is not installed.
    """
    if isinstance(golds, str) or not golds or any(isinstance(g, str) or not g for g in golds):
        raise UserError(f"DROP: reference answers are lists of spans, not {golds!r}")
    with needs("DROP needs the scorer of lm_eval", "evaluate"):
        from lm_eval.tasks.drop.utils import get_metrics
    scores = [get_metrics([output], spans)[1] for spans in golds if spans[0].strip()]
    return Grade(float(max(scores, default=0.0)), output.strip())


def gold(question: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """All accepted answers of a question, the reference first, each once.

    Reads the original JSON (`validated_answers` is a list of answers) and its export on the
    Hugging Face hub (one answer whose fields are lists). An answer is its number, else its spans,
    else its date as "day month year"; blank ones are left out. NoData if none is left.
    """
    validated = question.get("validated_answers") or []
    if isinstance(validated, Mapping):
        columns = [validated[field] for field in ("number", "date", "spans")]
        validated = [{"number": n, "date": d, "spans": s} for n, d, s in zip(*columns, strict=True)]
    answers = [_spans(answer) for answer in (question.get("answer") or {}, *validated)]
    known = [spans for spans in dict.fromkeys(answers) if spans[0].strip()]
    if not known:
        raise NoData(f"DROP: question {question.get('query_id')!r} has no reference answer")
    return known


def _spans(answer: Mapping[str, Any]) -> tuple[str, ...]:
    if answer.get("number", "") != "":
        return (str(answer["number"]),)
    if answer.get("spans"):
        return tuple(answer["spans"])
    date = answer.get("date") or {}
    return (" ".join(date.get(part, "") for part in ("day", "month", "year")).strip(),)

"""DROP: F1 of the words, numbers must match, the best of all reference answers.

Source: the official evaluator of Dua et al. 2019, arXiv 1903.00161 (allennlp's `drop_em_and_f1`),
as `drop::llama3` of OLMES uses it: the output is one span, whatever it holds.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from deltalearn.errors import UserError
from deltalearn.evaluate.tulu3.grade import Grade
from deltalearn.evaluate.tulu3.sources import NoData

ARTICLE = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def grade(output: str, golds: Sequence[Sequence[str]]) -> Grade:
    """The best F1 over the reference answers, each rounded to 2 decimals.

    golds: from `gold`: for each accepted answer its spans (one for a number or a date). Answers
    whose first span is blank are passed over.
    UserError if there is no reference answer.
    """
    if isinstance(golds, str) or not golds or any(isinstance(g, str) or not g for g in golds):
        raise UserError(f"DROP: reference answers are lists of spans, not {golds!r}")
    scores = [f1([output], spans) for spans in golds if spans[0].strip()]
    return Grade(max(scores, default=0.0), output.strip())


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


def f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """Mean F1 of aligned spans, rounded to 2 decimals.

    Spans are bags of words, aligned one to one so that the sum is largest; a span without partner
    on either side counts 0.
    """
    import numpy as np  # here: to know what benchmarks there are takes no scipy
    from scipy.optimize import linear_sum_assignment

    bags = [_bag(span) for span in predicted]
    table = np.array([[_bag_f1(bag, _bag(span)) for bag in bags] for span in expected])
    rows, columns = linear_sum_assignment(table, maximize=True)
    scores = np.zeros(max(table.shape))
    scores[rows] = table[rows, columns]
    return float(round(np.mean(scores), 2))  # numpy rounds, as published: .325 to .32


def _bag_f1(predicted: set[str], expected: set[str]) -> float:
    """Harmonic mean of precision and recall, an empty bag having 1 of its own; 0 where the
    reference has numbers and the output none of them."""
    numbers = {word for word in expected if _is_number(word)}
    if numbers and not numbers & predicted:
        return 0.0
    common = len(predicted & expected)
    precision = common / len(predicted) if predicted else 1.0
    recall = common / len(expected) if expected else 1.0
    return 2 * precision * recall / (precision + recall) if precision or recall else 0.0


def _bag(span: str) -> set[str]:
    """The words of `span`: split at spaces and hyphens only, lower-cased, without punctuation
    and articles, numbers as floats ("2" and "2.0" are one word)."""
    words: list[str] = []
    for token in re.split(" |-", span):
        token = token.lower()
        if not _is_number(token):  # "3.5" keeps its point, "3.5," does not: it becomes 35
            token = token.translate(PUNCTUATION)
        if _is_number(token):
            token = str(float(token))
        words += ARTICLE.sub(" ", token).split()
    return set(words)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _spans(answer: Mapping[str, Any]) -> tuple[str, ...]:
    if answer.get("number", "") != "":
        return (str(answer["number"]),)
    if answer.get("spans"):
        return tuple(answer["spans"])
    date = answer.get("date") or {}
    return (" ".join(date.get(part, "") for part in ("day", "month", "year")).strip(),)

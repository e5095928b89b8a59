"""EM and F1 by SQuAD's official definitions, to the last digit.

v1.1: Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, and the published script
evaluate-v1.1.py: both texts are normalised, each prediction counts by its best gold answer, a
question without a prediction counts 0. 2.0: Rajpurkar et al. 2018,
https://arxiv.org/abs/1806.03822, and evaluate-v2.0.py (see `score_v2`).
"""

import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from qa.squad import Example

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    """1.0 where the normalised texts are equal."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the normalised texts' words, 0 to 1."""
    predicted = normalize_answer(prediction).split()
    gold = normalize_answer(reference).split()
    common = sum((Counter(predicted) & Counter(gold)).values())
    if common == 0:
        return 0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def metric_max_over_ground_truths(
    metric: Callable[[str, str], float], prediction: str, ground_truths: Sequence[str]
) -> float:
    return max(metric(prediction, truth) for truth in ground_truths)


@dataclass(frozen=True)
class Scores:
    """Scores in percent, and how many questions had no prediction."""

    exact_match: float
    f1: float
    missing: int


def _best(
    metric: Callable[[str, str], float], prediction: str | None, ground_truths: Sequence[str]
) -> float:
    """0 to 1 by the best ground truth; 0 without a prediction."""
    if prediction is None:
        return 0
    return metric_max_over_ground_truths(metric, prediction, ground_truths)


def _fractions(
    predictions: Mapping[str, str], examples: Sequence[Example]
) -> list[tuple[float, float]]:
    """EM and F1 of each question, 0 to 1."""
    scores = []
    for example in examples:
        prediction = predictions.get(example.id)
        truths = [text for text, _ in example.answers]
        scores.append((_best(exact_match, prediction, truths), _best(f1, prediction, truths)))
    return scores


def by_question(
    predictions: Mapping[str, str], examples: Sequence[Example]
) -> tuple[np.ndarray, np.ndarray]:
    """EM and F1 in percent of each question, (Q,) each; 0 without a prediction."""
    em, overlap = np.array(_fractions(predictions, examples), float).reshape(-1, 2).T
    return 100.0 * em, 100.0 * overlap


def score(predictions: Mapping[str, str], examples: Sequence[Example]) -> Scores:
    """EM and F1 in percent of {id: text} against the examples' gold answers.

    Added one by one, as the script does: numpy's mean and, since Python 3.12, `sum` round
    otherwise.
    """
    columns = zip(*_fractions(predictions, examples), strict=True)
    em, overlap = (100.0 * reduce(add, scores) / len(examples) for scores in columns)
    return Scores(em, overlap, count_missing(predictions, examples))


def count_missing(predictions: Mapping[str, str], examples: Sequence[Example]) -> int:
    """How many questions have no prediction."""
    return sum(example.id not in predictions for example in examples)


def f1_v2(prediction: str, reference: str) -> float:
    """`f1`, but where a text has no words: 1 if neither has any, else 0."""
    empty = [not normalize_answer(text) for text in (prediction, reference)]
    return int(all(empty)) if any(empty) else f1(prediction, reference)


def score_v2(predictions: Mapping[str, str], examples: Sequence[Example]) -> dict[str, float]:
    """exact and f1 in percent, total, and the same of questions with and without an answer.

    Names and order of the published script, with its rules: references that normalise to nothing
    are left out; the only right prediction without a reference is one that normalises to nothing;
    an id that stands twice is one question, the last. A question without a prediction, which ends
    that script, scores 0.
    """
    exact: dict[str, float] = {}
    overlap: dict[str, float] = {}
    has_answer: dict[str, bool] = {}
    for example in examples:
        references = [text for text, _ in example.answers if normalize_answer(text)] or [""]
        prediction = predictions.get(example.id)
        has_answer[example.id] = bool(example.answers)
        exact[example.id] = _best(exact_match, prediction, references)
        overlap[example.id] = _best(f1_v2, prediction, references)
    groups = {
        "": list(has_answer),
        "HasAns_": [id for id, has in has_answer.items() if has],
        "NoAns_": [id for id, has in has_answer.items() if not has],
    }
    scores = {}
    for prefix, ids in groups.items():
        if ids:
            # `sum`, as there; int and float as there too, since Python 3.12 adds them differently.
            scores[f"{prefix}exact"] = 100.0 * sum(exact[id] for id in ids) / len(ids)
            scores[f"{prefix}f1"] = 100.0 * sum(overlap[id] for id in ids) / len(ids)
            scores[f"{prefix}total"] = len(ids)
    return scores


def evaluate_library() -> Any:
    """Hugging Face's `evaluate`, which the command evaluate.py beside this package hides by name."""
    import importlib.machinery
    import importlib.util

    module = sys.modules.get("evaluate")
    if module is None or not hasattr(module, "Metric"):
        here = Path(__file__).resolve().parent.parent
        elsewhere = [p for p in sys.path if Path(p or ".").resolve() != here]
        spec = importlib.machinery.PathFinder.find_spec("evaluate", elsewhere)
        module = importlib.util.module_from_spec(spec)
        sys.modules["evaluate"] = module  # the library imports itself by name while it loads
        spec.loader.exec_module(module)
    return module


def as_metric(
    name: str,
    description: str,
    citation: str,
    compute: Callable[[Mapping[str, str], Sequence[Example]], dict[str, Any]],
) -> Any:
    """`compute` as an `evaluate.Metric`, for `evaluate.combine` and other users of that library.

    compute(predictions=[{"id", "prediction_text"}], references=[{"id", "answers"}]), the inputs
    of the library's own "squad", which it would fetch from a hub.
    """
    library = evaluate_library()
    import datasets

    class Metric(library.Metric):
        def _info(self):
            answers = {
                "text": datasets.Sequence(datasets.Value("string")),
                "answer_start": datasets.Sequence(datasets.Value("int32")),
            }
            return library.MetricInfo(
                description=description,
                citation=citation,
                features=datasets.Features(
                    {
                        "predictions": {
                            "id": datasets.Value("string"),
                            "prediction_text": datasets.Value("string"),
                        },
                        "references": {"id": datasets.Value("string"), "answers": answers},
                    }
                ),
            )

        def _compute(self, predictions, references):
            texts = {p["id"]: p["prediction_text"] for p in predictions}
            examples = [
                Example(r["id"], "", "", "", tuple((text, 0) for text in r["answers"]["text"]))
                for r in references
            ]
            return compute(texts, examples)

    Metric.__name__ = Metric.__qualname__ = name
    return Metric()


def squad_metric() -> Any:
    """EM and F1 as an `evaluate.Metric`."""

    def compute(texts: Mapping[str, str], examples: Sequence[Example]) -> dict[str, float]:
        found = score(texts, examples)
        return {"exact_match": found.exact_match, "f1": found.f1}

    return as_metric(
        "Squad",
        "exact match and F1 of extractive question answering, in percent",
        "https://arxiv.org/abs/1606.05250",
        compute,
    )

"""EM and F1 by SQuAD's official definition.

Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, and the published script evaluate-v1.1.py:
both texts are normalised, each prediction counts by its best gold answer, a question without a
prediction counts 0.
"""

import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
        return 0.0
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


def by_question(
    predictions: Mapping[str, str], examples: Sequence[Example]
) -> tuple[np.ndarray, np.ndarray]:
    """EM and F1 in percent of each question, (Q,) each; 0 without a prediction."""
    scores = np.zeros((2, len(examples)))
    for column, example in enumerate(examples):
        prediction = predictions.get(example.id)
        if prediction is not None:
            truths = [text for text, _ in example.answers]
            scores[:, column] = [
                metric_max_over_ground_truths(metric, prediction, truths)
                for metric in (exact_match, f1)
            ]
    return 100.0 * scores[0], 100.0 * scores[1]


def score(predictions: Mapping[str, str], examples: Sequence[Example]) -> Scores:
    """EM and F1 in percent of {id: text} against the examples' gold answers."""
    em, overlap = by_question(predictions, examples)
    missing = sum(example.id not in predictions for example in examples)
    return Scores(float(em.mean()), float(overlap.mean()), missing)


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

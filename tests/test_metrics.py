"""EM and F1 against frozen official figures and an independent implementation."""

import json
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qa import metrics
from qa.squad import Example
from tests.conftest import WORDS, toy_document

# Worked out by hand from the published definition.
FROZEN = [
    ("the Eiffel Tower!", "Eiffel tower", 1.0, 1.0),
    ("a cat sat", "the cat sat on a mat", 0.0, 2 * (2 / 2) * (2 / 4) / (2 / 2 + 2 / 4)),
    ("Saint-Denis", "Saint Denis", 0.0, 0.0),  # the hyphen goes, and with it the space
    ("anthem", "them", 0.0, 0.0),  # articles are words, not prefixes
    ("to to to", "to be", 0.0, 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),
    ("", "x", 0.0, 0.0),
    ("the", "a", 1.0, 0.0),  # both normalise to nothing: equal texts, no common word
    ("５０", "50", 0.0, 0.0),
    ("  10\u00a0000 ", "10 000", 1.0, 1.0),
]


@pytest.mark.parametrize(("prediction", "gold", "em", "f1"), FROZEN)
def test_frozen_pairs(prediction, gold, em, f1):
    assert metrics.exact_match(prediction, gold) == em
    assert metrics.f1(prediction, gold) == pytest.approx(f1, abs=1e-12)


def assert_agreement(predictions, examples, rounding=1e-3):
    from torchmetrics.functional.text import squad as reference

    expected = reference(
        [{"id": id, "prediction_text": text} for id, text in predictions.items()],
        [
            {"id": e.id, "answers": {"text": [t for t, _ in e.answers], "answer_start": [0]}}
            for e in examples
        ],
    )
    found = metrics.score(predictions, examples)
    assert found.exact_match == pytest.approx(expected["exact_match"].item(), abs=rounding)
    assert found.f1 == pytest.approx(expected["f1"].item(), abs=rounding)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_agrees_with_torchmetrics(seed):
    draw = random.Random(seed)
    vocabulary = ["the", "a", "An", "the.", "U.S.", "—", "12%", *WORDS[:8]]

    def phrase():  # never of articles alone: there torchmetrics follows SQuAD v2
        return " ".join([*draw.choices(vocabulary, k=draw.randint(0, 5)), draw.choice(WORDS[:3])])

    examples, predictions = [], {}
    for n in range(12):
        truths = tuple((phrase(), 0) for _ in range(draw.randint(1, 4)))
        examples.append(Example(str(n), "", "", "", truths))
        predictions[str(n)] = draw.choice([phrase(), truths[0][0].upper()])
    assert_agreement(predictions, examples)


def test_agrees_with_torchmetrics_on_squad_dev(squad_dev):
    """Predictions: the second annotator's answer, every third one with a word too many."""
    examples = [  # without the gold answer "A" alone: there torchmetrics follows SQuAD v2
        e for e in squad_dev.examples if all(metrics.normalize_answer(t) for t, _ in e.answers)
    ]
    assert len(examples) > 10_560
    predictions = {
        e.id: e.answers[min(1, len(e.answers) - 1)][0] + (" indeed" if n % 3 == 0 else "")
        for n, e in enumerate(examples)
    }
    assert_agreement(predictions, examples, rounding=5e-3)  # it adds up in single precision
    gold = {e.id: e.answers[0][0] for e in squad_dev.examples}
    assert metrics.score(gold, squad_dev.examples).exact_match == 100.0


def test_questions_without_prediction_score_zero():
    examples = [Example(str(n), "", "", "", (("x", 0),)) for n in range(4)]
    found = metrics.score({"0": "x", "stranger": "x"}, examples)
    assert (found.exact_match, found.f1, found.missing) == (25.0, 25.0, 3)


def test_as_a_metric_of_the_evaluate_library():
    """… though evaluate.py of this program hides that library's name."""
    metric = metrics.squad_metric()
    library = metrics.evaluate_library()
    assert isinstance(metric, library.Metric) and "site-packages" in library.__file__
    predictions = [{"id": "1", "prediction_text": "the cat"}, {"id": "2", "prediction_text": "x y"}]
    references = [
        {"id": "1", "answers": {"text": ["cat"], "answer_start": [0]}},
        {"id": "2", "answers": {"text": ["y z", "y"], "answer_start": [0, 0]}},
    ]
    expected = {"exact_match": 50.0, "f1": pytest.approx(100 * (1 + 2 / 3) / 2)}
    assert metric.compute(predictions=predictions, references=references) == expected
    combined = library.combine([metrics.squad_metric()])
    assert combined.compute(predictions=predictions, references=references) == expected


def test_the_command_prints_json_alone_and_warns_apart(tmp_path):
    document = toy_document(8)
    references, predictions = tmp_path / "r.json", tmp_path / "p.json"
    references.write_text(json.dumps(document))
    questions = [q for a in document["data"] for p in a["paragraphs"] for q in p["qas"]]
    texts = {q["id"]: q["answers"][0]["text"] for q in questions[:6]}
    predictions.write_text(json.dumps({**texts, "stranger": "x"}))
    done = subprocess.run(
        [sys.executable, "evaluate.py", "--predictions", predictions, "--references", references],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"exact_match": 75.0, "f1": 75.0}
    assert "2 of 8 questions have no prediction" in done.stderr
    assert "1 predictions are for no question" in done.stderr

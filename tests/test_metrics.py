"""EM and F1 against frozen official figures and an independent implementation."""

import argparse
import json
import random
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qa import metrics, squad
from qa.squad import Example
from tests.conftest import WORDS, toy_document, toy_split

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


def questions_of(document):
    return [q for a in document["data"] for p in a["paragraphs"] for q in p["qas"]]


def test_the_command_prints_json_alone_and_warns_apart(tmp_path):
    document = toy_document(8)
    references, predictions = tmp_path / "r.json", tmp_path / "p.json"
    references.write_text(json.dumps(document))
    texts = {q["id"]: q["answers"][0]["text"] for q in questions_of(document)[:6]}
    predictions.write_text(json.dumps({**texts, "stranger": "x"}))
    done = subprocess.run(
        [sys.executable, "evaluate.py", "--predictions", predictions, "--references", references],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"exact_match": 75.0, "f1": 75.0}
    assert "2 of 8 questions have no prediction and score 0" in done.stderr
    assert "1 prediction is for no question" in done.stderr


@pytest.fixture(scope="module")
def score_file(tmp_path_factory):
    """(references, predictions) → what the command prints, as text; without a process for each."""
    command = runpy.run_path(str(Path(metrics.__file__).parent.parent / "evaluate.py"))
    folder = tmp_path_factory.mktemp("scored")

    def run(references, predictions):
        (folder / "r.json").write_text(json.dumps(references))
        (folder / "p.json").write_text(json.dumps(predictions))
        files = {"references": str(folder / "r.json"), "predictions": str(folder / "p.json")}
        return json.dumps(command["score_file"](argparse.Namespace(**files, name=None)))

    return run


ANSWER = {"text": "Mrs. Orla Venn", "answer_start": 23}
MILL = "The mill was bought by Mrs. Orla Venn in 1902. It burned down in 1911."


def file_of(*questions, version="1.1", **paragraph):
    paragraph = {"context": MILL, "qas": list(questions), **paragraph}
    return {"data": [{"title": "Mill", "paragraphs": [paragraph]}], "version": version}


def asked(id, *answers, **more):
    return {"id": id, "question": "Who bought the mill?", "answers": list(answers), **more}


ALL_RIGHT = '{"exact_match": 100.0, "f1": 100.0}'
ONE_QUESTION = file_of(asked("a", ANSWER))
TAKEN = {
    "wrong start": file_of(asked("a", {**ANSWER, "answer_start": 0})),
    "start -1 beside a good answer": file_of(
        asked("a", ANSWER, {"text": "Orla V.", "answer_start": -1})
    ),
    "start as text": file_of(asked("a", {**ANSWER, "answer_start": "23"})),
    "start as a float": file_of(asked("a", {**ANSWER, "answer_start": 23.5})),
    "start NaN": file_of(asked("a", {**ANSWER, "answer_start": float("nan")})),
    "start huge": file_of(asked("a", {**ANSWER, "answer_start": 10**400})),
    "start is an object": file_of(asked("a", {**ANSWER, "answer_start": {}})),
    "no start": file_of(asked("a", {"text": "mrs orla venn"})),
    "answer empty beside a good one": file_of(asked("a", {"text": ""}, ANSWER)),
    "answer with half a surrogate": file_of(asked("a", {"text": "\ud800"}, ANSWER)),
    "answer with a NUL": file_of(asked("a", {"text": "a\0"}, ANSWER)),
    "context null": file_of(asked("a", ANSWER), context=None),
    "context with half a surrogate": file_of(asked("a", ANSWER), context="\udc00"),
    "id and answer alone": {"data": [{"paragraphs": [{"qas": [
        {"id": "a", "answers": [{"text": "Orla", "x": 1}, {"text": "Mrs Orla Venn"}]}]}]}]},
    "question null": file_of({**asked("a", ANSWER), "question": None}),
    "impossible, with an answer": file_of(asked("a", ANSWER, is_impossible=True)),
    "articles and paragraphs without questions": {
        "data": [{"title": "x", "paragraphs": []}, {"paragraphs": [{"qas": []}, {"qas": ""}]},
                 {"paragraphs": {}}, *ONE_QUESTION["data"]]},
    "no version": {"data": ONE_QUESTION["data"]},
    "version null": {**ONE_QUESTION, "version": None},
    **{f"title {title!r}": {"data": [{**ONE_QUESTION["data"][0], "title": title}]}
       for title in (None, "", " ", 5, float("nan"), True, [], "\ud800")},
}  # fmt: skip


@pytest.mark.parametrize("case", TAKEN)
def test_scoring_reads_ids_and_texts_of_answers_alone(score_file, case):
    assert score_file(TAKEN[case], {"a": "Mrs. Orla Venn"}) == ALL_RIGHT


@pytest.mark.parametrize("id", [262, 0, -7, 10**30])
def test_a_whole_number_matches_the_prediction_of_its_text(score_file, id):
    references = file_of(asked(id, ANSWER), asked(f"0{id}", ANSWER))
    texts = {str(id): "Mrs. Orla Venn", f"0{id}": "Orla Venn, Mrs"}
    assert score_file(references, texts) == '{"exact_match": 50.0, "f1": 100.0}'
    listed = [{"id": id, "prediction_text": "Mrs. Orla Venn"}]
    assert score_file(file_of(asked(id, ANSWER)), listed) == ALL_RIGHT
    assert score_file(file_of(asked(str(id), ANSWER)), listed) == ALL_RIGHT


def test_predictions_may_be_a_list_and_of_any_type_where_nobody_asks(score_file):
    listed = [{"id": "a", "prediction_text": "Mrs. Orla Venn", "no_answer_probability": 0.0}]
    assert score_file(ONE_QUESTION, listed) == ALL_RIGHT
    strangers = {f"s{n}": value for n, value in enumerate([None, 5, [], {}, float("nan")])}
    assert score_file(ONE_QUESTION, {"a": "Mrs. Orla Venn", **strangers}) == ALL_RIGHT
    assert score_file(ONE_QUESTION, []) == '{"exact_match": 0.0, "f1": 0.0}'


def test_warnings_agree_with_their_number(score_file, capsys):
    score_file(file_of(asked("a", ANSWER), asked("b")), {"a": "x", "c": "x"})
    assert capsys.readouterr().err == (
        "warning: 1 of 2 questions has no prediction and scores 0\n"
        "warning: 1 prediction is for no question of it\n"
    )


def test_each_question_counts_where_ids_stand_twice(score_file):
    references = file_of(
        asked("a", ANSWER), asked("a", {"text": "1902"}), asked("b", {"text": "1911"})
    )
    texts = {"a": "1902", "b": "1911"}
    assert score_file(references, texts) == json.dumps({"exact_match": 200 / 3, "f1": 200 / 3})


def test_answers_of_questions_without_a_prediction_are_not_read(score_file):
    references = file_of(asked("a", ANSWER), {"id": "b"}, asked("c", {"text": 5}))
    assert score_file(references, {"a": "Mrs. Orla Venn"}) == json.dumps(
        {"exact_match": 100 / 3, "f1": 100 / 3}
    )


def test_questions_without_an_answer_make_a_file_one_of_squad_2(score_file):
    """Worked out by hand: a right, b wrongly answered, c rightly not, d half right (F1 2/3)."""
    references = file_of(
        asked("a", ANSWER),
        asked("b"),
        asked("c", is_impossible=True),
        asked("d", {"text": "The"}, {"text": "burned down"}),
        asked("e", {"text": "a"}),  # normalises to nothing: as if it had no answer, but HasAns
    )
    texts = {"a": "mrs orla venn!", "b": "1902", "c": "the", "d": "down", "e": "."}
    assert json.loads(score_file(references, texts)) == {
        "exact": 60.0, "f1": 100 * (3 + 2 / 3) / 5, "total": 5,
        "HasAns_exact": 100 * 2 / 3, "HasAns_f1": 100 * (2 + 2 / 3) / 3, "HasAns_total": 3,
        "NoAns_exact": 50.0, "NoAns_f1": 50.0, "NoAns_total": 2,
    }  # fmt: skip
    # A question without a prediction scores 0, here d and (though it has no answer) c.
    del texts["d"], texts["c"]
    found = json.loads(score_file(references, texts))
    assert (found["exact"], found["f1"], found["total"], found["NoAns_f1"]) == (40, 40, 5, 0)


@pytest.mark.parametrize("version", ["v2.0", "2.0", "V2.0", 2.0])
def test_a_version_makes_a_file_one_of_squad_2(score_file, version):
    found = score_file(file_of(asked("a", ANSWER), version=version), {"a": "Orla Venn"})
    assert list(json.loads(found)) == [
        "exact", "f1", "total", "HasAns_exact", "HasAns_f1", "HasAns_total"
    ]  # fmt: skip
    only = score_file(file_of(asked("a"), version=version), {"a": ""})
    assert only == (
        '{"exact": 100.0, "f1": 100.0, "total": 1, '
        '"NoAns_exact": 100.0, "NoAns_f1": 100.0, "NoAns_total": 1}'
    )


def test_the_published_figures_of_squad_2(squad_dir):
    """Of one system's published predictions (BERT, single model), by the published script."""
    if not (squad_dir / "dev-v2.0.json").exists():
        pytest.skip(f"SQuAD 2.0 is not at {squad_dir}")
    gold = squad.read_references(str(squad_dir / "dev-v2.0.json"))
    texts = squad.read_predictions(squad_dir / "predictions-v2.0.json")
    assert gold.is_v2 and metrics.score_v2(texts, gold.examples) == {
        "exact": 78.74168280973637, "f1": 81.77528052374727, "total": 11873,
        "HasAns_exact": 74.10593792172739, "HasAns_f1": 80.18183293833516, "HasAns_total": 5928,
        "NoAns_exact": 83.36417157275021, "NoAns_f1": 83.36417157275021, "NoAns_total": 5945,
    }  # fmt: skip


# Both definitions once more, from what is published about them: characters and words counted by
# hand, sums in the order of the questions.


def words(text):
    kept = "".join(c for c in text.lower() if c not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
    pieces, piece = [], ""
    for c in kept:  # an article is a run of word characters that is one
        if c.isalnum() or c == "_":
            piece += c
        else:
            pieces += [piece, c]
            piece = ""
    pieces.append(piece)
    return "".join(" " if p in ("a", "an", "the") else p for p in pieces).split()


def overlap(predicted, reference):
    left, common = list(reference), 0
    for word in predicted:
        if word in left:
            left.remove(word)
            common += 1
    if not common:
        return 0
    precision, recall = common / len(predicted), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def counted_v1(document, texts):
    exact = f1 = total = 0
    for question in questions_of(document):
        total += 1
        if str(question["id"]) in texts:
            found = words(texts[str(question["id"])])
            answers = [words(answer["text"]) for answer in question["answers"]]
            exact += found in answers
            f1 += max(overlap(found, answer) for answer in answers)
    return {"exact_match": 100.0 * exact / total, "f1": 100.0 * f1 / total}


def counted_v2(document, texts):
    last = {str(question["id"]): question for question in questions_of(document)}
    exact, f1 = {}, {}
    for id, question in last.items():
        found = words(texts[id])
        answers = [w for w in (words(answer["text"]) for answer in question["answers"]) if w]
        exact[id] = int(found in (answers or [[]]))
        if found and answers:
            f1[id] = max(overlap(found, answer) for answer in answers)
        else:
            f1[id] = int(not found and not answers)
    made = {}
    for prefix, kinds in (("", (True, False)), ("HasAns_", (True,)), ("NoAns_", (False,))):
        ids = [id for id, question in last.items() if bool(question["answers"]) in kinds]
        if ids:
            made[prefix + "exact"] = 100.0 * sum(exact[id] for id in ids) / len(ids)
            made[prefix + "f1"] = 100.0 * sum(f1[id] for id in ids) / len(ids)
            made[prefix + "total"] = len(ids)
    return made


def random_file(draw):
    """(document, predictions), as wild as the scripts allow; half of them SQuAD 2.0's."""
    bits = [
        "the",
        "a",
        "An",
        "cat",
        "cat.",
        "Dog",
        "dog's",
        "\u2014",
        "\u0130",
        "\u00df",
        "x\ud800",
    ]
    bits += [
        "",
        "caf\u00e9",
        "cafe\u0301",
        "\uff11",
        "1",
        "the\u2014",
        "a-b",
        "\x1c",
        "\u2028",
        "_a",
    ]
    odd = [None, True, -1, 1.5, float("nan"), "", "x", [], {"a": 1}, "\ud800"]
    is_v2 = draw.random() < 0.5

    def text():
        return " ".join(draw.choices(bits, k=draw.randint(0, 5)))

    def question(id):
        count = 0 if is_v2 and draw.random() < 0.4 else draw.randint(1, 4)
        answers = [{"text": text(), "answer_start": draw.choice(odd)} for _ in range(count)]
        return {"id": id, "question": draw.choice(odd), "answers": answers}

    ids = [n if draw.random() < 0.5 else f"q{n}" for n in range(draw.randint(1, 40))]
    ids += draw.sample(ids, draw.randint(0, min(3, len(ids))))  # some stand twice
    articles = [
        {"title": draw.choice(odd), "paragraphs": [
            {"context": draw.choice(odd), "qas": [question(id) for id in ids[n::3]]}]}
        for n in range(3)
    ]  # fmt: skip
    texts = {str(id): text() for id in ids if is_v2 or draw.random() < 0.9}
    strangers = {f"stranger {n}": value for n, value in enumerate(odd)}
    version = "v2.0" if is_v2 else draw.choice(odd)
    return {"data": articles, "version": version}, texts | strangers


def test_files_drawn_at_random_score_to_the_last_digit(score_file):
    draw = random.Random(0)
    kinds = Counter()
    for _ in range(200):
        document, texts = random_file(draw)
        counted = counted_v2 if document["version"] == "v2.0" else counted_v1
        kinds[counted] += 1
        assert score_file(document, texts) == json.dumps(counted(document, texts))
    assert min(kinds.values()) > 80


def test_a_run_and_the_command_agree_to_the_last_digit(score_file):
    document = toy_document(33)
    questions = questions_of(document)
    texts = {
        q["id"]: f"{q['answers'][0]['text']} {' bo' * (n % 7)}" for n, q in enumerate(questions)
    }
    counted = counted_v1(document, texts)
    found = metrics.score(texts, toy_split(33).examples)
    assert {"exact_match": found.exact_match, "f1": found.f1} == counted
    assert score_file(document, texts) == json.dumps(counted)

"""BERTScore against the library itself."""

import json
import os
import random
import subprocess
import sys
import time

import pytest

from qa import UserError, bertscore, metrics
from qa.squad import Example, read_file
from qa.study import ROOT
from tests.conftest import SQUAD_DIR, make_encoder


@pytest.fixture(scope="module")
def scorer():
    return bertscore.make_scorer("embedded", None, False)


@pytest.fixture(scope="module")
def examples():
    return read_file("test", str(ROOT / "qa/embedded/corpus/test.json")).examples


def spans(examples, seed=0):
    """Random words of each context."""
    draw = random.Random(seed)
    texts = {}
    for e in examples:
        words = e.context.split()
        start = draw.randrange(len(words))
        texts[e.id] = " ".join(words[start : start + draw.randint(1, 6)])
    return texts


def test_200_pairs_equal_the_librarys_own(scorer, examples):
    from bert_score import BERTScorer

    texts = spans(examples[:200])
    pairs = [(texts[e.id], e.answers[0][0]) for e in examples[:200]]
    library = BERTScorer(str(ROOT / "qa/embedded/encoder"), num_layers=2)
    library._tokenizer.model_max_length = 512
    _, _, halved = library.score([a for a, _ in pairs], [b for _, b in pairs])
    assert scorer.pairs(pairs) == pytest.approx(halved.tolist(), abs=1e-3)  # float16, as the file
    library._model.float()
    _, _, expected = library.score([a for a, _ in pairs], [b for _, b in pairs])
    assert scorer.pairs(pairs) == pytest.approx(expected.tolist(), abs=1e-5)
    assert scorer.pairs(pairs[::-1]) == scorer.pairs(pairs)[::-1]


def test_scores_are_the_same_to_the_last_digit_in_every_process(scorer, squad_dev):
    """bert-score makes its batches in the order of a set, and what was scored before changes none."""
    program = """
import sys
from qa import bertscore
from qa.squad import read_file
from tests.test_bertscore import spans
examples = read_file("test", sys.argv[1]).examples[:400]
scorer = bertscore.make_scorer("embedded", None, False)
print(scorer.score([spans(examples)], examples).tolist())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, SQUAD_DIR / "dev-v1.1.json"],
        capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    examples = squad_dev.examples[:400]
    scorer.score([spans(examples, 1)], examples[:100])
    assert json.loads(done.stdout) == scorer.score([spans(examples)], examples).tolist()


def test_the_best_gold_answer_counts_and_nothing_is_worth_nothing(scorer):
    golds = (("the old harbour", 0), ("harbour", 0))
    examples = [Example(str(n), "", "", "", golds) for n in range(5)]
    texts = {"0": "harbour", "1": "", "2": " \n", "3": "\u200b"}  # and "4" is missing
    [found] = scorer.score([texts], examples)
    assert found[0] == pytest.approx(100, abs=1e-3)
    assert found[1:].tolist() == [0, 0, 0, 0]
    long = Example("5", "", "", "", (("word " * 3000, 0),))
    assert 0 < scorer.score([{"5": "word"}], [long])[0, 0] <= 100


def test_layers_name_and_baseline_are_settings(scorer, encoder, monkeypatch):
    assert scorer.hash.startswith("embedded_L2_no-idf_version=") and os.sep not in scorer.hash
    one = bertscore.Scorer(str(encoder), num_layers=1)
    assert one.hash.startswith(f"{encoder.name}_L1_no-idf")
    assert len(one.bert_scorer._model.encoder.layer) == 1
    with pytest.raises(UserError, match="bertscore_rescale: the library has no baseline"):
        bertscore.Scorer("embedded", rescale=True)
    with pytest.raises(UserError, match="bertscore_model: embedded cannot be loaded"):
        bertscore.Scorer("embedded", num_layers=9)
    with pytest.raises(UserError, match="bertscore_model: /nowhere is no folder; give a folder"):
        bertscore.Scorer("/nowhere")


def test_rescaling_is_the_librarys(scorer, tmp_path, monkeypatch):
    """The baseline of bert-base-uncased, under a model that has none."""
    import bert_score

    folder = ROOT / "qa/embedded/encoder"
    table = next(iter(bert_score.__path__)) + "/rescale_baseline/en/bert-base-uncased.tsv"
    library = bert_score.BERTScorer(
        str(folder), num_layers=2, lang="en", rescale_with_baseline=True, baseline_path=table
    )
    library._tokenizer.model_max_length = 512
    library._model.float()
    monkeypatch.setattr(bert_score.BERTScorer, "baseline_vals", library.baseline_vals)
    rescaled = bertscore.Scorer("embedded", rescale=True)
    pairs = [("the old harbour", "harbour"), ("", "harbour")]
    _, _, expected = library.score(["the old harbour"], ["harbour"])
    assert rescaled.pairs(pairs) == [pytest.approx(expected.item(), abs=1e-5), 0.0]
    assert rescaled.hash.endswith("-rescaled")


def test_pickled_weights_are_refused(tmp_path):
    import torch

    folder = make_encoder(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="bertscore_model"):
        bertscore.Scorer(str(folder))


def test_a_name_that_the_library_takes_for_another_model(tmp_path, monkeypatch):
    """It loads a T5 from any folder with t5 in its path, whatever stands there."""
    folder = make_encoder(tmp_path / "bert5/model")
    with pytest.raises(UserError, match='bert5/model has "t5" in its name'):
        bertscore.Scorer(str(folder))
    monkeypatch.chdir(folder.parent)
    assert bertscore.Scorer(str(folder)).pairs([("ship", "ship")]) == [pytest.approx(1)]


def test_a_tokenizer_without_padding_is_refused_before_it_is_needed(tmp_path):
    folder = make_encoder(tmp_path / "unpadded", "roberta")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"bertscore_model: .* a tokenizer without a padding token"):
        bertscore.Scorer(str(folder))


def test_beside_em_and_f1_in_the_evaluate_library(scorer):
    library = metrics.evaluate_library()
    metric = bertscore.bertscore_metric()
    assert isinstance(metric, library.Metric)
    predictions = [{"id": "1", "prediction_text": "the cat"}, {"id": "2", "prediction_text": ""}]
    references = [
        {"id": "1", "answers": {"text": ["dog", "the cat"], "answer_start": [0, 0]}},
        {"id": "2", "answers": {"text": ["y"], "answer_start": [0]}},
    ]
    found = library.combine([metrics.squad_metric(), metric]).compute(
        predictions=predictions, references=references
    )
    assert found == {
        "exact_match": 50.0,
        "f1": 50.0,
        "bertscore_f1": pytest.approx(50.0, abs=1e-3),
        "bertscore_hash": scorer.hash,
    }


@pytest.mark.slow
def test_all_of_squad_dev_takes_under_a_minute(squad_dev):
    fresh = bertscore.Scorer("embedded")
    texts = spans(squad_dev.examples)
    began = time.perf_counter()
    found = fresh.score([texts], squad_dev.examples)
    assert time.perf_counter() - began < 60
    assert found.shape == (1, 10570) and json.dumps(found.tolist())

"""Labels that do not read as their answers: seen in every way, and in ordinary data none."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

import train
from qa import UserError, report, squad
from qa.labels import findings, report_labels
from qa.pretrained import load_tokenizer
from qa.squad import Example, Split
from qa.study import ROOT
from qa.windows import build_windows
from tests.conftest import TOKENIZERS, command_flags, late_offsets, make_encoder, toy_split

EMBEDDED = str(ROOT / "qa/embedded/encoder")
THAI = {
    "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทยและเป็นเมืองที่มีประชากรมากที่สุด": "กรุงเทพมหานคร",
    "แม่น้ำเจ้าพระยาไหลผ่านเมืองหลวงแล้วลงสู่ทะเลที่อ่าวไทย": "เจ้าพระยา",
}


def split_of(answers: dict[str, str]) -> Split:
    """Ten questions on each context."""
    examples = [
        Example(f"q{n}", "t", context, "?", ((answer, context.index(answer)),))
        for n, (context, answer) in enumerate(10 * list(answers.items()))
    ]
    return Split("test", examples, "test")


def read(split, tokenizer, max_seq_length=64, doc_stride=16, max_answer_length=30):
    windows = build_windows(split, tokenizer, max_seq_length, doc_stride)
    return report_labels(windows, split, tokenizer, max_answer_length)


def levels(found):
    return {finding.about: finding.level for finding in findings(found)}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ordinary_data_raise_no_alarm(kind):
    found = read(toy_split(100), TOKENIZERS[kind]())
    assert not findings(found) and found.wrong == found.unknown_tokens == found.in_no_window == 0


def test_the_embedded_corpus_raises_no_alarm():
    tokenizer = load_tokenizer(EMBEDDED)
    for name in squad.SPLITS:
        split = squad.read_file(name, str(ROOT / f"qa/embedded/corpus/{name}.json"))
        assert not findings(read(split, tokenizer, 384, 128))


def test_squad_raises_no_alarm_and_takes_no_time(squad_dev):
    found = read(squad_dev, load_tokenizer(EMBEDDED), 384, 128)
    assert not findings(found) and 0 < found.wrong < 0.01 and "'Israelis' for" in found.first_wrong
    found = read(squad_dev, load_tokenizer(EMBEDDED, do_lower_case=False), 384, 128)
    assert levels(found) == {"tokens": 1} and found.unknown_tokens > 0.1
    assert found.unknown_answers > 0.4 and found.keeps_capitals
    assert findings(found)[0].text.endswith("has no capitals: give --do_lower_case true")


def test_lower_case_is_no_remedy_for_a_script_without_case():
    found = read(split_of(THAI), load_tokenizer(EMBEDDED, do_lower_case=False))
    assert found.unknown_tokens > 0.4 and not found.keeps_capitals
    assert not any("do_lower_case" in finding.text for finding in findings(found))


def test_leading_blanks_in_tokens_are_no_fault():
    from transformers import DebertaV2Tokenizer

    core = json.loads(TOKENIZERS["unigram"]().backend_tokenizer.to_str())
    tokenizer = DebertaV2Tokenizer(vocab=[tuple(pair) for pair in core["model"]["vocab"]])
    split = toy_split(40)
    windows = build_windows(split, tokenizer, 64, 16)
    assert any(split.examples[0].context[a] == " " for a, _ in windows.context_chars[1:9])
    assert not findings(report_labels(windows, split, tokenizer, 30))


def test_offsets_that_are_one_character_late():
    found = read(toy_split(40), late_offsets())
    assert levels(found) == {"labels": 2} and found.wrong == 1
    assert "100.0% of the labels do not read" in findings(found)[0].text
    assert "'es' for 'nes'" in found.first_wrong


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_that_are_one_token_late(kind):
    """Their offsets read well, and the label is another text."""
    split, tokenizer = toy_split(100), TOKENIZERS[kind]()
    windows = build_windows(split, tokenizer, 64, 16)
    late = replace(windows, context_ids=np.roll(windows.context_ids, 1))
    found = report_labels(late, split, tokenizer, 30)
    assert found.wrong > 0.9 and not found.first_wrong
    assert levels(found) == {"labels": 2}


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_script_without_blanks_that_the_vocabulary_lacks(kind):
    found = read(split_of(THAI), TOKENIZERS[kind]())
    assert found.wrong == 1 and found.unknown_answers == 1 and found.unknown_tokens >= 0.5
    assert levels(found)["labels"] == 2


def test_marks_and_white_space_behind_a_text_do_not_count():
    answers = {
        "sung by Chloe\u0301 in the town": "Chloe\u0301",
        "bob kad  \n lif": "kad  \n",
        "bod bof bog": " bof",
    }
    found = read(split_of(answers), TOKENIZERS["wordpiece"]())
    assert found.wrong == 0
    half = read(split_of({"bob kad lif": "ka", "bod bof bog": "bof"}), TOKENIZERS["wordpiece"]())
    assert half.wrong == 0.5 and half.first_wrong == "q0: 'kad' for 'ka'"
    assert levels(half) == {"labels": 1}, "half of them right is still let pass"
    assert not findings(replace(half, questions=8)), "a few may be chance"
    assert levels(replace(half, questions=8, wrong=0.6)) == {"labels": 2}, "most of them are not"


def test_answers_too_long_for_a_window_or_for_the_limit():
    context = " ".join(example.context for example in toy_split(8).examples)
    words = context.split()
    answers = {context: " ".join(words[:80]), context + ".": " ".join(words[:20])}
    found = read(split_of(answers), TOKENIZERS["wordpiece"](), max_answer_length=19)
    assert (found.in_no_window, found.too_long, found.wrong) == (0.5, 0.5, 0)
    said = {finding.about: finding.text for finding in findings(found)}
    assert said["windows"].endswith("in no window whole; raise max_seq_length or doc_stride")
    assert said["answers"].endswith("longer than 19 tokens; raise max_answer_length")
    alone = read(split_of({context: answers[context]}), TOKENIZERS["wordpiece"]())
    assert levels(alone) == {"windows": 2}, "nothing to learn from"
    nothing = Split("asked", [replace(toy_split(1).examples[0], answers=())], "asked")
    assert not findings(read(nothing, TOKENIZERS["wordpiece"]()))


@pytest.fixture(scope="module")
def shifted(tmp_path_factory):
    """An encoder whose tokenizer's offsets are late."""
    folder = make_encoder(tmp_path_factory.mktemp("shifted") / "encoder", "roberta")
    late_offsets().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["pretrained", "lora"])
def test_training_and_scoring_are_refused_unless_asked_for(shifted, toy_files, tmp_path, method):
    flags = command_flags(shifted, toy_files, tmp_path)
    flags += ["--method", method, "--num_train_epochs", "1"]

    def run(*more):
        settings, origins = train.parse([*flags, *more])
        console = report.make_console(quiet=True)
        return train.train(settings, origins, Accelerator(cpu=True), 1, console)

    with pytest.raises(UserError, match=r"^train: 100.0% of the labels .*--on_bad_labels warn$"):
        run()
    assert run("--on_bad_labels", "warn")["eval_f1"] >= 0


def test_findings_stand_in_the_header(encoder, toy_files, tmp_path):
    flags = [*command_flags(encoder, toy_files, tmp_path), "--max_answer_length", "1"]
    document = json.loads(Path(toy_files["test_file"]).read_text())
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                qa["answers"] = [{"text": paragraph["context"], "answer_start": 0}]
    (tmp_path / "long.json").write_text(json.dumps(document))
    settings, _ = train.parse([*flags, "--test_file", str(tmp_path / "long.json")])
    prepared = train.prepare(settings, Accelerator(cpu=True))
    model = train.make_model(settings, prepared.base, "cpu")
    shown = train.facts(settings, prepared, model)
    assert shown["test answers"].startswith("warning: 100.0% of the answers are longer than 1 tok")
    assert "test labels" not in shown and "train labels" not in shown

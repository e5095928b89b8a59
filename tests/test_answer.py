"""Answers against recorded runs and plain transformers calls; refusals; the command."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console
from safetensors.torch import load_file, save_file

import train
from qa import UserError, answer, report
from qa.answer import Answer, Answerer
from tests.conftest import (
    WORDS,
    command_flags,
    make_adapter,
    make_encoder,
    toy_document,
    write_toy_files,
)

ROOT = Path(__file__).parent.parent
CONTEXT = " ".join(WORDS[:30]) + ". " + " ".join(WORDS[30:60])


def train_one(flags):
    settings, origins = train.parse([*flags, "--num_train_epochs", "1"])
    console = report.make_console(quiet=True)
    train.train(settings, origins, Accelerator(cpu=True), 1, console)
    return settings.run_dir()


@pytest.fixture(scope="module")
def flags(encoder, tmp_path_factory):
    """A command line whose test passages take several windows each."""
    folder = tmp_path_factory.mktemp("asked")
    files = write_toy_files(folder, train=40, validation=8, test=12)
    Path(files["test_file"]).write_text(json.dumps(toy_document(12, seed=2, words=100)))
    return command_flags(encoder, files, folder)


@pytest.fixture(scope="module")
def lora_run(flags):
    return train_one([*flags, "--method", "lora"])


@pytest.fixture(scope="module")
def answerer(encoder):
    return Answerer.load(encoder)


@pytest.fixture(scope="module")
def headless(encoder, tmp_path_factory):
    """The encoder's folder without the weights of its span head."""
    folder = shutil.copytree(encoder, tmp_path_factory.mktemp("headless") / "encoder")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "qa_outputs" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def close(one, other):
    return one[:3] == other[:3] and one.score == pytest.approx(other.score, rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "full"])
def test_a_run_answers_as_it_was_scored(flags, lora_run, method):
    run = lora_run if method == "lora" else train_one([*flags, "--method", method])
    asked = [
        (qa["id"], qa["question"], paragraph["context"])
        for article in toy_document(12, seed=2, words=100)["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
    ids, questions, contexts = map(list, zip(*asked))
    loaded = Answerer.load(run)
    best = loaded.answer(question=questions, context=contexts)
    texts = json.loads((run / "eval_predictions.json").read_text())
    assert dict(zip(ids, [one.text for one in best])) == texts
    found = loaded.answer(question=questions, context=contexts, n_best=20)
    recorded = json.loads((run / "eval_nbest_predictions.json").read_text())
    for id, spans in zip(ids, found, strict=True):
        assert [span[:3] for span in spans] == [
            (r["text"], r["start"], r["end"]) for r in recorded[id]
        ]
        assert [s.score for s in spans] == pytest.approx([r["probability"] for r in recorded[id]])


def test_a_merged_folder_answers_as_its_run(lora_run, tmp_path):
    run = Answerer.load(lora_run)
    question, context = "bob?", " ".join(WORDS[:30])  # one window for both
    expected = run.answer(question=question, context=context, n_best=5)
    run.model.network.merge_and_unload().save_pretrained(tmp_path)
    run.tokenizer.save_pretrained(tmp_path)
    merged = Answerer.load(tmp_path)
    assert merged.settings.max_seq_length == 384
    assert all(map(close, merged.answer(question=question, context=context, n_best=5), expected))


def brute_force(folder, question, context, length, stride, n_best):
    """The best spans over all windows by plain transformers calls: [(score, start, end)]."""
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=length, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    found = {}
    for i, offsets in enumerate(encoded["offset_mapping"]):
        names = [name for name in tokenizer.model_input_names if name in encoded]
        with torch.no_grad():
            output = model(**{name: torch.tensor([encoded[name][i]]) for name in names})
        start, end = output.start_logits[0].tolist(), output.end_logits[0].tolist()
        inside = [t for t, part in enumerate(encoded.sequence_ids(i)) if part == 1]
        for a in inside:
            for b in inside:
                if a <= b < a + 30:
                    place = offsets[a][0], offsets[b][1]
                    found[place] = max(start[a] + end[b], found.get(place, -1e9))
    ordered = sorted(found.items(), key=lambda item: -item[1])[:n_best]
    return len(encoded["offset_mapping"]), [(score, *place) for place, score in ordered]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_long_context_gets_the_best_span_over_all_windows(tmp_path, family):
    folder = make_encoder(tmp_path / family, family)
    context = " ".join(WORDS[i % 139] for i in range(0, 5600, 7))  # all words, several times
    windows, expected = brute_force(folder, "bob kad?", context, 384, 128, 20)
    assert windows >= 3
    found = Answerer.load(folder).answer(question="bob kad?", context=context, n_best=20)
    assert [(a.start, a.end) for a in found] == [place[1:] for place in expected]
    shares = torch.tensor([score for score, *_ in expected]).softmax(0).tolist()
    assert [a.score for a in found] == pytest.approx(shares, rel=1e-3)
    assert all(context[a.start : a.end] == a.text for a in found)


def test_windows_fit_the_models_positions(encoder, tmp_path):
    from transformers import AutoConfig, AutoModelForQuestionAnswering

    shutil.copytree(encoder, tmp_path / "short")
    config = AutoConfig.from_pretrained(encoder, max_position_embeddings=60)
    torch.manual_seed(0)
    AutoModelForQuestionAnswering.from_config(config).save_pretrained(tmp_path / "short")
    short = Answerer.load(tmp_path / "short")
    assert (short.settings.max_seq_length, short.settings.doc_stride) == (60, 20)
    _, expected = brute_force(tmp_path / "short", "bob?", CONTEXT, 60, 20, 1)
    assert short.answer(question="bob?", context=CONTEXT)[1:3] == expected[0][1:]


def test_one_by_one_and_batched_agree(answerer):
    contexts = [CONTEXT, "bob", " ".join([CONTEXT] * 8), "  naïve 東京 😀 café\n", CONTEXT]
    questions = ["bob?", "kad bob", "x", "東京?", "another"]
    batched = answerer.answer(question=questions, context=contexts)
    for question, context, found in zip(questions, contexts, batched, strict=True):
        alone = answerer.answer(question=question, context=context)
        assert isinstance(alone, Answer) and close(alone, found)
        assert context[found.start : found.end] == found.text and 0 < found.score <= 1
        several = answerer.answer(question=question, context=context, n_best=3)
        assert isinstance(several, list) and close(several[0], found)
        assert [a.score for a in several] == sorted((a.score for a in several), reverse=True)
    many = answerer.answer(question="x", context=CONTEXT, n_best=40)
    few = answerer.answer(question="x", context=CONTEXT, n_best=20)
    assert len(many) == 40 and all(map(close, few, many)) and sum(a.score for a in few) < 1.001
    assert len(answerer.answer(question="x", context="bob", n_best=20)) < 20


def test_one_context_serves_many_questions_and_is_read_once(answerer, monkeypatch):
    import qa.windows

    built = []
    build = qa.windows.build_windows
    monkeypatch.setattr(
        qa.windows, "build_windows", lambda *given: built.append(build(*given)) or built[-1]
    )
    questions = ["bob?", "kad?", "bob?"]
    found = answerer.answer(question=questions, context=CONTEXT)
    assert len(found) == 3 and close(found[0], found[2])
    for question, one in zip(questions, found):
        assert close(answerer.answer(question=question, context=CONTEXT), one)
    assert len({len(windows.context_ids) for windows in built}) == 1
    short = "bod bof."
    other, same = answerer.answer(question="bob?", context=[short, CONTEXT])
    assert close(same, found[0]) and close(other, answerer.answer(question="bob?", context=short))
    assert [[a] for a in answerer.answer(question=["bob?"], context=CONTEXT)] == [[found[0]]]
    assert answerer.answer(question=[], context=CONTEXT) == []


def test_the_callers_later_accelerator_is_free(answerer):
    AcceleratorState._reset_state(reset_partial_state=True)
    answerer.answer(question="bob?", context=CONTEXT)
    assert not AcceleratorState._shared_state
    assert Accelerator(cpu=True, mixed_precision="bf16").mixed_precision == "bf16"
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_long_question_is_cut_with_a_warning(answerer):
    with pytest.warns(
        UserWarning, match=r"1 questions are too long and were cut \(first: boka bok"
    ):
        found = answerer.answer(question=["bob?", "boka " * 500], context=CONTEXT)
    assert all(CONTEXT[a.start : a.end] == a.text for a in found)


def test_a_plain_adapter_answers_as_its_merged_model(encoder, headless, tmp_path):
    from qa.model import load_base

    adapter = make_adapter(tmp_path / "adapter", headless)
    (tmp_path / "adapter/checkpoint-9").mkdir()
    (tmp_path / "adapter/checkpoint-9/config.json").write_text("{}")
    base = load_base(str(adapter))
    base.model.save_pretrained(tmp_path / "merged")
    base.tokenizer.save_pretrained(tmp_path / "merged")
    asked = {"question": ["bob?", "kad?"], "context": CONTEXT}
    found = [Answerer.load(name).answer(**asked) for name in (adapter, tmp_path / "merged")]
    assert all(map(close, *found))
    bare = make_adapter(tmp_path / "bare", headless, modules_to_save=None)
    with pytest.raises(UserError, match="its span head was never trained"):
        Answerer.load(bare)


def test_a_run_answers_and_is_exported_in_its_own_case(flags, encoder, tmp_path):
    from qa.export import export

    kept = [*flags, "--output_dir", str(tmp_path / "runs"), "--do_lower_case", "false"]
    run = train_one([*kept, "--method", "lora"])
    export(run, tmp_path / "merged")
    for name, same in ((run, False), (tmp_path / "merged", False), (encoder, True)):
        tokenizer = Answerer.load(name).tokenizer
        assert (tokenizer("BOB").input_ids == tokenizer("bob").input_ids) == same


def test_weights_of_a_run_that_are_no_numbers(lora_run, tmp_path):
    run = shutil.copytree(lora_run, tmp_path / "run")
    weights = load_file(run / "adapter_model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, run / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"adapter_model.safetensors: has weights that are NaN or"):
        Answerer.load(run)


def test_a_context_of_unknown_tokens_is_warned_of(answerer):
    with pytest.warns(UserWarning, match="most of the context's tokens are unknown to the model"):
        answerer.answer(question="bob?", context="กรุงเทพมหานคร เป็นเมืองหลวง ของประเทศไทย bob")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answerer.answer(question="bob?", context="กรุงเทพมหานคร bob kad lif")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"question": ""}, "question: is empty"),
        ({"question": " \n"}, "question: is empty"),
        ({"context": ""}, "context: is empty"),
        ({"question": ["a", ""]}, r"question\[1\]: is empty"),
        ({"question": None}, "question: must be text or a list of texts, not NoneType"),
        ({"context": b"bytes"}, "context: must be text or a list of texts, not bytes"),
        ({"context": ["a", 7]}, r"context\[1\]: must be text, not int"),
        ({"question": "\ud800"}, "question: is no valid Unicode text"),
        ({"question": ["a"] * 3, "context": ["b"] * 2}, "2 contexts for 3 questions"),
        ({"question": ["a"], "context": ["b"] * 2}, "2 contexts for 1 questions"),
        ({"n_best": 0}, "n_best: '0' must be at least 1"),
        ({"n_best": True}, "n_best: 'True' is not a whole number"),
        ({"n_best": 10**9}, "n_best: '1000000000' must be at most 1000"),
        ({"context": ["bob", "\u200b"]}, r"context\[1\]: holds no text that the model can read"),
    ],
)
def test_what_cannot_be_asked(answerer, given, message):
    with pytest.raises(UserError, match=message):
        answerer.answer(**{"question": "bob?", "context": CONTEXT, **given})


def test_an_untrained_head_is_refused_and_a_trained_one_is_not(headless, flags, tmp_path):
    with pytest.raises(UserError, match="its span head was never trained"):
        Answerer.load(headless)
    over = [*flags, "--model_name_or_path", str(headless), "--output_dir", str(tmp_path)]
    with pytest.raises(UserError, match="its span head was never trained"):
        Answerer.load(train_one([*over, "--method", "pretrained"]))
    frozen = [*over, "--method", "lora", "--no_train_head", "--run_name", "frozen"]
    with pytest.raises(UserError, match="its span head was never trained"):
        Answerer.load(train_one(frozen))
    found = Answerer.load(train_one([*over, "--method", "lora"]))
    assert found.answer(question="bob?", context=CONTEXT).text


def test_folders_that_are_no_models(lora_run, tmp_path):
    torn = shutil.copytree(lora_run, tmp_path / "torn")
    (torn / "adapter_model.safetensors").unlink()
    for name, message in (
        (torn, "holds no trained weights .adapter_model.safetensors.*--resume"),
        (lora_run.parent, "holds several folders; give one: .*seed-42"),
        (tmp_path / "a/b", "there is no such folder"),
        (lora_run / "config.json", "is no folder"),
        ("", "no encoder named"),
    ):
        with pytest.raises(UserError, match=message):
            Answerer.load(name)
    (torn / "config.json").write_text("[")
    with pytest.raises(UserError, match="cannot be loaded"):
        Answerer.load(torn)


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command in this process: its status, standard output and standard error."""

    def run(*flags, stdin=b""):
        monkeypatch.setattr("sys.argv", ["qa.answer", *map(str, flags)])
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(warnings, "showwarning", None)  # to be put back
        with pytest.raises(SystemExit) as stopped:
            report.run_command(answer.main)
        return stopped.value.code, *capsys.readouterr()

    return run


def test_the_commands_mistakes_are_one_line(command, encoder, headless, tmp_path):
    good = ["--run", encoder, "--question", "bob?"]
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    (tmp_path / "blank").write_text(" \n")
    asked = ["--run", encoder, "--context", "bob"]
    for flags, message in (
        (good, "one of the arguments --context --context_file is required"),
        ([*good, "--context", "x", "--context_file", "y"], "not allowed with argument --context"),
        (["--question", "x", "--context", "y"], "required: --run"),
        (
            [*good, "--context_file", tmp_path / "none"],
            "none cannot be read as UTF-8 text: No such",
        ),
        ([*good, "--context_file", tmp_path], "cannot be read as UTF-8 text: Is a directory"),
        ([*good, "--context_file", tmp_path / "latin"], "cannot be read as UTF-8 text: .*0xe9"),
        ([*good, "--context_file", tmp_path / "blank"], "--context_file: is empty"),
        ([*good, "--context", ""], "--context: is empty"),
        ([*asked, "--question", " "], "--question: is empty"),
        ([*asked, "--question", "x", "--n_best", "no"], "n_best: 'no' is not a whole number"),
        ([*asked, "--questions", "x"], "unknown option --questions .did you mean --question"),
        (asked, "standard input: holds no question; give --question"),
        (["--run", headless, "--question", "x", "--context", "y"], "head was never trained"),
    ):
        status, out, err = command(*flags)
        assert (status, out) == (2, ""), err
        assert err.startswith("error: ") and err.count("\n") == 1 and re.search(message, err), err
    status, _, err = command(*asked, stdin=b"\xff?\n")
    assert status == 2 and "question: is no valid Unicode text" in err


def test_into_a_pipe_go_texts_and_json(command, encoder, answerer, tmp_path):
    file = tmp_path / "context.txt"
    file.write_bytes(b"\xef\xbb\xbf" + CONTEXT.replace(" ", "\r\n").encode())
    context = CONTEXT.replace(" ", "\r\n")
    asked = ["--run", encoder, "--context_file", file]
    status, out, _ = command(*asked, "--n_best", "3", stdin=b"bob?\n\n  kad? \n")
    expected = answerer.answer(question=["bob?", "kad?"], context=context, n_best=3)
    lines = [" ".join(a.text.split()) for found in expected for a in found]
    assert status == 0 and out.splitlines() == lines
    status, out, err = command(*asked, "--json", "--question", "boka " * 500)
    line = json.loads(out)
    assert line["question"] == "boka " * 500 and list(line)[1:] == list(Answer._fields)
    assert context[line["start"] : line["end"]] == line["text"]
    assert err.startswith("warning: 1 questions are too long") and err.count("\n") == 1


def printed(context, *answers):
    console = Console(file=io.StringIO(), force_terminal=True, highlight=False, width=200)
    report.print_answers(console, "question", context, answers)
    return console.file.getvalue()


def test_on_a_terminal_the_answer_is_marked_in_its_sentence():
    context = "He came. [bold]She[/] paid :smile: $3.50 (twice). They left!"
    start = context.index(":smile:")
    one = Answer(":smile: $3.50", start, start + 13, 0.5)
    out = printed(context, one)
    assert out.splitlines()[0] == "[bold]She[/] paid \x1b[1;7m:smile: $3.50\x1b[0m (twice)."
    assert "score 0.50, characters 27–40" in out
    table = printed(context, one, Answer("[bold]", 9, 15, 0.25))
    assert ":smile: $3.50" in table and "[bold]" in table and "0.25" in table
    family = "a 👩\u200d👧 b"  # joined by a character without width
    assert printed(family, Answer("b", 6, 7, 0.5)).startswith("a 👩\u200d👧 \x1b")
    hostile = "a \x1b[2J\x07 b\n\nc"
    assert printed(hostile, Answer("\x1b[2J", 2, 6, 0.5)).startswith("a \x1b[1;7m�[2J\x1b[0m� b\n")


def test_sentences():
    def around(context, text):
        start = context.index(text)
        return report.sentence(context, start, start + len(text))

    assert around("One. Two three. Four.", "Two three") == ("", ".")
    assert around("One. Two three. Four.", "three. Four") == ("Two ", ".")
    assert around("One. Two Inc. Four.", "Inc.") == ("Two ", "")
    assert around("costs 3.50 now", "50") == ("costs 3.", " now")
    assert around("title\ntext here\nmore", "text") == ("", " here")
    assert around("一。二三。四", "二") == ("", "三。")
    before, after = around("x " * 500 + "here" + " y" * 500, "here")
    assert before.startswith("…") and after.endswith("…") and len(before + after) < 500


def test_the_command_in_a_process_of_its_own(lora_run):
    found = Answerer.load(lora_run).answer(question=["bob?", "kad?"], context=CONTEXT)
    done = subprocess.run(
        [sys.executable, "-m", "qa.answer", "--run", lora_run, "--context", CONTEXT, "--json"],
        input="bob?\nkad?\n", capture_output=True, text=True, cwd=ROOT, timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["text"] for line in lines] == [a.text for a in found]
    assert [line["score"] for line in lines] == pytest.approx([a.score for a in found], rel=1e-4)

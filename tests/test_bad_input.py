"""Whatever the input: status 2 and one line that names the place, the problem and the remedy."""

import io
import json
import os
import re
import shutil

import pytest
from accelerate.state import AcceleratorState

import train
from qa.answer import main as ask
from qa.export import main as export
from qa.report import run_command
from tests.conftest import byte_bpe, command_flags, make_adapter, make_encoder, toy_document


@pytest.fixture
def refuse(encoder, toy_files, tmp_path, monkeypatch, capsys):
    """Run train.py with flags over a good command line; the one line it refuses them with."""
    AcceleratorState._reset_state(reset_partial_state=True)
    good = [*command_flags(encoder, toy_files, tmp_path / "runs"), "--num_train_epochs", "1"]

    def run(*flags, main=train.main):
        command = good if main is train.main else []
        monkeypatch.setattr("sys.argv", ["command", *command, *map(str, flags)])
        with pytest.raises(SystemExit) as stopped:
            run_command(main)
        error = capsys.readouterr().err
        assert stopped.value.code == 2, error
        assert error.startswith("error: ") and error.count("\n") == 1, error
        assert "Traceback" not in error and len(error) < 600
        return error[7:-1]

    return run


def document(change=lambda d: None):
    made = toy_document(4, titles=2)
    changed = change(made)
    return json.dumps(made if changed is None else changed)


def qa(d):
    return d["data"][1]["paragraphs"][0]["qas"][0]


def answer(d):
    return qa(d)["answers"][0]


def put(target, **values):
    def change(d):
        target(d).update(values)

    return change


def paragraph(d):
    return d["data"][0]["paragraphs"][1]


PLACE = r"data\[1\]\.paragraphs\[0\]\.qas\[0\]"
BAD_FILES = {
    "empty": ("", "no valid JSON: .* line 1, column 1"),
    "truncated": (document()[:200], "no valid JSON: .* at line 1, column"),
    "not JSON": ("Hello, world", "no valid JSON"),
    "BOM": ("\ufeff" + document(), "save it as UTF-8 without a byte-order mark"),
    "UTF-16": (document().encode("utf-16"), "no UTF-8 text: byte 0 is 0xff; save it as UTF-8"),
    "Latin-1": ('{"data": "é"}'.encode("latin-1"), "no UTF-8 text: byte 10 is 0xe9"),
    "raw NUL": (document().replace("article 0", "a\0b"), "no valid JSON: Invalid control char"),
    "all NUL": (b"\0" * 100, "no valid JSON"),
    "nested too deeply": ("[" * 200_000, "no valid JSON"),
    "endless number": ('{"data": ' + "9" * 5000 + "}", "no valid JSON: Exceeds the limit"),
    "a list": ("[]", "file: must be an object, not a list"),
    "no data": ("{}", "data: must be a list, not null"),
    "data is text": ('{"data": "x"}', "data: must be a list, not text"),
    "no questions": ('{"data": []}', "holds no question"),
    "article is null": (document(lambda d: d["data"].insert(0, None)), r"data\[0\]: must be an obj"),
    "title is a list": (document(lambda d: d["data"][1].update(title=[])), r"data\[1\]: title must"),
    "paragraphs missing": (
        document(lambda d: d["data"][1].pop("paragraphs") and None),
        r"data\[1\]\.paragraphs: must be a list, not null",
    ),
    "context is a list": (
        document(put(paragraph, context=["x"])),
        r"data\[0\]\.paragraphs\[1\]: context must be text, not a list",
    ),
    "context is empty": (document(put(paragraph, context=" \n")), "context is empty"),
    "context has a NUL": (document(put(paragraph, context="a\0b")), "context contains a NUL"),
    "context has half a surrogate": (
        document(put(paragraph, context="\ud800")), "half a surrogate pair"),
    "qas is an object": (document(put(paragraph, qas={})), r"paragraphs\[1\]\.qas: must be a list"),
    "question missing": (document(put(qa, question=None)), f"{PLACE}: question must be text"),
    "question is empty": (document(put(qa, question="")), f"{PLACE}: question is empty"),
    "id is a fraction": (document(put(qa, id=7.5)), f"{PLACE}: id must be .*, not the number 7.5"),
    "id is a float": (document(put(qa, id=7.0)), f"{PLACE}: id must be .*, not the number 7.0"),
    "id is true": (document(put(qa, id=True)), f"{PLACE}: id must be .*, not true/false"),
    "id is null": (document(put(qa, id=None)), f"{PLACE}: id must be .*, not null"),
    "id is blank": (document(put(qa, id=" ")), f"{PLACE}: id is empty"),
    "duplicate id": (document(put(qa, id="q0-0")), f"{PLACE}: id 'q0-0' stands twice"),
    "answers missing": (
        document(lambda d: qa(d).pop("answers") and None),
        rf"{PLACE}\.answers: must be a list, not null",
    ),
    "unanswerable": (document(put(qa, answers=[])), "has no answer .SQuAD v2.*on_bad_example skip"),
    "impossible": (document(put(qa, is_impossible=True)), "has no answer .SQuAD v2"),
    "answer is text": (document(put(qa, answers=["x"])), rf"{PLACE}\.answers\[0\]: must be an obj"),
    "answer text is empty": (document(put(answer, text="")), "text is empty"),
    "start missing": (document(put(answer, answer_start=None)), "must be a whole number, not null"),
    "start is text": (document(put(answer, answer_start="3rd")), "must be a whole number, not text"),
    "start is text of a float": (
        document(put(answer, answer_start="3.0")), "must be a whole number, not text"),
    "start is blank": (document(put(answer, answer_start=" ")), "must be a whole number, not text"),
    "start is negative text": (document(put(answer, answer_start="-1")), "outside the context of"),
    "start is infinite": (document(put(answer, answer_start=float("inf"))), "not the number inf"),
    "second answer is bad": (
        document(lambda d: qa(d)["answers"].append({"text": "x", "answer_start": -1})),
        rf"{PLACE}\.answers\[1\]: .*; correct it, or drop such answers with --on_bad_example skip"),
    "start is true": (document(put(answer, answer_start=True)), "must be a whole number, not true"),
    "start is a fraction": (document(put(answer, answer_start=1.5)), "not the number 1.5"),
    "start is NaN": (document(put(answer, answer_start=float("nan"))), "not the number nan"),
    "start is negative": (document(put(answer, answer_start=-1)), "outside the context of"),
    "start past the end": (document(put(answer, answer_start=10**6)), "outside the context of"),
    "start is huge": (document(put(answer, answer_start=10**400)), "outside the context of"),
    "answer elsewhere": (document(put(answer, text="zzz")), "the context reads '.*', not 'zzz'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_data_files(refuse, tmp_path, case):
    content, message = BAD_FILES[case]
    path = tmp_path / "bad.json"
    path.write_bytes(
        content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    )
    line = refuse("--test_file", path)
    assert re.search(message, line) and str(path) in line
    assert ("--on_bad_example skip" in line) == ("data[" in line), "what skip can mend says so"


def test_paths_that_are_no_files(refuse, tmp_path):
    assert "No such file" in refuse("--train_file", tmp_path / "none.json")
    assert "is a folder; give a JSON file" in refuse("--train_file", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refuse("--train_file", tmp_path / "pipe")
    assert "cannot be read" in refuse("--train_file", "/proc/self/mem")
    assert "cannot be read" in refuse("--train_file", "x" * 300)
    assert "NOT_SET_ANYWHERE is not set" in refuse("--train_file", "$NOT_SET_ANYWHERE/a.json")


BAD_FLAGS = [
    ("--method lara", "method: 'lara' is not one of pretrained, full, head, bitfit"),
    ("--methd lora", "unknown option --methd .did you mean --method"),
    ("--learning_rate -1", "learning_rate: '-1' must be above 0 .from --learning_rate"),
    ("--learning_rate 0", "must be above 0"),
    ("--learning_rate fast", "learning_rate: 'fast' is not a number"),
    ("--learning_rate nan", "is not a finite number"),
    ("--learning_rate 1e999", "is not a finite number"),
    ("--learning_rate", "expected one argument"),
    ("--seed -1", "seed: '-1' must be at least 0"),
    ("--seed 99999999999999999999", "is too large"),
    ("--num_train_epochs 0", "must be at least 1"),
    ("--num_train_epochs 1.5", "is not a whole number"),
    ("--max_seq_length 100000", "max_seq_length: 100000 tokens exceed the encoder's 512 positions"),
    ("--max_seq_length 20", "leaves windows of 20 tokens no way forward"),
    ("--doc_stride 60", "leaves windows of 64 tokens no way forward"),
    ("--validation_fraction 2", "must be at most 0.9"),
    ("--max_train_samples 0", "must be at least 1"),
    ("--on_bad_example ignore", "is not one of error, skip"),
    ("--mixed_precision fp64", "is not one of no, bf16, fp16"),
    ("--mixed_precision fp16", "fp16 needs a GPU; use no or bf16"),
    ("--report_to telegraph", "'telegraph' is unknown; trackers: aim"),
    ("--report_to wandb", "wandb is not installed; pip install wandb"),
    ("--run_name a/b", "run_name: 'a/b' cannot name a folder; use letters"),
    ("--study nowhere", "study: 'nowhere' is unknown; studies/ has: embedded"),
    ("--output_dir /proc/x", "output_dir: /proc/x"),
    ("--output_dir ~nobody-here/x", "~nobody-here/x: .*write the folder out"),
    ("--config none.json", "none.json: No such file"),
    ("--set r=0", "r: '0' must be at least 1"),
    ("--set r=99999", "must be at most 4096"),
    ("--set rank=8", "rank: not a hyperparameter of lora.*it has: r, lora_alpha"),
    ("--set r", "'r' is not of the form name=value"),
    ("--set lora_dropout=1", "must be at most 0.9"),
    ("--set target_modules=nothing", "no linear layer 'nothing'; this encoder has: dense, key"),
    ("--method head --no_train_head", "head trains nothing without the head"),
    ("--method head --set r=8", "not a hyperparameter of head; it has: none"),
    ("--method prompt --set num_virtual_tokens=513", "num_virtual_tokens: 513 tokens exceed the"),
    ("--method prompt --set num_virtual_tokens=0", "must be at least 1"),
    ("--method prompt --set prompt_tuning_init=TEXT", "is not one of SAMPLE_VOCAB, RANDOM"),
    ("--learning_rate 1e30 --max_grad_norm 1e30", "training diverged .*lower it"),
    ("--dataset_name no/such", "no/such cannot be loaded.*--train_file.*--study embedded"),
    ("--model_name_or_path none", "no encoder named; give a hub id, a folder, embedded or minilm"),
    ("--model_name_or_path no/such", "no/such cannot be loaded.*is the hub reachable"),
    ("--model_name_or_path ./nowhere", "./nowhere is no folder; give a folder saved by"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS)
def test_bad_settings(refuse, flags, message):
    assert re.search(message, refuse(*flags.split()))


def test_a_disk_that_is_full_is_one_line(capsys):
    def main():
        with open("/dev/full", "w") as file:
            file.write("x")

    with pytest.raises(SystemExit) as stopped:
        run_command(main)
    assert stopped.value.code == 2
    line = "error: standard output, or a file: No space left on device\n"
    assert capsys.readouterr().err == line


def test_half_of_the_data(toy_files, tmp_path, monkeypatch, capsys):
    flags = ["--train_file", toy_files["train_file"], "--output_dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["train.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        run_command(train.main)
    assert stopped.value.code == 2
    assert "test_file: no test data; give --test_file" in capsys.readouterr().err


def test_bad_model_folders(refuse, tmp_path):
    def folder(name, change):
        path = make_encoder(tmp_path / name)
        change(path)
        return refuse("--model_name_or_path", path)

    def replace_config(**values):
        def change(path):
            config = json.loads((path / "config.json").read_text())
            (path / "config.json").write_text(json.dumps({**config, **values}))

        return change

    assert "has no config.json" in folder("a", lambda p: (p / "config.json").unlink())
    assert "cannot be loaded" in folder("b", lambda p: (p / "config.json").write_text("{"))
    assert "cannot be loaded" in folder("c", lambda p: (p / "model.safetensors").unlink())
    assert "cannot be loaded" in folder(
        "d", lambda p: (p / "model.safetensors").write_bytes(b"x" * 99)
    )
    assert "do not fit its config.json" in folder("e", replace_config(hidden_size=64))
    assert "do not fit its config.json" in folder("f", replace_config(num_hidden_layers=3))
    assert "cannot be loaded" in folder("g", replace_config(model_type="no-such-type"))
    assert "cannot be loaded" in folder("h", replace_config(model_type="vit"))
    (tmp_path / "pickle").mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "c" / file, tmp_path / "pickle")
    (tmp_path / "pickle/pytorch_model.bin").write_bytes(b"a pickle is never opened")
    line = refuse("--model_name_or_path", tmp_path / "pickle")
    assert "safetensors" in line


CODE = """
from pathlib import Path

from transformers import BertConfig, BertForQuestionAnswering, BertTokenizer

Path({marker!r}).write_text("the folder's code has run")


class Config(BertConfig):
    model_type = "foreign"


class Model(BertForQuestionAnswering):
    config_class = Config


class Tokenizer(BertTokenizer):
    pass
"""


def change_json(path, **values):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **values}))


def foreign(folder, marker, part):
    """An encoder whose config.json, or tokenizer_config.json, names a class of its own code."""
    make_encoder(folder)
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    if part == "config.json":
        names = {"AutoConfig": "own.Config", "AutoModelForQuestionAnswering": "own.Model"}
        names["AutoModel"] = "own.Model"
        change_json(folder / part, model_type="foreign", auto_map=names)
    else:
        names = {"AutoTokenizer": ["own.Tokenizer", None]}
        change_json(folder / part, tokenizer_class="Tokenizer", auto_map=names)
    return folder


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_a_model_folders_own_code_never_runs(refuse, tmp_path, monkeypatch, part):
    folder, marker = tmp_path / "foreign", tmp_path / "marker"
    foreign(folder, marker, part)
    make_adapter(tmp_path / "adapter", make_encoder(tmp_path / "base"))
    change_json(tmp_path / "adapter/adapter_config.json", base_model_name_or_path=str(folder))
    (tmp_path / "run").mkdir()
    settings = {"method": "lora", "hyperparameters": {}, "model_name_or_path": str(folder)}
    (tmp_path / "run/config.json").write_text(json.dumps({"settings": settings}))
    asked = ["--question", "bob?", "--context", "bob kad"]
    for main, flags in (
        (train.main, ["--model_name_or_path", folder]),
        (train.main, ["--model_name_or_path", tmp_path / "adapter"]),
        (train.main, ["--bertscore_model", folder]),
        (ask, ["--run", folder, *asked]),
        (ask, ["--run", tmp_path / "run", *asked]),
        (export, ["--run", tmp_path / "run", "--to", tmp_path / "merged"]),
    ):
        typed = io.StringIO("y\n" * 9)
        monkeypatch.setattr("sys.stdin", typed)
        line = refuse(*flags, main=main)
        assert "needs code of its own, which is never run" in line and "foreign" in line
        assert not marker.exists() and typed.tell() == 0


def test_a_known_family_loads_by_the_librarys_own_code(tmp_path, monkeypatch):
    from qa.model import load_base

    folder = foreign(tmp_path / "known", tmp_path / "marker", "config.json")
    change_json(folder / "config.json", model_type="bert")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    assert type(load_base(str(folder)).model).__module__.startswith("transformers.models.bert")
    assert not (tmp_path / "marker").exists()


def test_a_data_sets_script_never_runs(refuse, tmp_path, monkeypatch):
    """`datasets` refuses scripts, which stand in a folder or repository under its own name."""
    import datasets

    folder, marker = tmp_path / "scripted", tmp_path / "marker"
    folder.mkdir()
    script = folder / "scripted.py"
    script.write_text(CODE.format(marker=str(marker)))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    for name in (folder, script):
        assert "cannot be loaded" in refuse("--dataset_name", name)
    (folder / "train.json").write_text('[{"x": 1}]')
    with pytest.raises(RuntimeError, match="scripts are no longer supported"):
        datasets.load_dataset(str(folder))
    assert not marker.exists()


def spoil(folder, value):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.weight"][3, 4] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def without_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def with_more_words(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["a-new-word"])
    tokenizer.save_pretrained(folder)


def without_joining(folder):
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    core = byte_bpe().backend_tokenizer
    core.post_processor = processors.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    tokenizer.save_pretrained(folder)
    change_json(folder / "config.json", vocab_size=400)


UNFIT = {
    "no tokenizer": (without_tokenizer, "has no tokenizer: its vocabulary is empty; save the"),
    "its config alone": (
        lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer: its vocabulary"),
    "more words than embeddings": (
        with_more_words, r"a tokenizer with ids up to \d+ and only \d+ word embeddings"),
    "NaN": (lambda folder: spoil(folder, float("nan")), r"NaN or infinite \(.*layer.1.output"),
    "infinity": (lambda folder: spoil(folder, float("-inf")), r"NaN or infinite \(.*layer.1.out"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_models_that_would_compute_nonsense(refuse, tmp_path, case):
    change, message = UNFIT[case]
    change(make_encoder(tmp_path / "unfit"))
    for main, field, flags in (
        (train.main, "model_name_or_path", ["--model_name_or_path", tmp_path / "unfit"]),
        (train.main, "bertscore_model", ["--bertscore_model", tmp_path / "unfit"]),
        (ask, "model_name_or_path",
         ["--run", tmp_path / "unfit", "--question", "bob?", "--context", "bob kad"]),
    ):  # fmt: skip
        line = refuse(*flags, main=main)
        assert line.startswith(f"{field}: {tmp_path / 'unfit'} has") and re.search(message, line)


def test_a_tokenizer_that_does_not_join_pairs(refuse, tmp_path):
    without_joining(make_encoder(tmp_path / "apart", "roberta"))
    line = refuse("--model_name_or_path", tmp_path / "apart")
    assert "joins question and context in a way that is not supported" in line


def test_a_run_is_no_model(refuse, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"settings": {}}')
    for field in ("model_name_or_path", "bertscore_model"):
        line = refuse(f"--{field}", folder)
        assert line.startswith(f"{field}: {folder} is a run of this program, not a model")
        assert f"python -m qa.export --run {folder} --to FOLDER" in line


def test_adapters_that_cannot_be_merged(refuse, encoder, tmp_path):
    def adapter(name, base=encoder, **values):
        folder = make_adapter(tmp_path / name, encoder)
        change_json(folder / "adapter_config.json", base_model_name_or_path=base, **values)
        return folder

    def refused(folder):
        return refuse("--model_name_or_path", folder)

    first = adapter("first", str(encoder))
    assert "its base: /nowhere is no folder" in refused(adapter("a", "/nowhere"))
    assert "its base: no/such cannot be loaded" in refused(adapter("b", "no/such"))
    assert "does not name its base" in refused(adapter("c", None))
    assert f"its base: {first} is an adapter, too" in refused(adapter("d", str(first)))
    assert "and does not fit it (see " in refused(
        adapter("e", str(encoder), target_modules=["key"])
    )
    assert "cannot be loaded" in refused(adapter("f", str(encoder), peft_type="NEW"))
    assert "is a PEFT adapter; give its base" in refuse("--bertscore_model", first)
    prompt = {"task_type": "QUESTION_ANS", "num_virtual_tokens": 4, "num_layers": 2}
    prompt |= {"token_dim": 32, "num_attention_heads": 2, "peft_type": "PREFIX_TUNING"}
    line = refused(adapter("prefix", str(encoder), **prompt))
    assert f"is a PEFT adapter (PREFIX_TUNING on {encoder}), which cannot be merged" in line
    shutil.copytree(encoder, tmp_path / "both")
    shutil.copy(first / "adapter_config.json", tmp_path / "both")
    assert "holds a whole model and a PEFT adapter beside it" in refused(tmp_path / "both")
    (first / "adapter_model.safetensors").rename(first / "adapter_model.bin")
    assert "without adapter_model.safetensors" in refused(first)


def test_bad_datasets_folders(refuse, tmp_path):
    import datasets

    (tmp_path / "nothing").mkdir()
    assert "cannot be loaded" in refuse("--dataset_name", tmp_path / "nothing")
    row = {"id": ["1"], "context": ["x"], "question": ["x"]}
    datasets.Dataset.from_dict(row).save_to_disk(tmp_path / "single")
    assert "has no split 'train'" in refuse("--dataset_name", tmp_path / "single")
    for name, more, message in (
        ("columns", {}, "split train: no column answers"),
        ("answers", {"answers": ["x"]}, r"data\[0\].*answers: must be a list, not text"),
        ("starts", {"answers": [{"text": ["x"]}]}, r"data\[0\].*answer_start must be .*, not null"),
        ("null", {"context": [None], "answers": [{"text": ["x"], "answer_start": [0]}]},
         r"data\[0\].*context must be text, not null"),
        ("start", {"answers": [{"text": ["x"], "answer_start": [5]}]}, r"data\[0\].*outside the context"),
    ):  # fmt: skip
        split = datasets.Dataset.from_dict({**row, **more})
        datasets.DatasetDict(train=split, validation=split).save_to_disk(tmp_path / name)
        assert re.search(message, refuse("--dataset_name", tmp_path / name))


@pytest.fixture
def score(tmp_path, monkeypatch, capsys):
    """Run evaluate.py on references and predictions (text, or an object); its status and output."""
    import runpy

    def run(references, predictions, *flags):
        paths = [tmp_path / "r.json", tmp_path / "p.json"]
        for path, content in zip(paths, (references, predictions), strict=True):
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        argv = ["evaluate.py", "--references", str(paths[0]), "--predictions", str(paths[1])]
        monkeypatch.setattr("sys.argv", [*argv, *flags])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path("evaluate.py", run_name="__main__")
        return stopped.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ("5", "must be an object of the form"),
        ('"q0-0"', "must be an object of the form"),
        ('{"q0-0": 5}', "the prediction of 'q0-0' must be text, not the number 5"),
        ('{"q0-0": null}', "the prediction of 'q0-0' must be text, not null"),
        ("{", "no valid JSON"),
        ("[5]", "[0]: must be an object, not the number 5"),
        ('[{"prediction_text": "x"}]', "[0]: id must be text or a whole number, not null"),
        ('[{"id": 1.0, "prediction_text": "x"}]', "[0]: id must be text or a whole number, not the"),
        ('[{"id": "q0-0"}]', "the prediction of 'q0-0' must be text, not null"),
        ('[{"id": 1, "prediction_text": ""}, {"id": "1", "prediction_text": ""}]',
         "[1]: id '1' stands twice"),
    ],
)  # fmt: skip
def test_bad_prediction_files(score, tmp_path, predictions, message):
    status, out, err = score(document(), predictions)
    assert status == 2 and not out
    assert f"p.json: {message}" in err and err.count("\n") == 1


def at(target, key, value):
    return document(lambda d: target(d).__setitem__(key, value))


BAD_REFERENCES = {
    "a list": ("[]", "file: must be an object, not a list"),
    "no data": ("{}", "data: must be a list, not null"),
    "no questions": ('{"data": []}', "holds no question"),
    "article is null": ('{"data": [null]}', r"data\[0\]: must be an object, not null"),
    "flat": ('{"data": [{"id": "q0-0"}]}', r"data\[0\]\.paragraphs: must be a list, not null"),
    "qas missing": (
        document(lambda d: paragraph(d).pop("qas") and None), r"\.qas: must be a list, not null"),
    "id is null": (at(qa, "id", None), f"{PLACE}: id must be text or a whole number, not null"),
    "id is a float": (at(qa, "id", 1.0), f"{PLACE}: id must be text or a whole number, not the nu"),
    "answers missing": (
        document(lambda d: qa(d).pop("answers") and None), rf"{PLACE}\.answers: must be a list"),
    "answers are columns": (
        at(qa, "answers", {"text": ["x"]}), rf"{PLACE}\.answers: must be a list, not an object"),
    "answer is text": (at(qa, "answers", ["x"]), rf"{PLACE}\.answers\[0\]: must be an object"),
    "answer text is a number": (at(answer, "text", 5), r"\.answers\[0\]: text must be text, not the"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_REFERENCES)
def test_bad_reference_files(score, case):
    """What SQuAD's own scripts do not take either; all questions have a prediction."""
    references, message = BAD_REFERENCES[case]
    status, out, err = score(references, {f"q0-{n}": "x" for n in range(4)})
    assert status == 2 and not out and err.count("\n") == 1
    assert re.search(rf"r\.json: .*{message}", err) and "on_bad_example" not in err


def test_a_report_of_what_it_cannot_show_is_refused_in_one_line(score, tmp_path):
    unanswerable = at(qa, "answers", [])
    texts = {f"q0-{n}": "x" for n in range(4)}
    for references, predictions, message in (
        (unanswerable, texts, "no questions without an answer yet; leave --name out"),
        (at(qa, "question", "\ud800"), texts, "r.json: contains half a surrogate pair"),
        (document(), {**texts, "q0-0": "\ud800"}, "p.json: contains half a surrogate pair"),
        (at(qa, "answers", None), {}, "answers: must be a list, not null"),
    ):
        status, out, err = score(references, predictions, "--name", "x")
        assert status == 2 and not out and "Traceback" not in err
        assert message in err.splitlines()[-1]
        assert score(references, predictions)[0] == 0

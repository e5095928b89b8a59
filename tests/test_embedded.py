"""The default study: its encoder, its data, its result, and that it needs no network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import train
from qa import UserError, squad
from qa.model import load_base
from qa.study import ROOT

ENCODER = ROOT / "qa/embedded/encoder"
TITLES = json.loads((ROOT / "qa/embedded/encoder_titles.json").read_text())
SCORES = {"eval_exact_match", "eval_f1"}


def test_the_encoder_is_small_and_whole():
    from safetensors import safe_open

    assert sum(file.stat().st_size for file in ENCODER.iterdir()) < 10e6
    with safe_open(ENCODER / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118
    base = load_base("embedded")
    config = base.model.config
    shape = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
    assert (*shape, config.intermediate_size) == (2, 128, 2, 512)
    assert base.head_trained and {str(p.dtype) for p in base.model.parameters()} == {
        "torch.float32"
    }
    assert len(base.tokenizer) == config.vocab_size == 30522
    assert base.tokenizer("Übergrößen").input_ids == base.tokenizer("ubergroßen").input_ids


def test_the_encoder_knows_half_of_squad(squad_dir):
    """Half of train's articles, none of dev's; and the other half is there to learn from."""
    titles = {
        name: {
            e.title for e in squad.read_file(name, str(squad_dir / f"{name}-v1.1.json")).examples
        }
        for name in ("train", "dev")
    }
    known = set(TITLES["learn"]) | set(TITLES["held_out"])
    assert known < titles["train"] and not known & titles["dev"]
    assert len(known) == len(TITLES["learn"]) + len(TITLES["held_out"]) == len(titles["train"]) // 2


def test_the_encoder_answers(squad_dir, tmp_path, monkeypatch):
    """On 400 questions of dev, within sampling error of its card's F1."""
    flags = ["--method", "pretrained", "--model_name_or_path", "embedded"]
    flags += ["--train_file", str(squad_dir / "dev-v1.1.json"), "--max_train_samples", "10"]
    flags += ["--test_file", str(squad_dir / "dev-v1.1.json"), "--max_test_samples", "400"]
    flags += ["--max_validation_samples", "10", "--cache_dir", str(tmp_path / "cache")]
    settings, origins = train.parse([*flags, "--output_dir", str(tmp_path), "--num_threads", "1"])
    from qa.report import make_console

    results = train.train(settings, origins, *train.start(settings), make_console(quiet=True))
    card = (ENCODER / "README.md").read_text()
    f1 = float(next(line for line in card.splitlines() if "SQuAD dev |" in line).split("|")[3])
    assert f1 >= 45 and abs(results["eval_f1"] - f1) < 6


def test_the_default_study_needs_no_network_and_no_cache(tmp_path):
    """A process that may not open a socket, with an empty home."""
    program = """
import runpy, socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("the network was asked for")
socket.socket.connect = socket.getaddrinfo = refuse
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""
    flags = "--method prompt_tuning --max_train_samples 40 --max_validation_samples 20"
    flags += f" --max_test_samples 20 --num_train_epochs 1 --num_threads 1 --output_dir {tmp_path}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", program, *flags.split(), "--cache_dir", str(tmp_path / "cache")],
        cwd=ROOT, text=True, capture_output=True, env={**environment, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    header = done.stdout.split("epoch")[0]
    assert "model " in header and "embedded (bert, 4,3" in header
    for name in ("train", "validation", "test"):
        assert f"{name}.json" in header


def test_the_reports_own_study_says_what_to_do_without_the_hub(tmp_path):
    settings, _ = train.parse(["--study", "squad", "--output_dir", str(tmp_path)])
    assert settings.model_name_or_path == "mrm8488/bert-tiny-finetuned-squadv2"
    assert settings.dataset_name == "rajpurkar/squad"
    for load, field in (
        (lambda: squad.load_splits(settings), "dataset_name: rajpurkar/squad"),
        (lambda: load_base(settings.model_name_or_path), "model_name_or_path: mrm8488/bert-tiny"),
    ):
        with pytest.raises(UserError) as refused:
            load()
        line = str(refused.value)
        assert line.startswith(field) and "local f" in line and "--study embedded" in line
        assert "\n" not in line and Path("studies/embedded").is_dir()

"""A run as a plain folder: the same logits, whole or not at all."""

import sys

import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from qa import UserError, export, report, runs
from tests.conftest import command_flags, small_disk
from tests.test_methods import batch, logits
from tests.test_runs import train_one


@pytest.fixture(scope="module")
def finished(encoder, toy_files, tmp_path_factory):
    """Folders of finished runs by method."""
    output = tmp_path_factory.mktemp("runs")
    flags = command_flags(encoder, toy_files, output)
    methods = ("pretrained", "bitfit", "lora", "prompt_tuning")
    return {m: train_one([*flags, "--method", m])[0].run_dir() for m in methods}


@pytest.mark.parametrize("method", ["pretrained", "bitfit", "lora"])
def test_the_exported_model_computes_the_same(finished, tmp_path, method):
    export.export(finished[method], tmp_path / "new/merged")
    plain = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "new/merged").eval()
    assert plain.dtype == torch.float32 and plain.config._attn_implementation == "sdpa"
    inputs = batch(100)
    expected = logits(runs.load_run(finished[method])[0], inputs)
    with torch.no_grad():
        output = plain(**inputs)
    found = torch.stack((output.start_logits, output.end_logits), dim=-1)
    real = inputs["attention_mask"] == 1
    torch.testing.assert_close(found[real], expected, atol=1e-4, rtol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new/merged")
    assert tokenizer("a", "b")["token_type_ids"][-1] == 1
    card = (tmp_path / "new/merged/README.md").read_text()
    assert f"`{method}`" in card and "F1" in card and "{" not in card
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["merged"]


def test_what_cannot_be_exported_leaves_nothing(finished, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    for run, to, message in (
        (finished["prompt_tuning"], tmp_path / "a", "prompt_tuning cannot be merged: virtual"),
        (finished["lora"], tmp_path / "full", "is there already; name a new folder"),
        (finished["lora"], tmp_path / "full/file", "is there already; name a new folder"),
        (finished["lora"], tmp_path / "full/file/deeper", "cannot be written"),
        (tmp_path / "none", tmp_path / "b", "is no run's folder"),
        (tmp_path / "full", tmp_path / "b", "is no run's folder"),
    ):
        with pytest.raises(UserError, match=message):
            export.export(run, to)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]


def test_a_full_disk_leaves_nothing(finished, tmp_path):
    line = rf"{tmp_path}/new: cannot be written \(File too large\)"
    with small_disk(10_000), pytest.raises(UserError, match=line):
        export.export(finished["lora"], tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_the_command(finished, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    flags = ["--run", str(finished["lora"]), "--to", str(tmp_path / "link")]
    monkeypatch.setattr(sys, "argv", ["export", *flags])
    with pytest.raises(SystemExit) as done:
        report.run_command(export.main)
    assert done.value.code == 0 and "merged model written to" in capsys.readouterr().out
    assert (tmp_path / "empty/model.safetensors").exists()
    with pytest.raises(SystemExit) as done:
        report.run_command(export.main)
    assert done.value.code == 2 and "is there already" in capsys.readouterr().err

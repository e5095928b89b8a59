"""At any moment of a kill, one whole checkpoint stands; nothing is left of what was cut off."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import torch

from qa import UserError, checkpoint
from tests.conftest import small_disk, wordpiece


def test_round_trip_keeps_bits(tmp_path):
    tensors = {"a": torch.randn(3, 4).t(), "step": torch.tensor(7.0), "b": torch.arange(3)}
    state = {"loss": 0.1 + 0.2, "best": float("inf"), "history": [{"x": 1e-300}]}
    checkpoint.save(tmp_path / "c", 5, tensors, state)
    loaded, again = checkpoint.load(tmp_path / "c")
    assert again == state and loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert checkpoint.load(tmp_path / "none") is None


@pytest.mark.parametrize("broken", ["replace", "fsync", "rmtree"])
def test_a_failure_at_any_point_leaves_a_whole_checkpoint(tmp_path, monkeypatch, broken):
    checkpoint.save(tmp_path, 1, {"w": torch.zeros(2)}, {"n": 1})
    owner = {"replace": os, "fsync": os, "rmtree": checkpoint.shutil}[broken]

    def fail(path, *args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, broken, fail)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 2, {"w": torch.ones(2)}, {"n": 2})
    monkeypatch.undo()
    assert not list(tmp_path.glob(".*"))
    tensors, state = checkpoint.load(tmp_path)
    assert state["n"] == (2 if broken == "rmtree" else 1)
    assert torch.equal(tensors["w"], torch.full((2,), float(state["n"] - 1)))
    checkpoint.save(tmp_path, 3, {"w": torch.ones(2)}, {"n": 3})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000003"]


def test_signals_are_noted_and_a_second_one_ends_the_program():
    code = """
import os, signal
from qa.checkpoint import stop_signals
with stop_signals() as stop:
    assert stop() == 0
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop() == signal.SIGTERM
    print("noted", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("not reached")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "noted\n")


def test_text_files_are_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "f.json"
    checkpoint.write_text(path, "old")
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_cleared_by_the_next_one(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    alive = tmp_path / f".f.json.{os.getppid()}.tmp"
    other = tmp_path / f".g.json.{gone.pid}.tmp"
    for path in (tmp_path / f".f.json.{gone.pid}.tmp", alive, other):
        path.write_text("half")
    (tmp_path / f".folder.{gone.pid}.tmp/deep").mkdir(parents=True)
    checkpoint.write_text(tmp_path / "f.json", "whole")
    checkpoint.save(tmp_path / "folder", 1, {"w": torch.zeros(2)}, {})
    checkpoint.clear_leftovers(tmp_path / "folder")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"f.json", "folder", alive.name, other.name}


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path):
    """Python's own writers and those in Rust."""
    tokenizer = wordpiece()

    def save_tokenizer():
        with checkpoint.scratch(tmp_path / "tokenizer") as folder:
            tokenizer.save_pretrained(folder)

    for place, write in (
        ("text", lambda: checkpoint.write_text(tmp_path / "text", "x" * 2000)),
        ("tensors/step-00000001",
         lambda: checkpoint.save(tmp_path / "tensors", 1, {"w": torch.zeros(2000)}, {})),
        ("tokenizer", save_tokenizer),
    ):  # fmt: skip
        line = rf"{tmp_path}/{place}: cannot be written \(File too large\); "
        with small_disk(1000), pytest.raises(UserError, match=line):
            write()
    assert [path.name for path in tmp_path.rglob("*")] == ["tensors"]


def test_a_run_folder_that_is_gone_is_not_made_again(tmp_path):
    with pytest.raises(UserError, match=r"step-00000001: cannot be written \(No such file"):
        checkpoint.save(tmp_path / "run/checkpoint", 1, {"w": torch.zeros(2)}, {})
    assert list(tmp_path.iterdir()) == []


def test_new_folders_are_on_the_disk_too(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(checkpoint, "flush", flushed.append)
    checkpoint.make_folder(tmp_path / "runs/study/lora")
    assert set(flushed) == {tmp_path, tmp_path / "runs", tmp_path / "runs/study"}
    flushed.clear()
    checkpoint.make_folder(tmp_path / "runs/study/lora")
    assert flushed == []


def test_a_file_system_that_flushes_no_folders_is_written_to(tmp_path, monkeypatch):
    def refuse(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    checkpoint.write_text(tmp_path / "f", "x")
    assert (tmp_path / "f").read_text() == "x"

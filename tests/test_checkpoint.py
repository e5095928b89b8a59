"""At any moment of a kill, one whole checkpoint stands."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from qa import checkpoint


def test_round_trip_keeps_bits(tmp_path):
    tensors = {"a": torch.randn(3, 4).t(), "step": torch.tensor(7.0), "b": torch.arange(3)}
    state = {"loss": 0.1 + 0.2, "best": float("inf"), "history": [{"x": 1e-300}]}
    checkpoint.save(tmp_path / "c", 5, tensors, state)
    loaded, again = checkpoint.load(tmp_path / "c")
    assert again == state and loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert checkpoint.load(tmp_path / "none") is None


@pytest.mark.parametrize("broken", ["rename", "fsync", "rmtree"])
def test_a_failure_at_any_point_leaves_a_whole_checkpoint(tmp_path, monkeypatch, broken):
    checkpoint.save(tmp_path, 1, {"w": torch.zeros(2)}, {"n": 1})
    owner = {"rename": os, "fsync": os, "rmtree": checkpoint.shutil}[broken]
    real = getattr(owner, broken)

    def fail(path, *args, **options):
        if broken == "rmtree" and "tmp-" in str(path):
            return real(path, *args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(owner, broken, fail)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 2, {"w": torch.ones(2)}, {"n": 2})
    monkeypatch.undo()
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
    assert path.read_text() == "old"

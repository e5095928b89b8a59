"""A crash at any file operation costs nothing, and the instrument that shows it works."""

import shutil
import subprocess
import sys

import pytest

from qa.study import ROOT
from tests import crash_points

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("gcc"), reason="needs Linux and gcc"
)
PROGRAM = """
import os, shutil, sys
from pathlib import Path
from tests.crash_points import arm

folder, mode, at, *_ = sys.argv[1:]
folder = Path(folder)
arm(folder / "run", mode, int(at), 1)
(folder / "run-apart").write_text("of another run")
os.chdir(folder)
os.mkdir("run")
with open("run/a", "wb", buffering=0) as file:
    file.write(b"12345678")
os.rename("run/a", "b")
inner = os.open("run", os.O_RDONLY)
os.mkdir("c", dir_fd=inner)
shutil.rmtree("run")
"""
OPERATIONS = """\
+ mkdir
+ open /a
+ write /a
- rename /a
+ mkdir /c
- rmdir /c
- rmdir
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return crash_points.preloaded(tmp_path_factory.mktemp("library"))


@pytest.mark.parametrize(
    ("mode", "at", "operations", "files"),
    [
        ("count", 0, 7, {"b": 8}),
        ("kill", 1, 1, {}),
        ("kill", 3, 3, {"run/a": 0}),
        ("halve", 3, 3, {"run/a": 4}),
        ("halve", 4, 4, {"b": 8}),
        ("full", 3, 3, {"run/a": 0}),
        ("full", 4, 5, {"b": 8}),
    ],
)
def test_the_library_counts_and_crashes(environment, tmp_path, mode, at, operations, files):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), mode, str(at)]
    done = subprocess.run(command, env=environment, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == {"count": 0, "full": 1}.get(mode, -9), done.stderr
    if mode == "full":
        assert done.stderr.splitlines()[-1].startswith("OSError: [Errno 28]")
    assert [line.rstrip() for line in done.stdout.splitlines()] == OPERATIONS.splitlines()[
        :operations
    ]
    sizes = {
        str(p.relative_to(tmp_path)): p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()
    }
    assert sizes == {"run-apart": 14, **files}


@pytest.mark.slow
def test_a_run_survives_a_crash_at_any_moment():
    command = [sys.executable, "-m", "tests.crash_points", "--points", "60"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr

"""Does a run survive a crash at any moment? It crashes at each of its operations on files.

    python -m tests.crash_points --points 60     # without --points: at all of them

crash_points.c, preloaded, counts what train.py does to a run's folder and beside it, more than a
hundred operations. At the k-th operation it does one of three things:

    kill   end the process before the operation
    halve  end the process after the operation, or after the first half of a write
    full   refuse this and every later operation that needs room, as a full disk does

Then the same command with --resume must end in the bytes of a run without a crash. Everything is
imported once, and every run is a fork, so that it takes less than a second. A line is printed for
each point that fails; then the exit status is 1.
"""

import argparse
import ctypes
import gc
import importlib
import multiprocessing
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_suffix(".c")
MODES = ("count", "kill", "halve", "full")  # numbered as in the C file
LIMIT = 60  # seconds; a run that takes longer hangs
MODULES = ("peft", "train", "qa.bertscore", "qa.comparison", "qa.displays", "qa.loop", "qa.runs")
TIMED = re.compile(rb'"(train_seconds|peak_memory_mb|examples_per_second)": [\d.e+-]+')
TEMPORARY = re.compile(r"(^|/)(\.|tmp-)")
FINISHED = re.compile(r"\w+/seed-\d+/eval_results\.json")
FULL = re.compile("error: .*runs/lora.*No space left.*")

Tree = dict[str, tuple[int, bytes]]  # mode and content (without times) by path


class Point(NamedTuple):
    run: str  # lora, adalora, or overwrite: lora over a finished run of another learning rate
    mode: str
    operation: int  # from 1


class Done(NamedTuple):
    status: int | None  # negative: ended by that signal; None: it hung
    errors: list[str]  # lines of standard error
    operations: list[str]  # "+ write /seed-42/config.json"; +: needs room on the disk

    def __str__(self) -> str:
        return f"status {self.status}, {len(self.errors)} lines of errors {self.errors[-1:]}"


def preloaded(folder: str | Path) -> dict[str, str]:
    """Build the library in the folder; the environment that loads it into a process."""
    library = f"{folder}/crash_points.so"
    build = ["gcc", "-shared", "-fPIC", "-O1", "-U_FORTIFY_SOURCE", "-o", library, SOURCE, "-ldl"]
    subprocess.run(build, check=True)
    return {**os.environ, "LD_PRELOAD": library}


def arm(folder: Path, mode: str, operation: int, log: int) -> None:
    """Count from now on what this process does below the folder (see crash_points.c)."""
    number = ctypes.c_long(operation)
    ctypes.CDLL(None).crash_arm(os.fsencode(folder), number, MODES.index(mode), log)


def read_tree(folder: Path) -> Tree:
    """Everything below the folder, except for locks, which stay there."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mode,
            TIMED.sub(rb'"\1": 0', path.read_bytes()) if path.is_file() else b"",
        )
        for path in folder.rglob("*")
        if not path.match(".*.lock")
    }


def differences(tree: Tree, expected: Tree) -> str:
    """Paths that are missing (-), left over (+) or of another content or mode (!)."""
    names = sorted(name for name in tree | expected if tree.get(name) != expected.get(name))
    signs = ("-" if name not in tree else "!" if name in expected else "+" for name in names)
    return ", ".join(sign + name for sign, name in zip(signs, names, strict=True))


def choose(run: str, numbers: Sequence[int], count: int, *modes: str) -> list[Point]:
    """`count` operations with the modes in turn, first and last too; or (0) all in every mode."""
    if not 0 < count < len(numbers):
        return [Point(run, mode, number) for number in numbers for mode in modes]
    between = random.Random(0).sample(numbers[1:-1], max(0, count - 2))
    chosen = sorted([numbers[0], *between, numbers[-1]])
    return [Point(run, modes[i % len(modes)], number) for i, number in enumerate(chosen)]


class Sweep:
    """What all runs share, and what comes out of them without a crash."""

    def __init__(self, work: Path):
        from tests.conftest import make_encoder, write_toy_files  # isort: skip (offline, one thread)

        for name in MODULES:  # so that no fork has to
            importlib.import_module(name)
        from qa import bertscore

        self.work = work
        make_encoder(work / "encoder")
        bertscore.make_scorer("embedded", None, False)
        values = {
            **write_toy_files(work, train=24, validation=8, test=8), "cache_dir": work / "cache",
            "model_name_or_path": work / "encoder", "output_dir": "runs", "num_threads": 1,
            "max_seq_length": 64, "doc_stride": 16, "num_train_epochs": 2, "eval_steps": 6,
            "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
            "early_stopping_patience": 0, "encoder_dropout": 0.1,
        }  # fmt: skip
        self.flags = [text for name, value in values.items() for text in (f"--{name}", str(value))]
        gc.freeze()  # else the collection in each fork would copy all that is loaded here
        self.trees: dict[str, Tree] = {}
        self.operations: dict[str, list[str]] = {}
        for run in ("old", "lora", "adalora", "overwrite"):
            self.record(run)

    def record(self, run: str) -> None:
        """Run twice without a crash. Both runs must do and leave the same."""
        for name in (run, f"{run}-again"):
            folder = self.begin(run, name)
            done = self.train(folder, run, "--overwrite" if run == "overwrite" else "--resume")
            assert done.status == 0, f"{run}: {done}"
            tree, count = read_tree(folder / "runs"), len(done.operations)
            assert not differences(tree, self.trees.setdefault(run, tree)), f"{run}: not the same"
            assert count == len(self.operations.setdefault(run, done.operations)), f"{run}: {count}"

    def begin(self, run: str, name: str) -> Path:
        folder = self.work / name
        folder.mkdir()
        if run == "overwrite":
            shutil.copytree(self.work / "old/runs", folder / "runs")
        return folder

    def train(self, folder: Path, run: str, flag: str, mode: str = "count", at: int = 0) -> Done:
        """`python train.py` in a fork of this process, which may crash at an operation."""
        from qa.report import run_command
        from train import main

        child = os.fork()
        if child == 0:
            status = 1
            try:
                created = os.O_CREAT | os.O_TRUNC | os.O_WRONLY
                out, err, log = (os.open(folder / n, created) for n in ("out", "err", "log"))
                os.dup2(out, 1)
                os.dup2(err, 2)
                os.chdir(folder)  # output_dir is relative, so that all config.json are the same
                method = "adalora" if run == "adalora" else "lora"
                rate = ["--learning_rate", "0.001"] if run == "old" else []
                sys.argv = ["train.py", "--method", method, flag, *rate, *self.flags]
                arm(folder / "runs" / method, mode, at, log)
                run_command(main)
            except SystemExit as end:
                status = end.code
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        handle = os.pidfd_open(child)
        in_time = select.select([handle], [], [], LIMIT)[0]
        os.close(handle)
        if not in_time:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors, operations = ((folder / n).read_text().splitlines() for n in ("err", "log"))
        return Done(status if in_time else None, errors, operations)

    def check(self, point: Point) -> tuple[Point, list[str]]:
        """Crash, look, go on, compare: (the point, what went wrong)."""
        run, mode, at = point
        folder, problems = self.begin(run, "-".join(map(str, point))), []
        flag = "--overwrite" if run == "overwrite" else "--resume"
        crash = self.train(folder, run, flag, mode, at)
        tree = read_tree(folder / "runs")
        if mode == "full":
            if crash.status != 2 or len(crash.errors) != 1 or not FULL.fullmatch(crash.errors[0]):
                problems.append(f"full disk: {crash}")
            if left := sorted(name for name in tree if TEMPORARY.search(name)):
                problems.append(f"full disk: leaves {', '.join(left)}")
        elif crash.status != -signal.SIGKILL:
            problems.append(f"not killed: {crash}")
        expected = self.trees[run]
        if any(FINISHED.fullmatch(name) for name in tree):
            whole = [expected, self.trees["old"]] if run == "overwrite" else [expected]
            if not any(one.items() <= tree.items() for one in whole):
                problems.append(f"looks finished: {differences(tree, whole[-1])}")
        elif run == "overwrite" and any("/checkpoint/step-" in name for name in tree):
            flag, expected = "--resume", self.trees["lora"]
        again = self.train(folder, run, flag)
        if again.status != 0:
            problems.append(f"{flag}: {again}")
        elif odd := differences(read_tree(folder / "runs"), expected):
            problems.append(f"{flag}: {odd}")
        shutil.rmtree(folder)
        where = [*crash.operations, "never reached"][:at][-1]
        return point, [where, *problems] if problems else []

    def groups(self, count: int) -> dict[str, list[Point]]:
        """Points by name: `count` of each method and fewer of what else can happen; or (0) all."""
        numbers = {run: range(1, len(done) + 1) for run, done in self.operations.items()}
        need_room = [n for n in numbers["lora"] if self.operations["lora"][n - 1][0] == "+"]
        removal = len(numbers["overwrite"]) - len(numbers["lora"])
        return {
            "lora": choose("lora", numbers["lora"], count, "kill", "halve"),
            "adalora": choose("adalora", numbers["adalora"], count, "kill", "halve"),
            "overwrite": [  # half of them where the earlier run is removed
                *choose("overwrite", numbers["overwrite"][:removal], count // 10, "kill", "halve"),
                *choose("overwrite", numbers["overwrite"][removal:], count // 10, "kill", "halve"),
            ],
            "full disk": choose("lora", need_room, count // 3, "full"),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--points", type=int, default=0, help="of each method, from 10 [all]")
    count = parser.parse_args().points
    with tempfile.TemporaryDirectory() as name:
        if not hasattr(ctypes.CDLL(None), "crash_arm"):  # not preloaded yet
            # A fork has none of its parent's threads, and no GPU.
            single = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            environment = preloaded(name) | single | {"CUDA_VISIBLE_DEVICES": ""}
            again = [sys.executable, "-m", "tests.crash_points", *sys.argv[1:]]
            return subprocess.run(again, cwd=SOURCE.parent.parent, env=environment).returncode
        sweep, failed = Sweep(Path(name).resolve()), 0
        with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
            for name, points in sweep.groups(count).items():
                began, before = time.perf_counter(), failed
                for point, problems in pool.imap_unordered(sweep.check, points):
                    if problems:
                        print(*point, *problems, sep=" | ", flush=True)
                        failed += 1
                seconds, done = time.perf_counter() - began, sweep.operations[points[0].run]
                print(f"{name}: {len(points)} points, {failed - before} failed, {seconds:.0f} s;")
                kinds = Counter(line.split()[1] for line in done).most_common()
                counts = ", ".join(f"{number} {kind}" for kind, number in kinds)
                print(f"    {len(done)} operations: {counts}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

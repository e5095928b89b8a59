"""tune.py as a user runs it: searches, kills, several workers, several processes, PostgreSQL."""

import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import tune
from qa import search
from qa.report import run_command
from tests.conftest import command_flags, write_toy_files
from tests.test_commands import BIN, finish, start


@pytest.fixture
def command(encoder, toy_files, tmp_path, monkeypatch, capsys):
    """Run tune.py (or another command) in this process on the toy data: status, output, errors."""

    def run(*flags, main=tune.main, status=0, **files):
        made = command_flags(encoder, {**toy_files, **files}, tmp_path / "out")
        monkeypatch.setattr("sys.argv", ["a.py", *made, *map(str, flags)])
        with pytest.raises(SystemExit) as stopped:
            run_command(main)
        captured = capsys.readouterr()
        assert stopped.value.code == status, captured.err
        return captured.out if status == 0 else captured.err

    run.output = tmp_path / "out"
    return run


def results(output):
    runs = json.loads((output / "results.json").read_text())["runs"]
    return {(run["run_name"], run["seed"]): run for run in runs}


def states(output):
    """How many trials of each state the sqlite file holds."""
    with sqlite3.connect(output / "search.db") as base:
        return Counter(row[0] for row in base.execute("select state from trials"))


def test_without_a_search_all_methods_and_seeds_are_trained_once(command):
    out = command("--n_trials", 0, "--seeds", 1, 2, "--method", "pretrained", "prompt", "head")
    found = results(command.output)
    names = ("pretrained", "prompt_tuning", "head")
    assert set(found) == {(name, seed) for name in names for seed in (1, 2)}
    assert all(run["search"] is None for run in found.values())
    assert found["head", 1]["eval_loss"] != found["head", 2]["eval_loss"]
    assert not (command.output / "search.db").exists() and "┃ search" not in out
    again = command("--n_trials", 0, "--seeds", 1, 2, "--method", "pretrained", "prompt", "head")
    assert again.count("is finished already") == 6
    assert results(command.output) == found


def test_each_run_is_tracked_in_its_own_folder(command):
    command("--n_trials", 0, "--seeds", 1, 2, "--method", "head", "--report_to", "tensorboard")
    for seed in (1, 2):
        found = list((command.output / f"head/seed-{seed}").glob("**/events.out.tfevents*"))
        assert len(found) == 2, "its curves and, as TensorBoard has them apart, its settings"


def test_a_search_finds_trains_and_replays_the_best(command):
    flags = ("--n_trials", 3, "--seeds", 5, 6, "--method", "lora")
    out = command(*flags)
    found = results(command.output)
    assert set(found) == {("lora-tuned", 5), ("lora-tuned", 6)}
    run = found["lora-tuned", 5]
    assert run["search"]["n_trials"] == 3 and run["search"]["seconds"] > 0
    assert run["search"]["best_value"] >= run["search"]["default_value"]
    # the best trial's value is what the final run of the same seed reached
    assert run["best_evaluation"]["eval_f1"] == run["search"]["best_value"]
    config = command.output / "lora-tuned/seed-5/config.json"
    saved = json.loads(config.read_text())
    assert saved["origins"]["r"] == saved["origins"]["learning_rate"] == "search"
    assert saved["settings"]["hyperparameters"]["r"] == run["search"]["best_params"]["r"]
    line = f"python train.py --config {config} --run_name lora-tuned-again"
    assert line in out and "lora: best eval_f1" in out
    finish(start(*line.split()[2:]))
    files = [
        (command.output / name / "seed-5/adapter_model.safetensors").read_bytes()
        for name in ("lora-tuned", "lora-tuned-again")
    ]
    assert files[0] == files[1]
    # more trials: the search goes on, and a new best takes the place of the old one's runs
    shutil.rmtree(command.output / "lora-tuned-again")
    command("--n_trials", 4, *flags[2:])
    assert results(command.output)["lora-tuned", 5]["search"]["n_trials"] == 4
    assert sum(states(command.output).values()) == 4
    again = command("--n_trials", 4, *flags[2:], "--num_threads", 2)
    assert again.count("is finished already") == 2, "though its threads are others"


def test_seeds_of_an_earlier_search_are_named_before_the_training(command):
    flags = ("--n_trials", 0, "--method", "head")
    command(*flags, "--seeds", 1, 2)
    line = command(*flags, "--seeds", 1, 3, "--learning_rate", 0.5, status=2)
    assert "head/seed-1" not in line
    assert "head/seed-2: has other settings (learning_rate: there 0.01, now 0.5)" in line
    assert set(results(command.output)) == {("head", 1), ("head", 2)}


def test_the_test_split_stays_shut_while_searching(command, tmp_path):
    line = command("--n_trials", 2, "--method", "head", status=2, test_file=tmp_path / "none.json")
    assert "none.json: cannot be read" in line
    assert states(command.output) == {"COMPLETE": 2}


def test_another_search_is_refused_and_can_be_deleted(command):
    flags = ("--n_trials", 1, "--method", "head", "--seeds", 42)
    command(*flags)
    line = command(*flags, "--num_train_epochs", 1, status=2)
    assert "another num_train_epochs (there 2, now 1); --fresh deletes it" in line
    command(*flags, "--num_train_epochs", 1, "--fresh")
    assert states(command.output) == {"COMPLETE": 1}
    # the same search, but final runs of more epochs: those that are there are not given up for it
    trial = ("--trial", "num_train_epochs=1")
    line = command(*flags, *trial, status=2)
    assert (
        "head-tuned/seed-42: holds a run with other settings (num_train_epochs: there 1, now 2)"
        in line
    )
    command(*flags, *trial, "--overwrite")
    config = (command.output / "head-tuned/seed-42/config.json").read_text()
    assert json.loads(config)["settings"]["num_train_epochs"] == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--n_trials -1", "n_trials: '-1' must be at least 0"),
        ("--timeout 0", "timeout: '0' must be above 0"),
        ("--metric f1", "metric: 'f1' is not one of eval_f1, eval_loss"),
        ("--pruner hyperband", "pruner: 'hyperband' is not one of median, none"),
        ("--workers 0", "workers: '0' must be at least 1"),
        ("--method lora nonsense", "method: 'nonsense' is unknown"),
        ("--seed 3", "unknown option --seed (did you mean --seeds?)"),
        ("--set r=4 --method lora head", "not a hyperparameter of head"),
        ("--storage nonsense", "storage: nonsense cannot be opened"),
        ("--trial 5", "--trial: '5' is not of the form name=value"),
        ("--trial num_train_epoch=5", "'num_train_epoch' (did you mean num_train_epochs?)"),
        ("--trial num_train_epochs=0", "must be at least 1 (from --trial)"),
    ],
)
def test_bad_flags(command, flags, message):
    line = command(*flags.split(), status=2)
    assert message in line and line.count("\n") == 1


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("search: 5", "must be a mapping"),
        ("search: {n_trial: 5}", "unknown 'n_trial' (did you mean n_trials?); it has: n_trials"),
        ("search: {n_trials: many}", "'many' is not a whole number"),
        ("search: {space: {lora: {rank: [1]}}}", "unknown name 'rank'"),
        ("search: {space: {lorra: {}}}", "method: 'lorra' is unknown"),
        ("search: {trial: 5}", "must be a mapping"),
        ("search: {trial: {5: 5}}", "search.trial: unknown setting 5"),
        ("search: {trial: {seed: 5}}", "search.trial: unknown setting 'seed'"),
    ],
)
def test_bad_search_blocks(command, tmp_path, monkeypatch, block, message):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/study.yaml").write_text(f"{block}\nmethods: {{lora: }}\n")
    monkeypatch.setattr("qa.study.STUDIES", tmp_path)
    assert message in command("--study", "mine", status=2)


def test_methods_that_cannot_share_an_accelerator(command, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/study.yaml").write_text("methods: {lora: {mixed_precision: bf16}, head: }\n")
    monkeypatch.setattr("qa.study.STUDIES", tmp_path)
    line = command("--study", "mine", status=2)
    assert "mixed_precision: bf16 of lora and no of head do not go together" in line
    command("--study", "mine", "--mixed_precision", "no", "--n_trials", 0)
    assert len(results(command.output)) == 2


def test_a_studys_search_block(command, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/study.yaml").write_text(
        "methods: {lora: }\nsearch: {n_trials: 2, space: {lora: {r: [2], lora_alpha: null}}}\n"
    )
    monkeypatch.setattr("qa.study.STUDIES", tmp_path)
    command("--study", "mine")
    search_found = results(command.output)["lora-tuned", 42]["search"]
    assert search_found["n_trials"] == 2 and search_found["best_params"]["r"] == 2
    assert set(search_found["best_params"]) == {"r", "learning_rate"}


def test_trials_may_have_less_data_and_fewer_epochs_than_the_final_runs(
    command, tmp_path, monkeypatch
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/study.yaml").write_text(
        "methods: {head: }\nsearch: {n_trials: 2, trial: {max_train_samples: 9}}\n"
    )
    monkeypatch.setattr("qa.study.STUDIES", tmp_path)
    flags = ("--study", "mine", "--seeds", 42)
    out = command(*flags, "--trial", "max_train_samples=5", "num_train_epochs=1")
    with sqlite3.connect(command.output / "search.db") as base:
        steps = {row[0] for row in base.execute("select step from trial_intermediate_values")}
    config = json.loads((command.output / "head-tuned/seed-42/config.json").read_text())["settings"]
    assert steps == {1}  # one evaluation a trial, after its one epoch
    assert config["num_train_epochs"] == 2 and config["max_train_samples"] is None
    run = results(command.output)["head-tuned", 42]
    assert run["search"]["trial"] == {"max_train_samples": 5, "num_train_epochs": 1}
    assert "with max_train_samples 5, num_train_epochs 1" in out
    line = command(*flags, "--trial", "num_train_epochs=1", status=2)
    assert "another max_train_samples (there 5, now 9)" in line


@pytest.mark.slow
def test_trials_with_other_steps_compare_by_their_evaluations(command, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/study.yaml").write_text(
        "methods: {head: }\nsearch: {space: {head: {"
        "gradient_accumulation_steps: [1, 2, 4, 8], learning_rate: [0.01, 1.0e-9]}}}\n"
    )
    monkeypatch.setattr("qa.study.STUDIES", tmp_path)
    opened = search.open_study

    def with_more(*args):
        study = opened(*args)
        for steps, rate in ((1, 0.01), (2, 0.01), (8, 1e-9)):
            params = {"gradient_accumulation_steps": steps, "learning_rate": rate}
            study.enqueue_trial(params)
        return study

    monkeypatch.setattr(search, "open_study", with_more)
    flags = ("--study", "mine", "--seeds", 42, "--n_trials", 4, "--metric", "eval_loss")
    command(*flags, "--early_stopping_patience", 0)
    found = results(command.output)["head-tuned", 42]["search"]["trials"]
    assert [row["params"]["gradient_accumulation_steps"] for row in found] == [4, 1, 2, 8]
    assert [row["state"] for row in found] == ["complete"] * 3 + ["pruned"]
    with sqlite3.connect(command.output / "search.db") as base:
        stored = "select number, step from trial_intermediate_values join trials using (trial_id)"
        steps = sorted(base.execute(stored))
    assert steps == [(number, step) for number in range(3) for step in (1, 2)] + [(3, 1)]


@pytest.mark.parametrize("content", ["text", "other"])
def test_a_storage_that_is_another_programs(command, content):
    command.output.mkdir()
    path = command.output / "search.db"
    if content == "text":
        path.write_text("learning_rate: 1e-3\n" * 100)
    else:
        with sqlite3.connect(path) as base:
            base.execute("create table experiments (name text)")
    line = command("--method", "head", "--n_trials", 1, status=2)
    assert line.startswith(f"error: storage: {path} cannot be opened (") and line.count("\n") == 1


@pytest.mark.slow
def test_a_disk_that_fills_up_in_mid_search(command, monkeypatch):
    flags = ("--method", "head", "--seeds", 42, "--n_trials")
    command(*flags, 1)
    path = command.output / "search.db"
    run = search.run

    def full(*args):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 4, limits[1]))
        try:
            run(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patched:
        patched.setattr(search, "run", full)
        line = command(*flags, 3, status=2)
    assert line.startswith(f"error: storage: {path} fails (") and line.count("\n") == 1
    command(*flags, 3)
    found = states(command.output)
    assert found["COMPLETE"] + found["PRUNED"] == 3 and not found["RUNNING"] + found["WAITING"]


@pytest.mark.parametrize(
    ("number", "visible", "own"),
    [
        (0, None, [None, None, None]),
        (1, "2", ["2", "2", "2"]),
        (2, None, ["0", "1", "0"]),
        (2, "3, 1", ["3", "1", "3"]),
        (2, "GPU-a1,GPU-b2,-1", ["GPU-a1", "GPU-b2", "GPU-a1"]),
    ],
)
def test_each_process_of_the_pool_takes_its_own_gpu(monkeypatch, number, visible, own):
    monkeypatch.setattr("torch.cuda.device_count", lambda: number)
    for index in range(3):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        tune._take_gpu(index)
        assert os.environ.get("CUDA_VISIBLE_DEVICES") == own[index]


def start_with_two_gpus(*arguments):
    import torch

    torch.cuda.device_count = lambda: 2
    tune._start(*arguments)


@pytest.mark.slow
def test_the_processes_of_a_pool_are_counted(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    context = multiprocessing.get_context("spawn")
    arguments = (None, os.getpid(), context.Value("i", 0))
    with ProcessPoolExecutor(2, context, start_with_two_gpus, arguments) as pool:
        waits = [pool.submit(time.sleep, 1) for _ in range(2)]  # so that both are started
        found = {pool.submit(os.getenv, "CUDA_VISIBLE_DEVICES") for _ in range(20)}
        assert {future.result() for future in found} <= {"0", "1"}
        assert all(wait.result() is None for wait in waits)
    assert arguments[2].value == 2


@pytest.fixture(scope="module")
def longer(encoder, tmp_path_factory):
    """Flags of a search whose trials take a second or two."""
    files = write_toy_files(tmp_path_factory.mktemp("longer"), train=200, validation=20, test=20)

    def flags(output, *more):
        made = command_flags(encoder, files, output)
        flags = ["--method", "lora", "--num_train_epochs", "3", "--early_stopping_patience", "0"]
        return [*made, *flags, "--seeds", "42", *map(str, more)]

    return flags


def kill(process):
    """-9 to the command and, at the same moment, to all its workers."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in [process.pid, *map(int, children)]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_five_times_a_search_of_two_workers_loses_nothing(longer, tmp_path):
    chance = random.Random(0)
    flags = longer(tmp_path, "--n_trials", 9, "--workers", 2)
    kills = 0
    while kills < 5:
        process = start(*flags, command=(sys.executable, "tune.py"))
        before = sum(states(tmp_path).values()) if (tmp_path / "search.db").exists() else 0
        while process.poll() is None and sum(_trials(tmp_path)) <= before:
            time.sleep(0.05)
        time.sleep(1.5 * chance.random())
        while process.poll() is None and on_last_run(tmp_path):
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        kill(process)
        kills += 1
    finish(start(*flags, command=(sys.executable, "tune.py")))
    found = states(tmp_path)
    assert found["COMPLETE"] + found["PRUNED"] == 9
    assert found["RUNNING"] == found["WAITING"] == 0
    storage = search.open_storage(search.storage_url(None, tmp_path))
    settings = tune.parse(flags).tasks[0].settings
    rows = search.describe(storage, settings)
    ended = [str(row["params"]) for row in rows if row["state"] in ("complete", "pruned")]
    assert len(set(ended)) == 9, "none twice"
    begun = {str(row["params"]) for row in rows if len(row["params"]) == 3}
    assert begun == set(ended), "what was killed was run again"


def on_last_run(output):
    """Whether a trial runs for the fourth time: killed again, it would be given up."""
    with sqlite3.connect(output / "search.db") as base:
        found = base.execute(
            "select count(*) from trials join trial_system_attributes using (trial_id) where "
            "state = 'RUNNING' and key = 'retry_history' and json_array_length(value_json) = 3"
        )
        return found.fetchone()[0] > 0


def _trials(output):
    try:
        return states(output).values()
    except sqlite3.OperationalError:  # not made yet
        return []


@contextmanager
def postgresql(folder):
    """A PostgreSQL server of its own on a socket and a loopback port: its URL, and pg_ctl."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    as_user = []
    if os.getuid() == 0:  # the server refuses to run as root
        as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(folder, "postgres")
    data = folder / "data"

    def call(program, *arguments):
        subprocess.run(
            [*as_user, programs[-1] / program, *arguments], cwd="/", check=True, timeout=60,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    call("initdb", "-D", data, "-U", "me", "-A", "trust")
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c fsync=off"

    def control(*command):
        call("pg_ctl", "-D", data, "-o", options, "-l", folder / "log", "-m", "immediate", *command)

    control("-w", "start")
    try:
        call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "me", "search")
        yield f"postgresql+psycopg://me@127.0.0.1:{port}/search", control
    finally:
        if (data / "postmaster.pid").exists():
            control("stop")


@pytest.mark.slow
def test_two_workers_share_a_search_on_postgresql(longer, tmp_path):
    with tempfile.TemporaryDirectory(prefix="pg") as name, postgresql(Path(name)) as (url, _):
        flags = longer(tmp_path, "--n_trials", 5, "--workers", 2, "--storage", url)
        finish(start(*flags, command=(sys.executable, "tune.py")))
        rows = search.describe(search.open_storage(url), tune.parse(flags).tasks[0].settings)
    ended = [row for row in rows if row["state"] in ("complete", "pruned")]
    assert len(ended) == len(rows) == 5 and len({str(row["params"]) for row in rows}) == 5
    assert results(tmp_path)["lora-tuned", 42]["search"]["n_trials"] == 5


@pytest.fixture
def on_postgresql(longer, tmp_path):
    """Start a search and wait until a trial of it is over: process, flags, pg_ctl, rows()."""
    with tempfile.TemporaryDirectory(prefix="pg") as name, postgresql(Path(name)) as (url, control):

        def begin(*more, command=(sys.executable, "tune.py")):
            flags = longer(tmp_path, "--storage", url, *more)
            settings = tune.parse(flags).tasks[0].settings
            process, storage = start(*flags, command=command), search.open_storage(url)

            def rows():
                return search.describe(storage, settings)

            while process.poll() is None and not any(row["state"] == "complete" for row in rows()):
                time.sleep(0.1)
            return process, flags, control, rows

        yield begin


def check_whole(rows, n_trials):
    """All of the budget, no trial twice, nothing left over, nothing taken over needlessly."""
    assert [row["state"] in ("complete", "pruned") for row in rows] == [True] * n_trials
    assert len({str(row["params"]) for row in rows}) == n_trials


@pytest.mark.slow
def test_a_search_waits_for_postgresql(on_postgresql):
    """It restarts, and later it is away for 20 seconds."""
    process, _, control, rows = on_postgresql("--n_trials", 6, "--workers", 2)
    control("restart")
    ended = sum(row["counts"] for row in rows())
    while process.poll() is None and sum(row["counts"] for row in rows()) == ended:
        time.sleep(0.1)
    control("stop")
    time.sleep(20)
    control("start")
    _, err = finish(process)
    said = r"storage: 127.0.0.1:\d+/search does not answer; trying again for two minutes"
    assert all(re.fullmatch(said, line) for line in err.splitlines())
    assert 2 <= len(err.splitlines()) <= 4, "one an outage and process; a restart may go unnoticed"
    check_whole(rows(), 6)


# As tune.py is, but sooner out of patience.
HASTY = (
    "import tune; from qa import report, search; search.PATIENCE = 5; report.run_command(tune.main)"
)


@pytest.mark.slow
def test_a_search_ends_in_one_line_without_postgresql(on_postgresql):
    command = (sys.executable, "-c", HASTY)
    process, flags, control, rows = on_postgresql("--n_trials", 4, command=command)
    control("stop")
    _, err = finish(process, status=2)
    first, line = err.splitlines()
    assert re.match("storage: .* does not answer; trying again", first)
    assert re.match("error: storage: .* did not answer for two minutes .*goes on from", line)

    control("start")
    process, ended = start(*flags, command=command), len(rows())
    while process.poll() is None and len(rows()) == ended:
        time.sleep(0.1)
    control("stop")
    assert "does not answer" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    _, err = finish(process, status=143)
    assert err.splitlines()[-1].startswith("stopped; the same command")
    assert len(err.splitlines()) == 2  # and that it stops

    control("start")
    finish(start(*flags, command=(sys.executable, "tune.py")))
    check_whole([row for row in rows() if row["counts"]], 4)
    assert {row["state"] for row in rows()} <= {"complete", "pruned", "fail"}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_fresh_beside_a_running_search(longer, tmp_path, workers):
    flags = longer(tmp_path, "--n_trials", 20, "--workers", workers)
    first = start(*flags, command=(sys.executable, "tune.py"))
    while first.poll() is None and not states_so_far(tmp_path)["COMPLETE"]:
        time.sleep(0.05)
    flags[flags.index("20")] = "2"
    second = start(*flags, "--fresh", command=(sys.executable, "tune.py"))
    _, err = finish(first, status=2)
    assert re.fullmatch(r"error: search: embedded/lora was deleted while it ran .*\n", err)
    finish(second)
    assert set(states(tmp_path)) <= {"COMPLETE", "PRUNED"} and sum(states(tmp_path).values()) == 2


@pytest.mark.slow
def test_ctrl_c_gives_the_trials_back(longer, tmp_path):
    flags = longer(tmp_path, "--n_trials", 50, "--workers", 2)
    process = start(*flags, command=(sys.executable, "tune.py"))
    while "RUNNING" not in states_so_far(tmp_path) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = finish(process, status=130)
    assert "stopped; the same command, without --fresh or --overwrite, goes on" in err
    assert "Traceback" not in err
    assert err.count("once more ends at once") == 1  # the workers leave it to the command
    found = states(tmp_path)
    assert found["RUNNING"] == 0 and found["WAITING"] == found["FAIL"] > 0


def states_so_far(output):
    try:
        return states(output)
    except sqlite3.OperationalError:
        return Counter()


@pytest.mark.slow
def test_two_processes_take_the_same_trials_and_prune_together(longer, tmp_path):
    launcher = (str(BIN / "torchrun"), "--nproc_per_node", "2", "tune.py")
    flags = longer(tmp_path, "--n_trials", 9, "--metric", "eval_loss", "--seeds", 42, 43)
    finish(start(*flags, command=launcher, ACCELERATE_USE_CPU="true"))
    found = states(tmp_path)
    assert found["COMPLETE"] + found["PRUNED"] == 9 and found["PRUNED"] >= 1
    run = results(tmp_path)["lora-tuned", 42]
    assert run["environment"]["num_processes"] == 2 and len(results(tmp_path)) == 2
    assert run["best_evaluation"]["eval_loss"] == run["search"]["best_value"]

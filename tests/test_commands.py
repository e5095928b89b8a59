"""The commands as a user runs them: real processes, real signals, several processes at once."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate import Accelerator

from qa import runs
from tests.conftest import command_flags, write_toy_files

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def longer(encoder, tmp_path_factory):
    """Flags of a run of a few hundred updates, long enough to be caught in the middle."""
    folder = tmp_path_factory.mktemp("longer")
    files = write_toy_files(folder, train=400, validation=20, test=20)

    def flags(output):
        made = command_flags(encoder, files, output)
        return [*made, "--method", "lora", "--num_train_epochs", "4", "--eval_steps", "25",
                "--early_stopping_patience", "0", "--encoder_dropout", "0.1"]  # fmt: skip

    return flags


@pytest.fixture(scope="module")
def uninterrupted(longer, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    finish(start(*longer(output)))
    return adapter(output)


def start(*flags, command=(sys.executable, "train.py"), **environment):
    return subprocess.Popen(
        [*command, *map(str, flags)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip


def finish(process, status=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, out + err
    return out, err


def wait_for(process, pattern):
    """Read the process's lines until one matches."""
    for line in process.stdout:
        if re.search(pattern, line):
            return
    raise AssertionError(process.stderr.read())


def adapter(output, name="lora"):
    return (output / name / "seed-42/adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_kill_in_mid_epoch_and_resume_is_bit_identical(longer, uninterrupted, tmp_path):
    for line in ("step     25", "step    100"):
        process = start(*longer(tmp_path), "--resume")
        wait_for(process, line)
        time.sleep(0.3)  # into the steps behind the evaluation
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "lora/seed-42/eval_results.json").exists()
    _, err = finish(start(*longer(tmp_path)), status=2)
    assert "unfinished run; give --resume or --overwrite" in err
    out, _ = finish(start(*longer(tmp_path), "--resume"))
    assert "step     25" not in out, "it went on from a checkpoint"
    assert adapter(tmp_path) == uninterrupted
    history = (tmp_path / "lora/seed-42/history.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in history] == list(range(25, 201, 25))


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_ends(longer, request, tmp_path, number, status):
    process = start(*longer(tmp_path))
    wait_for(process, "step     25")
    time.sleep(0.2)
    process.send_signal(number)
    _, err = finish(process, status)
    assert err.splitlines() == [
        "stopping after this update or evaluation; once more ends at once",
        "stopped; a checkpoint is saved, --resume goes on from it",
    ]
    assert len(list((tmp_path / "lora/seed-42/checkpoint").glob("step-*"))) == 1
    if number == signal.SIGINT:
        return  # what is saved is the same
    finish(start(*longer(tmp_path), "--resume"))
    assert adapter(tmp_path) == request.getfixturevalue("uninterrupted")
    assert not (tmp_path / "lora/seed-42/checkpoint").exists()


def test_a_run_that_another_process_trains_is_waited_for(encoder, toy_files, tmp_path):
    flags = [*command_flags(encoder, toy_files, tmp_path), "--method", "head"]
    waiting = "another process trains this run; waiting for its end\n"
    with runs.claim(tmp_path / "head/seed-42", Accelerator(cpu=True), print):
        for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
            process = start(*flags)
            assert process.stderr.readline().endswith(waiting)
            process.send_signal(number)
            _, err = finish(process, status)
            assert status < 0 or err.endswith("stopped; nothing was begun\n")
        assert not (tmp_path / "head/seed-42").exists()
        process = start(*flags)
        assert process.stderr.readline().endswith(waiting)
    finish(process)  # though one was killed while it waited
    assert (tmp_path / "head/seed-42/eval_results.json").exists()


def test_accelerate_launch_and_the_comparison(encoder, toy_files, tmp_path):
    """The three commands of the README, on small data."""
    flags = command_flags(encoder, toy_files, tmp_path)
    launch = (BIN / "accelerate", "launch", "train.py")
    flags[flags.index("--num_threads") + 1] = "2"
    out, _ = finish(start(*flags, "--method", "lora", command=launch))
    assert "2 threads a process" in out, "accelerate launch alone would leave one"
    assert re.search(r"^ lora +1 ", out, re.MULTILINE)
    finish(start(*flags, "--method", "prompt_tuning", "--report_to", "tensorboard",
                 "--mixed_precision", "bf16"))  # fmt: skip
    assert list((tmp_path / "prompt_tuning/seed-42").glob("**/events.out.tfevents*"))
    out, _ = finish(start(*flags, "--method", "pretrained"))
    for name in ("model ", "train ", "validation ", "test "):
        assert re.search(rf"^{name}", out, re.MULTILINE), f"the header names {name}"
    compare = (sys.executable, "evaluate.py", "--output_dir", tmp_path)
    out, _ = finish(start(command=compare))
    assert all(
        re.search(rf"^ {name} ", out, re.MULTILINE)
        for name in ("lora", "prompt_tuning", "pretrained")
    )
    assert max(map(len, out.splitlines())) <= 100 + len(str(tmp_path))
    recorded = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [run["run_name"] for run in recorded] == ["lora", "pretrained", "prompt_tuning"]
    _, err = finish(start(*flags, "--method", "nothing", command=launch), status=1)
    assert "error: method: 'nothing' is not one of" in err


def test_an_untrained_head_is_said_in_header_and_row(encoder, toy_files, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(encoder, tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    encoder_only = {k: v for k, v in weights.items() if "qa_outputs" not in k}
    save_file(encoder_only, folder / "model.safetensors")
    flags = command_flags(folder, toy_files, tmp_path)
    out, _ = finish(start(*flags, "--method", "pretrained"))
    assert "head not trained: new, at random" in out
    assert "pretrained †" in out and "† head not trained" in out


TWO = (BIN / "torchrun", "--standalone", "--nproc_per_node", "2", "train.py")


@pytest.mark.slow
def test_two_processes_decide_alike(longer, tmp_path):
    """Same early stopping on both, and (without dropout) the training of one process."""
    plain = ["--encoder_dropout", "0", "--early_stopping_patience", "2", "--learning_rate", "0.003"]
    plain += ["--eval_steps", "20"]
    one = [*longer(tmp_path / "one"), *plain, "--gradient_accumulation_steps", "4"]
    two = [*longer(tmp_path / "two"), *plain, "--gradient_accumulation_steps", "2"]
    finish(start(*one))
    out, _ = finish(start(*two, command=TWO, ACCELERATE_USE_CPU="true"))
    assert "· 2 processes" in out and out.count("Spantune ·") == 1
    histories = [
        [json.loads(row) for row in (tmp_path / n / "lora/seed-42/history.jsonl").open()]
        for n in ("one", "two")
    ]
    for a, b in zip(*histories):
        assert a["step"] == b["step"]
        assert a["eval_loss"] == pytest.approx(b["eval_loss"], rel=0.02)
    best = [min(h, key=lambda row: row["eval_loss"])["step"] for h in histories]
    for history, step in zip(histories, best):
        assert history[-1]["step"] in (step + 40, 200)


@pytest.mark.slow
def test_two_processes_stop_together_and_resume(longer, tmp_path):
    process = start(*longer(tmp_path), command=TWO, ACCELERATE_USE_CPU="true")
    wait_for(process, "step     25")
    workers = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGTERM)  # one alone is told; both must save and end
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert len(list((tmp_path / "lora/seed-42/checkpoint").glob("step-*"))) == 1
    out, _ = finish(start(*longer(tmp_path), "--resume", command=TWO, ACCELERATE_USE_CPU="true"))
    assert "step    100" in out and "step     25" not in out

"""The run folder: whole, read back as it was written, never overwritten by another run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import train
from qa import Interrupted, UserError, displays, report, runs
from qa.methods import METHODS
from qa.study import ROOT
from tests.conftest import command_flags, small_disk

# One of each kind, and those that are saved in a way of their own.
RUN = ("pretrained", "full", "head", "bitfit", "lora", "adalora", "prompt_tuning", "p_tuning",
       "prefix_tuning")  # fmt: skip


def train_one(flags):
    settings, origins = train.parse(flags)
    console = report.make_console(quiet=True)
    return settings, train.train(settings, origins, Accelerator(cpu=True), 1, console)


@pytest.fixture(scope="module")
def finished(encoder, toy_files, tmp_path_factory):
    """One finished run of each method: {method: (settings, results)}."""
    output = tmp_path_factory.mktemp("runs")
    flags = command_flags(encoder, toy_files, output)
    return {method: train_one([*flags, "--method", method]) for method in RUN}


@pytest.mark.parametrize("method", RUN)
def test_a_run_folder_is_whole(finished, method):
    settings, results = finished[method]
    folder = settings.run_dir()
    names = {path.name for path in folder.iterdir()}
    expected = {"config.json", "eval_results.json", "eval_predictions.json", "README.md"}
    expected |= {"eval_nbest_predictions.json", "tokenizer.json", "tokenizer_config.json"}
    if method != "pretrained":
        expected |= {"history.jsonl"}
    if METHODS[method].kind == "weights":
        expected |= {"model.safetensors"}
    if METHODS[method].config:
        expected |= {"adapter_config.json", "adapter_model.safetensors"}
    assert names == expected
    assert json.loads((folder / "eval_results.json").read_text()) == results
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()] \
        if method != "pretrained" else []  # fmt: skip
    assert len(history) == (2 if history else 0)
    assert all(
        {"step", "epoch", "train_loss", "eval_loss", "eval_f1"} <= row.keys() for row in history
    )
    predictions = json.loads((folder / "eval_predictions.json").read_text())
    nbest = json.loads((folder / "eval_nbest_predictions.json").read_text())
    assert len(predictions) == 20
    assert all(nbest[id][0]["text"] == text for id, text in predictions.items())
    assert (results["trainable_params"] == 0) == (method == "pretrained")
    assert results["adapter_bytes"] == sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    card = (folder / "README.md").read_text()
    assert METHODS[method].summary in card and "{" not in card


@pytest.mark.parametrize("method", RUN)
def test_a_saved_model_gives_the_same_answers(finished, method):
    """Loaded from disk, it scores what the run recorded, bit for bit in every prediction."""
    settings, _ = finished[method]
    folder = settings.run_dir()
    model, _, loaded = runs.load_run(folder)
    assert loaded.hyperparameters == settings.hyperparameters
    accelerator = Accelerator(cpu=True)
    prepared = train.prepare(settings, accelerator)
    from qa import loop

    answers, _ = loop.predict(
        accelerator, model, prepared.windows["test"], prepared.splits["test"].examples, settings, 20
    )
    saved = json.loads((folder / "eval_nbest_predictions.json").read_text())
    assert {id: [s._asdict() for s in best] for id, best in answers.items()} == saved


def test_training_moved_the_weights_that_were_saved(finished):
    untouched = runs.load_run(finished["pretrained"][0].run_dir())[0]
    for method in set(RUN) - {"pretrained"}:
        model = runs.load_run(finished[method][0].run_dir())[0]
        head = {n: p for n, p in model.trainable().items() if model.is_head(n)}
        start = dict(untouched.network.qa_outputs.named_parameters())
        assert not any(torch.equal(p, start[n.rsplit(".", 1)[1]]) for n, p in head.items())


def test_lora_loads_in_plain_peft_as_its_card_says(finished):
    from peft import PeftModel
    from transformers import AutoModelForQuestionAnswering

    folder = finished["lora"][0].run_dir()
    line = re.search(r"In plain PEFT: `(.*?)`\.", (folder / "README.md").read_text())[1]
    (config,) = re.findall(r"--config (\S+)", (folder / "README.md").read_text())
    assert json.loads(Path(config).read_text())["settings"]["method"] == "lora"
    known = {"PeftModel": PeftModel, "AutoModelForQuestionAnswering": AutoModelForQuestionAnswering}
    plain = eval(line, known)
    ours = runs.load_run(folder)[0]
    ids = torch.arange(5, 17)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["token_type_ids"] = (ids > 10).long()
    with torch.no_grad():
        assert torch.equal(plain.eval()(**inputs).start_logits, ours(**inputs)[0])


def test_the_same_command_gives_the_same_bytes(finished, encoder, toy_files, tmp_path):
    flags = command_flags(encoder, toy_files, tmp_path)
    again, results = train_one([*flags, "--method", "lora"])
    settings, before = finished["lora"]
    for name in ("adapter_model.safetensors", "eval_nbest_predictions.json"):
        one, other = again.run_dir() / name, settings.run_dir() / name
        assert one.read_bytes() == other.read_bytes()
    timed = {"train_seconds", "peak_memory_mb"}
    assert all(results[key] == before[key] for key in results.keys() - timed)


def test_a_config_replays_the_run(finished, tmp_path):
    settings, _ = finished["prompt_tuning"]
    config = settings.run_dir() / "config.json"
    again, _ = train_one(["--config", str(config), "--output_dir", str(tmp_path)])
    one, other = (s.run_dir() / "adapter_model.safetensors" for s in (settings, again))
    assert one.read_bytes() == other.read_bytes()


def test_a_finished_run_is_kept_and_another_is_refused(finished, encoder, toy_files):
    settings, results = finished["head"]
    flags = [
        *command_flags(encoder, toy_files, settings.run_dir().parent.parent),
        "--method",
        "head",
    ]
    before = (settings.run_dir() / "eval_results.json").stat().st_mtime_ns
    assert train_one(flags)[1] == results
    threads = flags.index("--num_threads")
    assert train_one(flags[:threads] + flags[threads + 2 :])[1] == results, "the machine's threads"
    with pytest.raises(UserError, match=r"other settings \(learning_rate: there 0.01, now 0.5\)"):
        train_one([*flags, "--learning_rate", "0.5"])
    assert (settings.run_dir() / "eval_results.json").stat().st_mtime_ns == before
    _, changed = train_one([*flags, "--learning_rate", "0.5", "--overwrite"])
    assert changed["eval_loss"] != results["eval_loss"]
    train_one([*flags, "--overwrite"])


def test_a_replay_overwrites_nothing(finished, tmp_path):
    """Though the run that is replayed had been given --overwrite, and --resume."""
    config = json.loads((finished["head"][0].run_dir() / "config.json").read_text())
    config["settings"] |= {"overwrite": True, "resume": True, "output_dir": str(tmp_path)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = ["--config", str(tmp_path / "config.json")]
    settings, _ = train_one(flags)
    assert not settings.overwrite and not settings.resume
    with pytest.raises(UserError, match="other settings"):
        train_one([*flags, "--learning_rate", "0.5"])


def test_a_run_is_not_taken_for_one_of_other_processes(finished, encoder, toy_files):
    """Of two processes the effective batch is twice as large."""
    settings, results = finished["head"]
    assert runs.open_run(settings, 1)["eval_f1"] == results["eval_f1"]
    with pytest.raises(UserError, match=r"other settings \(processes: there 1, now 2\)"):
        runs.open_run(settings, 2)


def interrupt(display, progress, *_):
    """Ctrl-C: after the first update, or in the evaluation that ends the training."""
    if progress.step == 1 or progress.finished:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("where", ["on_step", "on_evaluation"])
def test_a_stopped_run_goes_on_as_it_was(
    finished, encoder, toy_files, tmp_path, monkeypatch, where
):
    """With the threads that it had, though another number is now the machine's."""
    flags = [*command_flags(encoder, toy_files, tmp_path), "--method", "head", "--resume"]
    threads = flags.index("--num_threads")
    del flags[threads : threads + 2]
    settings, origins = train.parse(flags)
    given = Accelerator(cpu=True), 1, report.make_console(quiet=True)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(displays.TrainingDisplay, where, interrupt)
        train.train(settings, origins, *given)
    assert list((settings.run_dir() / "checkpoint").glob("step-*"))
    results = train.train(settings, origins, given[0], 2, given[2])
    assert results["environment"]["num_threads"] == torch.get_num_threads() == 1
    one, other = (s.run_dir() / "model.safetensors" for s in (settings, finished["head"][0]))
    assert one.read_bytes() == other.read_bytes()


def stop_at(finished_only, monkeypatch, settings, origins):
    """Train until a signal stops it: after the first update, or in the last evaluation."""
    where = "on_evaluation" if finished_only else "on_step"
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(displays.TrainingDisplay, where, interrupt)
        train.train(settings, origins, Accelerator(cpu=True), 1, report.make_console(quiet=True))


def test_what_a_kill_kept_from_history_comes_from_the_checkpoint(
    finished, encoder, toy_files, tmp_path, monkeypatch
):
    """The last checkpoint is written a moment before the last row of history."""
    flags = [*command_flags(encoder, toy_files, tmp_path), "--method", "adalora", "--resume"]
    settings, origins = train.parse(flags)
    stop_at(True, monkeypatch, settings, origins)
    history = settings.run_dir() / "history.jsonl"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:-1]))
    train_one(flags)
    assert [row["step"] for row in runs.read_history(settings.run_dir())] == [8, 16]
    reference = finished["adalora"][0].run_dir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (settings.run_dir() / name).read_bytes() == (reference / name).read_bytes()


def test_all_is_on_the_disk_before_the_results_are_there(encoder, toy_files, tmp_path, monkeypatch):
    """In the order of calls: after a power cut a run that looks finished is whole."""
    done = []
    flush, replace, rmtree = os.fsync, os.replace, shutil.rmtree

    def note(kind, path):
        done.append((kind, str(path)))

    monkeypatch.setattr(
        os, "fsync", lambda fd: (note("flush", os.readlink(f"/proc/self/fd/{fd}")), flush(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (note(str(a), b), replace(a, b)))
    monkeypatch.setattr(shutil, "rmtree", lambda p, **k: (note("delete", p), rmtree(p, **k)))
    flags = [*command_flags(encoder, toy_files, tmp_path), "--method", "lora"]
    folder = train_one(flags)[0].run_dir()
    published = {path: (i, source) for i, (source, path) in enumerate(done)
                 if Path(path).parent == folder and source not in ("flush", "delete")}  # fmt: skip
    finished, _ = published[str(folder / "eval_results.json")]
    assert {Path(path).name for path in published} == {path.name for path in folder.iterdir()}
    for moment, source in published.values():
        assert done[moment - 1] == ("flush", source), "its content, before it has its name"
        assert done[moment + 1] == ("flush", str(folder)), "and its name"
        assert moment <= finished
    deleted = [i for i, call in enumerate(done) if call == ("delete", str(folder / "checkpoint"))]
    assert deleted and min(deleted) > finished + 1
    assert ("flush", str(folder.parent)) in done[:finished], "the folder's own name"


def test_a_run_that_is_overwritten_is_never_seen_in_part(finished, tmp_path, monkeypatch):
    folder = tmp_path / "lora/seed-42"
    shutil.copytree(finished["lora"][0].run_dir(), folder)
    settings = replace(finished["lora"][0], output_dir=str(tmp_path), overwrite=True)

    def killed(path, **options):
        (path / "adapter_model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", killed)
        runs.open_run(settings, 1)
    assert runs.find_runs(tmp_path) == []
    assert runs.open_run(replace(settings, overwrite=False), 1) is None
    assert [path.name for path in folder.parent.iterdir()] == ["seed-42"], "nothing is left of it"


def test_results_without_their_config_are_not_written_over(finished, tmp_path):
    folder = tmp_path / "lora/seed-42"
    shutil.copytree(finished["lora"][0].run_dir(), folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: missing or unreadable there"):
        runs.open_run(replace(finished["lora"][0], output_dir=str(tmp_path)), 1)


def test_a_config_that_is_deleted_while_it_trains_is_an_error(
    encoder, toy_files, tmp_path, monkeypatch
):
    flags = [*command_flags(encoder, toy_files, tmp_path), "--method", "head"]
    config = tmp_path / "head/seed-42/config.json"
    with monkeypatch.context() as patch:
        patch.setattr(displays.TrainingDisplay, "on_evaluation", lambda *_: config.unlink(True))
        with pytest.raises(UserError, match=r"config\.json was deleted while it trained"):
            train_one(flags)
    assert not (config.parent / "eval_results.json").exists()
    with pytest.raises(UserError, match=r"config\.json: missing or unreadable there"):
        train_one([*flags, "--resume"])
    with monkeypatch.context() as patch:
        gone = lambda *_: shutil.rmtree(config.parent, ignore_errors=True)  # noqa: E731
        patch.setattr(displays.TrainingDisplay, "on_step", gone)
        with pytest.raises(UserError, match=r"cannot be written \(No such file"):
            train_one([*flags, "--overwrite"])
    assert not config.parent.exists()


def test_a_full_disk_ends_a_run_in_one_line_and_the_cache_does_not(
    finished, encoder, toy_files, tmp_path
):
    """Then there is room, and the run goes on."""
    flags = [*command_flags(encoder, toy_files, tmp_path), "--method", "full", "--resume"]
    folder = tmp_path / "full/seed-42"
    for room, place in ((500, "config.json"), (20_000, "checkpoint/step-00000008")):
        line = rf"{folder}/{place}: cannot be written \(File too large\)"
        with (
            small_disk(room),
            warnings.catch_warnings(record=True) as warned,
            pytest.raises(UserError, match=line),
        ):
            train_one(flags)
        assert not list(folder.rglob(".*"))
        cached = list((tmp_path / "cache").rglob("*.safetensors"))
        assert len(cached) == (0 if room == 500 else 3)
        assert sum("windows are not cached" in str(w.message) for w in warned) == 3 - len(cached)
    train_one(flags)
    one, other = (folder / "model.safetensors"
                  for folder in (folder, finished["full"][0].run_dir()))  # fmt: skip
    assert one.read_bytes() == other.read_bytes()


def test_a_setting_that_was_not_there_yet_has_its_default(finished, tmp_path):
    """In an older run, hyperparameters too."""
    settings, results = finished["lora"]
    folder = tmp_path / "lora/seed-42"
    shutil.copytree(settings.run_dir(), folder)
    shutil.copytree(folder, tmp_path / "lora/seed-43")
    config = json.loads((folder / "config.json").read_text())
    del config["settings"]["warmup_ratio"], config["settings"]["hyperparameters"]["lora_dropout"]
    (folder / "config.json").write_text(json.dumps(config))
    assert runs.open_run(replace(settings, output_dir=str(tmp_path)), 1)["seed"] == 42
    other = tmp_path / "lora/seed-43/eval_results.json"
    other.write_text(json.dumps({**results, "seed": 43}))
    runs.check_seeds(runs.find_runs(tmp_path))
    changed = replace(settings, output_dir=str(tmp_path), warmup_ratio=0.5)
    with pytest.raises(UserError, match=r"warmup_ratio: there 0\.06, now 0\.5"):
        runs.open_run(changed, 1)


@pytest.mark.parametrize("name", ["..", ".", "../x", "/tmp/x", ".hidden", "a/b", "a\n"])
@pytest.mark.parametrize("setting", ["run_name", "study"])
def test_no_name_leads_out_of_its_folder(finished, tmp_path, setting, name):
    """Given on the command line, or in a config file from somewhere."""
    config = json.loads((finished["head"][0].run_dir() / "config.json").read_text())
    config["settings"][setting] = name
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=setting):
        train.parse(["--config", str(tmp_path / "config.json")])
    with pytest.raises(UserError, match=setting):
        train.parse([f"--{setting}", name])


def test_equal_runs_have_equal_adapter_configs(finished):
    """PEFT keeps names in a set, whose order each process draws anew."""
    for method in ("lora", "adalora"):
        config = json.loads((finished[method][0].run_dir() / "adapter_config.json").read_text())
        assert len(config["target_modules"]) > 4
        assert config["target_modules"] == sorted(config["target_modules"])


def test_an_unfinished_run_asks_for_a_decision(finished, encoder, toy_files, tmp_path):
    flags = [*command_flags(encoder, toy_files, tmp_path), "--method", "head"]
    settings, _ = train_one(flags)
    (settings.run_dir() / "eval_results.json").unlink()
    train_one(flags)  # no checkpoint: nothing is lost by beginning again
    (settings.run_dir() / "eval_results.json").unlink()
    (settings.run_dir() / "checkpoint/step-00000001").mkdir(parents=True)
    with pytest.raises(UserError, match="unfinished run; give --resume or --overwrite"):
        train_one(flags)


def test_a_checkpoint_is_not_continued_on_other_data(encoder, toy_files, tmp_path):
    shutil.copy(toy_files["test_file"], tmp_path / "test.json")
    files = {**toy_files, "test_file": str(tmp_path / "test.json")}
    flags = [*command_flags(encoder, files, tmp_path), "--method", "head", "--resume"]
    settings, before = train_one(flags)
    (settings.run_dir() / "eval_results.json").unlink()
    (settings.run_dir() / "checkpoint/step-00000001").mkdir(parents=True)
    shutil.copy(toy_files["validation_file"], tmp_path / "test.json")
    with pytest.raises(UserError, match=r"made with another test \(data changed since\)"):
        train_one(flags)
    other, _ = train_one([*flags, "--overwrite", "--run_name", "x"])
    runs_of = {name: json.loads((s.run_dir() / "config.json").read_text())["fingerprints"]
               for name, s in (("before", settings), ("other", other))}  # fmt: skip
    assert runs_of["before"] == before["fingerprints"] != runs_of["other"]
    assert runs_of["before"]["model"] == runs_of["other"]["model"]


def test_the_models_fingerprint_is_the_encoders_alone(finished):
    assert len({results["fingerprints"]["model"] for _, results in finished.values()}) == 1


def test_damaged_runs_are_named(finished, tmp_path):
    folder = tmp_path / "r"
    shutil.copytree(finished["lora"][0].run_dir(), folder)
    (folder / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: cannot be read"):
        runs.load_run(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is no run's folder"):
        runs.load_run(folder)
    (folder / "eval_results.json").write_text("{")
    with pytest.raises(UserError, match=r"eval_results\.json: cannot be read"):
        runs.read_results(folder)


def test_short_names_keep_machine_paths_out_of_saved_files(squad_dir, tmp_path):
    flags = ["--method", "lora", "--model_name_or_path", "minilm-l6", "--num_train_epochs", "1"]
    for name in ("train", "validation", "test"):
        flags += [f"--{name}_file", f"{squad_dir}/dev-v1.1.json", f"--max_{name}_samples", "3"]
    settings, _ = train_one([*flags, "--output_dir", str(tmp_path)])
    for path in settings.run_dir().glob("*.json"):
        assert "site-packages" not in path.read_text()
    adapter = json.loads((settings.run_dir() / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "minilm-l6"


def test_peak_memory_where_the_system_does_not_tell_it(monkeypatch):
    """As in some containers: VmHWM is not there."""
    monkeypatch.setattr(Path, "read_text", lambda path, **options: "Name:\tpython\n")
    assert runs.peak_memory_mb("cpu") > 50


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak cannot be reset")
def test_peak_memory_is_that_of_the_run_alone():
    """In a process of its own: this one's memory is that of many tests."""
    program = """
from qa import runs
before = runs.peak_memory_mb("cpu")
large = bytearray(300 * 2**20)
large[::4096] = b"1" * len(large[::4096])
del large
print(runs.peak_memory_mb("cpu") - before)
runs.reset_peak_memory("cpu")
print(runs.peak_memory_mb("cpu") - before)
"""
    done = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, cwd=ROOT)
    used, left = map(float, done.stdout.split())
    assert used > 250 and left < 50

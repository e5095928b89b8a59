"""The comparison of a study's runs as `evaluate.py` makes it, from whatever stands on disk."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

import tune
from qa.report import run_command
from tests.conftest import command_flags, small_disk, write_toy_files

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def trained(encoder, tmp_path_factory):
    """A folder with toy data and the runs of two methods, two seeds each."""
    folder = tmp_path_factory.mktemp("trained")
    files = write_toy_files(folder, train=40, validation=10, test=24)
    AcceleratorState._reset_state(reset_partial_state=True)
    flags = command_flags(encoder, files, folder / "runs")
    flags += ["--n_trials", "0", "--seeds", "1", "2", "--method", "pretrained", "head"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr("sys.argv", ["tune.py", *flags])
        run_command(tune.main)
    assert stopped.value.code == 0
    return folder


@pytest.fixture
def evaluate(trained, tmp_path, monkeypatch, capsys):
    """Run evaluate.py on a copy of the runs: its output and results.json."""
    written = shutil.ignore_patterns("report.*", "results.json")
    output = shutil.copytree(trained / "runs", tmp_path / "runs", ignore=written)

    def run(*flags, status=0):
        monkeypatch.setattr("sys.argv", ["evaluate.py", "--output_dir", str(output), *flags])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
        captured = capsys.readouterr()
        assert stopped.value.code == status, captured.err
        return captured.out if status == 0 else captured.err

    run.output = output
    return run


def test_table_results_and_report(evaluate):
    out = evaluate()
    assert max(map(len, out.splitlines()[:-1])) <= 100
    assert "BERTScore: embedded_L2" in out and " * " in out
    made = json.loads((evaluate.output / "results.json").read_text())
    assert made["study"] == "embedded" and len(made["runs"]) == 4 and len(made["rows"]) == 2
    for row in made["rows"]:
        for score in row["scores"].values():
            assert score["low"] <= score["value"] <= score["high"]
    for name in ("report.html", "report.md"):
        assert (evaluate.output / name).stat().st_size > 500
    first = {path.name: path.read_bytes() for path in evaluate.output.glob("re*")}
    assert json.loads(evaluate("--json")) == made
    assert {path.name: path.read_bytes() for path in evaluate.output.glob("re*")} == first


def test_an_old_run_is_scored_from_its_predictions(evaluate):
    evaluate()
    expected = json.loads((evaluate.output / "results.json").read_text())
    for path in evaluate.output.glob("*/*/eval_results.json"):
        results = json.loads(path.read_text())
        assert 0 < results.pop("eval_bertscore_f1") <= 100 and results.pop("bertscore_hash")
        path.write_text(json.dumps(results))
        config = json.loads((path.parent / "config.json").read_text())
        for name in [name for name in config["settings"] if name.startswith("bertscore")]:
            del config["settings"][name]
        (path.parent / "config.json").write_text(json.dumps(config))
    evaluate()
    found = json.loads((evaluate.output / "results.json").read_text())
    assert found["rows"] == expected["rows"] and "eval_bertscore_f1" in found["runs"][0]


def test_without_the_test_data_the_table_stands_alone(evaluate, trained):
    test_file = trained / "test.json"
    kept = test_file.read_text()
    try:
        test_file.write_text(kept.replace("article 0", "another"))
        assert "no intervals, slices and examples: test.json has changed" in evaluate()
        test_file.unlink()
        out = evaluate()
    finally:
        test_file.write_text(kept)
    assert "no intervals, slices and examples: " in out and "cannot be read" in out
    assert "[" not in out.split("train s")[1].split("BERTScore:")[0]
    made = json.loads((evaluate.output / "results.json").read_text())
    assert made["bootstrap"] is None and "bertscore_f1" in made["rows"][0]["scores"]
    page = (evaluate.output / "report.html").read_text()
    assert "No intervals: the test data is not there" in page and 'id="examples"' not in page


@pytest.mark.parametrize(("name", "value"), [("learning_rate", 0.5), ("hyperparameters", {"r": 1})])
def test_runs_that_differ_in_more_than_their_seed_are_no_row(evaluate, name, value):
    path = evaluate.output / "head/seed-2/config.json"
    config = json.loads(path.read_text())
    config["settings"]["num_threads"] = 7  # which may differ
    path.write_text(json.dumps(config))
    evaluate()
    config["settings"][name] = value
    path.write_text(json.dumps(config))
    line = evaluate(status=2)
    assert f"head/seed-2: has another {name} than head/seed-1" in line and line.count("\n") == 1


def test_folders_that_are_no_seeds(evaluate):
    """One kept under another name is left alone; one under another seed's would count twice."""
    evaluate()
    rows = json.loads((evaluate.output / "results.json").read_text())["rows"]
    shutil.copytree(evaluate.output / "head/seed-2", evaluate.output / "head/seed-2-old")
    evaluate()
    assert json.loads((evaluate.output / "results.json").read_text())["rows"] == rows
    (evaluate.output / "head/seed-2-old").rename(evaluate.output / "head/seed-3")
    assert "head/seed-3: holds a run of seed 2" in evaluate(status=2)


def test_damaged_runs_and_bad_settings_are_one_line(evaluate):
    path = evaluate.output / "head/seed-1/history.jsonl"
    kept = path.read_text()
    path.write_text("{")
    line = evaluate(status=2)
    assert line.startswith("error: ") and "history.jsonl: cannot be read" in line
    path.write_text(kept)
    line = evaluate("--bertscore_num_layers", "7", status=2)
    assert "bertscore_model: embedded cannot be loaded" in line and line.count("\n") == 1
    (evaluate.output / "head/seed-1/eval_predictions.json").write_text("[1]")
    assert "eval_predictions.json" in evaluate(status=2)
    assert not list(evaluate.output.glob("report*")), "nothing half-written"


def test_runs_with_other_test_data_do_not_compare(evaluate):
    path = evaluate.output / "head/seed-1/eval_results.json"
    results = json.loads(path.read_text())
    results["fingerprints"]["test"] = "another"
    path.write_text(json.dumps(results))
    assert "runs were scored on different test data (head/seed-" in evaluate(status=2)


def test_a_full_disk_is_one_line(evaluate):
    with small_disk(2000):
        line = evaluate(status=2)
    assert line.startswith(f"error: {evaluate.output}/results.json: cannot be written (File too ")
    assert line.count("\n") == 1 and not list(evaluate.output.glob(".*"))

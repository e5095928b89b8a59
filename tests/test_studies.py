"""What was found: each study's README says what its recorded results hold."""

import json
from statistics import mean

import pytest

from qa.methods import METHODS
from qa.model import load_base
from qa.study import STUDIES, recorded_results

RECORDED = sorted(path.parent.parent.name for path in STUDIES.glob("*/recorded/results.json"))


def mean_f1(study):
    """Runs by name, and their mean F1 over seeds."""
    runs = json.loads(recorded_results(study).read_text())["runs"]
    names = {run["run_name"] for run in runs}
    return runs, {n: mean(r["eval_f1"] for r in runs if r["run_name"] == n) for n in names}


@pytest.mark.parametrize("study", RECORDED)
def test_the_readmes_table_is_that_of_the_results(study):
    runs, found = mean_f1(study)
    table = (STUDIES / study / "README.md").read_text().splitlines()
    for name, value in found.items():
        line = next(line for line in table if line.startswith(f"| {name} "))
        assert f"{value:.2f}" in line
    # Each seed draws a head where the encoder has none.
    encoders = {(run["model"], run["seed"] if not run["head_trained"] else 0) for run in runs}
    made = {key: load_base(key[0], seed=key[1]).fingerprint for key in encoders}
    for run in runs:
        key = run["model"], run["seed"] if not run["head_trained"] else 0
        assert run["fingerprints"]["model"] == made[key]


def test_lora_stands_above_prompt_tuning_and_that_above_the_untouched_model():
    runs, _ = mean_f1("embedded")
    f1 = {(run["run_name"], run["seed"]): run["eval_f1"] for run in runs}
    for seed in (42, 43, 44):
        assert f1["lora", seed] > f1["prompt_tuning", seed] > f1["pretrained", seed]


def test_no_method_is_at_chance():
    _, found = mean_f1("methods")
    assert found.keys() >= METHODS.keys()
    assert all(found[name] > found["pretrained"] for name in METHODS if name != "pretrained")

"""Where settings come from, and what is refused."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest

import train
from qa import UserError, study
from qa.methods import METHODS, get_method
from qa.study import Settings, setting


@pytest.fixture
def own_study(tmp_path, monkeypatch):
    """A study whose file sets things in general and for one method."""
    monkeypatch.setattr(study, "STUDIES", tmp_path)
    (tmp_path / "mine").mkdir()

    def write(text):
        (tmp_path / "mine" / "study.yaml").write_text(text)

    write(
        "description: d\nlearning_rate: 3e-3\nnum_train_epochs: 7\nseeds: [1, 2]\n"
        "train_file: a.json\ntest_file: b.json\nmax_grad_norm: 2\n"
        "methods:\n  lora: {learning_rate: 5e-4, r: 4}\n  pretrained:\n"
    )
    return write


def parse(*flags):
    return train.parse(["--study", "mine", *flags])


def test_each_layer_wins_over_the_one_before(own_study):
    settings, origins = parse(
        "--method", "lora", "--num_train_epochs", "3", "--set", "lora_alpha=64"
    )
    assert settings.learning_rate == 5e-4 and "mine/study.yaml, lora" in origins["learning_rate"]
    assert settings.num_train_epochs == 3 and origins["num_train_epochs"] == "flag"
    assert settings.max_grad_norm == 2.0 and origins["max_grad_norm"].endswith("study.yaml")
    assert settings.doc_stride == 128 and origins["doc_stride"] == "default"
    assert settings.hyperparameters["r"] == 4 and settings.hyperparameters["lora_alpha"] == 64
    assert origins["lora_alpha"] == "flag" and origins["lora_dropout"] == "method lora"
    assert settings.seeds == (1, 2)
    other, origins = parse("--method", "prompt")
    assert other.method == "prompt_tuning"  # an alias
    assert other.learning_rate == 3e-3, "study.yaml, above the method's row"
    assert other.hyperparameters["num_virtual_tokens"] == 20


def test_a_setting_of_three_values(own_study, tmp_path):
    """true, false, and neither: from a flag, study.yaml and config.json alike."""
    assert parse()[0].do_lower_case is None
    for text, value in (("true", True), ("false", False), ("None", None), ("null", None)):
        if text != "null":
            assert parse("--do_lower_case", text)[0].do_lower_case is value
        own_study(f"methods: {{lora: {{do_lower_case: {text}}}}}")
        assert parse()[0].do_lower_case is value
        saved = {"method": "lora", "hyperparameters": {}, "do_lower_case": value}
        (tmp_path / "config.json").write_text(json.dumps({"settings": saved}))
        assert parse("--config", str(tmp_path / "config.json"))[0].do_lower_case is value
    with pytest.raises(UserError, match="do_lower_case: 'maybe' is not true or false"):
        parse("--do_lower_case", "maybe")
    with pytest.raises(UserError, match="do_lower_case: expected one argument"):
        parse("--do_lower_case")


def test_a_methods_own_rate_is_above_the_default(own_study):
    own_study("methods: {}")
    for name, row in METHODS.items():
        settings, origins = parse("--method", name)
        assert (settings.learning_rate, origins["learning_rate"]) == (
            row.learning_rate, f"method {name}",
        )  # fmt: skip


def test_new_training_data_takes_no_split_of_the_old_along(own_study):
    settings, _ = parse("--train_file", "c.json")
    assert (settings.train_file, settings.test_file) == ("c.json", None)
    settings, _ = parse("--dataset_name", "squad")
    assert (settings.dataset_name, settings.train_file) == ("squad", None)
    settings, _ = parse("--test_file", "c.json")  # another test for the same training is meant
    assert (settings.train_file, settings.test_file) == ("a.json", "c.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "unknown setting 'learning_rat' .did you mean learning_rate"),
        ("methods: {lora: {rank: 3}}", "unknown setting 'rank'"),
        ("methods: {lara: {}}", "'lara' is unknown; choose one of pretrained, full"),
        ("methods: [lora]", "must be a mapping"),
        ("methods: {lora: 3}", "methods.lora must be a mapping"),
        ("method: lora", "unknown setting 'method'"),
        ("num_train_epochs: many", "num_train_epochs: 'many' is not a whole number"),
        ("num_train_epochs: 2.5", "is not a whole number"),
        ("seeds: 3", "is not a list"),
        ("train_head: 1", "is not true or false"),
        ("a: [", "not readable as YAML"),
        ("- 1", "must be a mapping"),
    ],
)
def test_a_bad_study_is_refused_by_name(own_study, text, message):
    own_study(text)
    with pytest.raises(UserError, match=message):
        parse("--method", "lora")


def test_a_run_replays_from_its_config(own_study, tmp_path):
    settings, origins = parse("--method", "lora", "--set", "r=3", "--seed", "7", "--no_train_head")
    path = tmp_path / "config.json"
    saved = json.loads(json.dumps({"settings": study.asdict(settings), "origins": origins}))
    path.write_text(json.dumps(saved))
    own_study("learning_rate: 1")  # what the study says by now does not matter
    again, origins = train.parse(["--config", str(path)])
    assert again == settings and origins["seed"] == str(path)
    changed, _ = train.parse(["--config", str(path), "--seed", "8"])
    assert changed.seed == 8 and changed.hyperparameters["r"] == 3


def test_environment_variables_in_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("SOME_DIR", str(tmp_path))
    assert study.expand_path("$SOME_DIR/x.json") == tmp_path / "x.json"
    monkeypatch.delenv("SOME_DIR")
    with pytest.raises(UserError, match="SOME_DIR is not set"):
        study.expand_path("${SOME_DIR}/x.json")


def test_precision_chosen_at_launch_is_kept(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    settings, origins = study.resolve(study.Layer("flag", {"study": "embedded"}))
    if origins["mixed_precision"] == "accelerate launch":
        assert settings.mixed_precision == "bf16"
    flagged = study.Layer("flag", {"mixed_precision": "no"})
    assert study.resolve(flagged)[0].mixed_precision == "no"


def test_help_names_every_setting_and_loads_nothing_heavy():
    heavy = ("torch", "transformers", "peft", "optuna", "numpy")
    for program, left_out in (("train", ("seeds",)), ("tune", ("seed", "run_name", "resume"))):
        code = f"import sys, {program}, qa.report\ntry: {program}.parse(['--help'])\n"
        code += "except SystemExit: pass\n"
        code += f"print('HEAVY', [m for m in {heavy} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "HEAVY []" in done.stdout, done.stderr
        for name in study.FIELDS:
            flag = f"--{'set' if name == 'hyperparameters' else name} "
            assert (flag in done.stdout) == (name not in left_out)


def test_saved_settings_from_before_a_setting_existed_have_its_default(monkeypatch):
    saved = json.loads(json.dumps(asdict(Settings(method="lora", seeds=(1, 2)))))
    saved["hyperparameters"] = {"r": 4}
    added = setting((0.5, 1.0), "one that is newer")
    added.name = "newer"
    monkeypatch.setitem(study.FIELDS, "newer", added)
    del saved["max_grad_norm"]
    filled = study.with_defaults(saved)
    assert filled["newer"] == [0.5, 1.0] and filled["max_grad_norm"] == 1.0
    assert filled["seeds"] == [1, 2], "as it was saved"
    own = {name: param.default for name, param in get_method("lora").params.items()}
    assert filled["hyperparameters"] == {**own, "r": 4}
    assert study.with_defaults(filled) == filled

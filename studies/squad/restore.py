"""Put recorded runs back where they were, all but the trained weights.

    python -m studies.squad.restore    # what studies/STUDY/recorded holds → runs/STUDY

So a new clone makes the whole report of them (evaluate.py), or trains one more seed beside them
(train.py --config …/seed-42/config.json --seed 45), and records again. What is there is left alone.
"""

from collections.abc import Mapping
from typing import Any

from qa import checkpoint, runs
from qa.report import run_command
from qa.study import Parser
from studies.squad.record import RECORDED, read_predictions, results, runs_of

ADDED = ("run_name", "run_dir", "settings", "history")  # to a run's own results, by find_runs


def restore(study: str, run: Mapping[str, Any], texts: Mapping[str, str]) -> bool:
    """One run's folder; False where there is one."""
    target = runs_of(study) / run["run_dir"]
    if target.exists():
        return False
    config = {
        "settings": run["settings"],
        "origins": {},
        "fingerprints": run["fingerprints"],
        "num_processes": run["environment"]["num_processes"],
    }
    own = {key: value for key, value in run.items() if key not in ADDED}
    checkpoint.make_folder(target.parent)
    with checkpoint.scratch(target) as folder:
        folder.mkdir()
        runs.write_json(folder / "config.json", config)
        runs.write_json(folder / "eval_predictions.json", texts)
        if run["history"]:
            runs.write_history(folder, run["history"])
        runs.write_json(folder / "eval_results.json", own)
        checkpoint.publish(folder, target)
    return True


def main() -> None:
    Parser(prog="python -m studies.squad.restore", description=__doc__.split("\n")[0]).parse_args()
    for study in RECORDED:
        made = {(run["run_name"], run["seed"]): run for run in results(study)["runs"]}
        found = [restore(study, made[name, seed], texts)
                 for name, seed, texts in read_predictions(study)]  # fmt: skip
        print(f"{runs_of(study)}: {sum(found)} of {len(found)} runs put back")


if __name__ == "__main__":
    run_command(main)

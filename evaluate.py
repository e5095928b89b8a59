"""Compare the runs of a study, or score any predictions file.

    python evaluate.py [--study S]                              table and results.json
    python evaluate.py --predictions P.json --references R.json JSON on standard output

This file hides Hugging Face's library of the same name from plain imports; the library is found
by `qa.metrics.evaluate_library`, and nothing imports this file.
"""

import json
import sys

from qa import UserError, study


def score_file(predictions: str, references: str) -> None:
    """Print EM and F1 of {id: text} as the official script does; warnings go to standard error."""
    from qa import metrics, squad

    texts = squad.read_json(study.expand_path(predictions))
    if not isinstance(texts, dict):
        raise UserError(f"{predictions}: must be an object of the form {{id: text}}")
    for id, text in texts.items():
        if not isinstance(text, str):
            raise UserError(f"{predictions}: the prediction of {id[:60]!r} is no text")
    gold = squad.read_file("references", references)
    scores = metrics.score(texts, gold.examples)
    if scores.missing:
        print(
            f"warning: {scores.missing} of {len(gold.examples)} questions have no prediction "
            "and score 0",
            file=sys.stderr,
        )
    strangers = len(texts.keys() - {example.id for example in gold.examples})
    if strangers:
        print(f"warning: {strangers} predictions are for no question of it", file=sys.stderr)
    print(json.dumps({"exact_match": scores.exact_match, "f1": scores.f1}))


def compare(settings: study.Settings) -> None:
    """Print the table of a study's runs and write results.json beside them."""
    from qa import report, runs

    study.read_study(settings.study)
    folder = settings.run_dir().parent.parent
    found = runs.find_runs(folder)
    if not found:
        raise UserError(f"{folder}: holds no finished run; train some: train.py --method lora …")
    tests = {run["fingerprints"]["test"]: run for run in found}
    if len(tests) > 1:
        one, other = list(tests.values())[:2]
        raise UserError(
            f"{folder}: runs were scored on different test data ({one['run_dir']}: "
            f"{one['data']['test']}; {other['run_dir']}: {other['data']['test']}) and do not "
            "compare; keep them apart with --output_dir"
        )
    console = report.make_console()
    report.print_table(console, found, f"test split: {found[0]['data']['test']}")
    target = folder.parent if folder.name == "runs" else folder
    runs.write_json(target / "results.json", {"study": settings.study, "runs": found})
    console.print(f"written to {target / 'results.json'}", markup=False, soft_wrap=True)


def main() -> None:
    parser = study.Parser(
        prog="evaluate.py", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--predictions", metavar="FILE", help="JSON {id: text} to score")
    parser.add_argument("--references", metavar="FILE", help="SQuAD v1.1 JSON to score it against")
    study.add_settings(parser, ["study", "output_dir"])
    arguments = parser.parse_args()
    if bool(arguments.predictions) != bool(arguments.references):
        raise UserError("--predictions and --references go together")
    if arguments.predictions:
        score_file(arguments.predictions, arguments.references)
    else:
        compare(study.resolve(study.flags_layer(arguments))[0])


if __name__ == "__main__":
    from qa.report import run_command

    run_command(main)

"""Compare the runs of a study, or score any predictions file.

    python evaluate.py [--study S]                              table, results.json, report.html, .md
    python evaluate.py --predictions P.json --references R.json JSON on standard output, as SQuAD's
                                                                scripts have it (v1.1 and 2.0)
    … --name mine [--output_dir D]                              the same report of that file

This file hides Hugging Face's library of the same name from plain imports; the library is found
by `qa.metrics.evaluate_library`, and nothing imports this file.
"""

import argparse
import json
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

from qa import UserError, study

SETTINGS = ("study", "output_dir", "bertscore_model", "bertscore_num_layers", "bertscore_rescale")


def score_file(arguments: argparse.Namespace) -> dict[str, Any]:
    """The scores of {id: text} as the official scripts have them; with --name the report as well.

    Everything but the result goes to standard error.
    """
    from qa import metrics, squad

    gold = squad.read_references(arguments.references)
    ids = {example.id for example in gold.examples}
    texts = squad.read_predictions(study.expand_path(arguments.predictions), ids)
    for id, problem in gold.problems.items():
        if id in texts or arguments.name:
            raise UserError(f"{arguments.references}: {problem}")
    if arguments.name and gold.is_v2:
        raise UserError("--name: a report has no questions without an answer yet; leave --name out")
    missing = metrics.count_missing(texts, gold.examples)
    if missing:
        print(
            f"warning: {missing} of {len(gold.examples)} questions "
            f"{'has' if missing == 1 else 'have'} no prediction and "
            f"{'scores' if missing == 1 else 'score'} 0",
            file=sys.stderr,
        )
    strangers = len(texts.keys() - ids)
    if strangers:
        subject = "1 prediction is" if strangers == 1 else f"{strangers} predictions are"
        print(f"warning: {subject} for no question of it", file=sys.stderr)
    if gold.is_v2:
        return metrics.score_v2(texts, gold.examples)
    scores = metrics.score(texts, gold.examples)
    found = {"exact_match": scores.exact_match, "f1": scores.f1}
    if arguments.name is None:
        return found

    for file, content in (
        (arguments.references, [astuple(example) for example in gold.examples]),
        (arguments.predictions, texts),
    ):
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{file}: contains half a surrogate pair, which no report can show; "
                "mend the encoding, or leave --name out"
            ) from None
    from qa import bertscore, comparison, report

    settings = study.resolve(study.flags_layer(arguments))[0]
    run = {
        "run_name": arguments.name,
        "method": arguments.name,
        "seed": 0,
        "data": {"test": str(gold)},
        "fingerprints": {"test": gold.fingerprint},
    }
    scorer = bertscore.scorer_of(settings)
    made = comparison.compare([run], [texts], gold.examples, scorer)
    report.present(
        report.make_console(stderr=True),
        Path(settings.output_dir or "."),
        f"Predictions of {arguments.name}",
        made,
        gold.examples,
        [texts],
    )
    return made if arguments.json else found


def main() -> None:
    parser = study.Parser(
        prog="evaluate.py", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--predictions", metavar="FILE", help="JSON {id: text} to score")
    parser.add_argument("--references", metavar="FILE", help="SQuAD JSON to score it against")
    parser.add_argument(
        "--name",
        help="write the report of the predictions file under this name of a method, "
        "to output_dir or else to the current folder",
    )
    parser.add_argument(
        "--json", action="store_true", help="results.json on standard output, and nothing else"
    )
    study.add_settings(parser, SETTINGS)
    arguments = parser.parse_args()
    if bool(arguments.predictions) != bool(arguments.references):
        raise UserError("--predictions and --references go together")
    if arguments.name is not None and not arguments.predictions:
        raise UserError("--name goes with --predictions; a run's name is its folder's")
    if arguments.name is not None and not arguments.name.strip():
        raise UserError("--name: is empty; give the name of a method")
    if arguments.predictions:
        print(json.dumps(score_file(arguments), ensure_ascii=False))
        return
    from qa.report import compare, make_console

    console = make_console(stderr=arguments.json)
    made = compare(console, study.resolve(study.flags_layer(arguments))[0])
    if arguments.json:
        print(json.dumps(made, ensure_ascii=False))


if __name__ == "__main__":
    from qa.report import run_command

    run_command(main)

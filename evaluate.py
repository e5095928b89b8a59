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
        from qa.report import compare, make_console

        compare(make_console(), study.resolve(study.flags_layer(arguments))[0])


if __name__ == "__main__":
    from qa.report import run_command

    run_command(main)

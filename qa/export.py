"""A run → a plain model folder, for those who know nothing of adapters.

    python -m qa.export --run runs/embedded/lora/seed-42 --to folder

The folder is what `AutoModelForQuestionAnswering.from_pretrained` takes: adapters are merged into
the encoder's weights. Prompts cannot be merged.
"""

import sys
from pathlib import Path

from qa import UserError, checkpoint

CARD = """\
---
base_model: {base}
tags: [extractive-question-answering, spantune, {method}]
---
# {base}, merged with {method}

A plain `AutoModelForQuestionAnswering` in fp32: {base} with the weights of a run that trained
{summary} and the span head (method `{method}`, seed {seed}).{scores}

    from qa.answer import Answerer
    Answerer.load("this folder").answer(question="…", context="…")
"""


def export(run_dir: Path, to: Path) -> None:
    """Write the merged model and its tokenizer to the folder `to`, whole or not at all.

    Raises UserError where the run cannot be loaded or merged, or `to` holds something.
    """
    to = to.resolve()  # what a link leads to, not the link, is replaced
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"to: {to} is there already; name a new folder")
    from qa import runs
    from qa.model import merge
    from qa.pretrained import quiet_transformers

    model, base, settings = runs.load_run(run_dir)
    results = runs.read_results(run_dir)
    method = model.method
    merged = merge(model)
    scores = ""
    if results:
        scores = "\nOn {}: exact match {:.2f}, F1 {:.2f}.".format(
            results["data"]["test"], results["eval_exact_match"], results["eval_f1"]
        )
    card = CARD.format(
        base=settings.model_name_or_path,
        method=method.name,
        summary=method.summary,
        seed=settings.seed,
        scores=scores,
    )
    with checkpoint.scratch(to) as temporary:
        checkpoint.make_folder(to.parent)
        with quiet_transformers():
            merged.save_pretrained(temporary)
        base.tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        for path in (temporary, *temporary.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        checkpoint.publish(temporary, to)  # which is empty, if it is there


def main() -> None:
    from qa import study
    from qa.report import shown

    parser = study.Parser(
        prog="python -m qa.export", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--run", metavar="DIR", required=True, help="folder of a finished run")
    parser.add_argument("--to", metavar="DIR", required=True, help="folder to make")
    arguments = parser.parse_args(sys.argv[1:])
    to = study.expand_path(arguments.to)
    export(study.expand_path(arguments.run), to)
    print(f"merged model written to {shown(to.resolve())}")


if __name__ == "__main__":
    from qa.report import run_command

    run_command(main)

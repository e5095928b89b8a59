"""What may have gone wrong in the starting report? Its faults, put back one by one.

    python -m studies.squad.data
    python -m studies.squad.faults --num_threads 1    # → runs/squad/faults.json

Each row is the report's recipe on a part of SQuAD (three epochs, one seed), with the faults it
names. Stopped at any moment, the same command goes on with the next row, or after the recorded ones. Flags are train.py's.
"""

import itertools
import json
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad

import train
from qa import UserError, bertscore, checkpoint, loop, metrics, report, runs, spans
from qa.model import SpanModel, load_base
from qa.study import FIELDS, Parser, Settings, add_settings
from studies.squad.data import FOLDER

FILE = Settings(study="squad").study_dir() / "faults.json"
RECORDED = Path(__file__).with_name("recorded") / "faults.json"
FAULTS = {
    "head": "freshly initialised span head",
    "segments": "segment ids dropped",
    "labels": "labels not shifted by the virtual tokens",
    "positions": "positions shifted by the virtual tokens",
    "start": "prompt from noise, not from words",
}
TOGETHER = ("head", "segments")
ROWS = [
    ("pretrained", ()), ("pretrained", ("head",)), ("pretrained", ("segments",)),
    ("pretrained", TOGETHER),
    ("lora", ()), ("lora", ("head",)), ("lora", ("segments",)), ("lora", TOGETHER),
    ("prompt_tuning", ()), *(("prompt_tuning", (name,)) for name in FAULTS),
    ("prompt_tuning", tuple(FAULTS)),
]  # fmt: skip
RECIPE = ["--study", "squad", "--model_name_or_path", "embedded", "--num_train_epochs", "3",
          "--train_file", str(FOLDER / "subset.json"),
          "--validation_file", str(FOLDER / "validation.json"),
          "--test_file", "$SQUAD_DIR/dev-v1.1.json"]  # fmt: skip


def faulty_model(settings: Settings, faults: Collection[str]) -> SpanModel:
    """The encoder under the settings' method, with these of FAULTS."""
    base = load_base(
        settings.model_name_or_path,
        settings.model_revision,
        settings.seed,
        settings.encoder_dropout,
    )
    if "head" in faults:
        torch.manual_seed(settings.seed)
        head = base.model.qa_outputs
        torch.nn.init.normal_(head.weight, std=base.model.config.initializer_range)
        torch.nn.init.zeros_(head.bias)
    chosen = dict(settings.hyperparameters)
    if "start" in faults:
        chosen["prompt_tuning_init"] = "RANDOM"
    model = train.make_model(replace(settings, hyperparameters=chosen), base, "cpu")
    if "segments" in faults:
        model.architecture = replace(model.architecture, segments=False)
    if "positions" in faults:  # transformers counts from the first virtual token on
        model.architecture = replace(model.architecture, positions=None)
    if "labels" in faults:
        virtual = model.num_virtual_tokens

        def shift(module: Any, inputs: Any, output: Any) -> None:
            # Of V + T logits the model takes the last T. Moved by V to the right, these are what
            # was the first T, which is where labels that nobody shifted point to.
            for name in ("start_logits", "end_logits"):
                output[name] = pad(output[name], (virtual, 0))[:, :-virtual]

        base.model.register_forward_hook(shift)
    return model


def main() -> None:
    parser = Parser(prog="python -m studies.squad.faults", description=__doc__.split("\n")[0])
    add_settings(parser, [name for name in FIELDS if name not in ("method", "seeds")])
    parser.parse_args()
    settings, _ = train.parse([*RECIPE, *sys.argv[1:]])
    command = " ".join(["python -m studies.squad.faults", *sys.argv[1:]])
    found, begun = {"command": command, "rows": []}, FILE if FILE.is_file() else RECORDED
    if begun.is_file():
        found = json.loads(begun.read_text())
    if found["command"] != command:
        raise UserError(f"{begun} is of another command ({found['command']}); move it away")
    FILE.parent.mkdir(parents=True, exist_ok=True)
    accelerator, num_threads = train.start(settings)
    prepared = train.prepare(settings, accelerator)
    scorer = bertscore.scorer_of(settings)
    console = report.make_console()
    for method, faults in itertools.islice(ROWS, len(found["rows"]), None):
        settings, _ = train.parse([*RECIPE, "--method", method, *sys.argv[1:]])
        model = faulty_model(settings, faults).to(accelerator.device)
        history, examples = [], prepared.splits["test"].examples
        with loop.determinism(accelerator.device) as deterministic:
            if model.trainable():
                history = loop.fit(
                    accelerator,
                    model,
                    prepared.windows["train"],
                    settings,
                    lambda s=settings, m=model: train.validate(s, accelerator, m, prepared),
                ).history
            accelerator.free_memory()
            found_spans, _ = loop.predict(
                accelerator, model, prepared.windows["test"], examples, settings
            )
            environment = runs.environment(accelerator.device.type, num_threads, 1, deterministic())
        texts = spans.best_texts(found_spans)
        scores = metrics.score(texts, examples)
        row = {
            "method": method,
            "faults": list(faults),
            "eval_exact_match": scores.exact_match,
            "eval_f1": scores.f1,
            "eval_bertscore_f1": float(scorer.score([texts], examples).mean()),
            "history": history,
        }
        console.print(f"{method} {list(faults)}: F1 {scores.f1:.2f}", markup=False)
        found = {
            "command": command,
            "data": {name: str(split) for name, split in prepared.splits.items()},
            "seed": settings.seed,
            "environment": environment,
            "rows": [*found["rows"], row],
        }
        checkpoint.write_text(FILE, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    report.run_command(main)

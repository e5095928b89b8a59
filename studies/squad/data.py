"""Cut SQuAD's train file: what the embedded encoder has not seen, and a part of that.

    python -m studies.squad.data    # $SQUAD_DIR/train-v1.1.json → .cache/squad/*.json

unseen.json      the half of the articles that the encoder has not seen: neither learnt from nor
                 used to choose its recipe (qa/embedded/encoder_titles.json lists those)
validation.json  the articles of it that train.py holds out for validation
subset.json      whole articles of the rest, about 10,000 questions, for searches and ablations
"""

import json
import random
from pathlib import Path

from qa import checkpoint, embedded
from qa.report import run_command
from qa.squad import hold_out, read_file, read_json
from qa.study import FIELDS, ROOT, Parser, expand_path

FOLDER = Path(".cache/squad")
SEED = FIELDS["data_seed"].default
SUBSET = 10_000  # questions


def main() -> None:
    Parser(prog="python -m studies.squad.data", description=__doc__.split("\n")[0]).parse_args()
    titles = read_json(Path(embedded.__file__).with_name("encoder_titles.json"))
    known = {title for part in titles.values() for title in part}
    document = read_json(expand_path("$SQUAD_DIR/train-v1.1.json"))
    articles = [article for article in document["data"] if article["title"] not in known]

    def write(name: str, kept: list) -> Path:
        file = ROOT / FOLDER / name
        file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(file, json.dumps({**document, "data": kept}, ensure_ascii=False))
        print(f"{FOLDER / name}: {len(kept)} articles, {sum(map(questions, kept)):,} questions")
        return file

    unseen = read_file("train", str(write("unseen.json", articles)))
    _, held_out = hold_out(unseen, FIELDS["validation_fraction"].default, SEED)
    held = {example.title for example in held_out.examples}
    write("validation.json", [article for article in articles if article["title"] in held])
    rest = [article for article in articles if article["title"] not in held]
    random.Random(SEED).shuffle(rest)
    drawn, total = [], 0
    for article in rest:
        if total + questions(article) <= SUBSET:
            drawn.append(article)
            total += questions(article)
    write("subset.json", drawn)


def questions(article: dict) -> int:
    return sum(len(paragraph["qas"]) for paragraph in article["paragraphs"])


if __name__ == "__main__":
    run_command(main)

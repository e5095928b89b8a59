"""Write the half of SQuAD's train articles that the embedded encoder has not seen.

    python -m studies.squad.unseen_half    # $SQUAD_DIR/train-v1.1.json → .cache/squad/unseen.json

What that encoder has learnt from, and what chose its recipe, is listed by title in
qa/embedded/encoder_titles.json. Validation articles are held out of this half by train.py.
"""

import json
from pathlib import Path

from qa.embedded.build_encoder import HERE
from qa.squad import read_json
from qa.study import ROOT, expand_path

UNSEEN = Path(".cache/squad/unseen.json")


def main() -> None:
    titles = json.loads((HERE / "encoder_titles.json").read_text())
    known = {title for part in titles.values() for title in part}
    document = read_json(expand_path("$SQUAD_DIR/train-v1.1.json"))
    articles = [article for article in document["data"] if article["title"] not in known]
    file = ROOT / UNSEEN
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**document, "data": articles}, ensure_ascii=False))
    questions = sum(len(p["qas"]) for article in articles for p in article["paragraphs"])
    print(f"{UNSEEN}: {len(articles)} articles, {questions:,} questions")


if __name__ == "__main__":
    main()

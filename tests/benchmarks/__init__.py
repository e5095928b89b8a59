"""Ratios of speed against named peers, measured in one run: `make bench`."""

import os
from pathlib import Path

from qa import squad

SQUAD_DIR = Path(os.environ.get("SQUAD_DIR", "../shared/squad"))


def read_questions(name: str) -> squad.Split:
    """SQuAD's `train` or `dev`; where SQUAD_DIR has none, the embedded corpus' train or test split."""
    file = SQUAD_DIR / f"{name}-v1.1.json"
    if not file.is_file():
        file = squad.SHORT_NAMES["embedded"] / {"train": "train.json", "dev": "test.json"}[name]
        print(f"no SQuAD v1.1 in {SQUAD_DIR} (SQUAD_DIR): this is on the embedded corpus")
    return squad.read_file(name, str(file))

"""What the README says is so: its commands parse, its tables are the program's."""

import re
import shlex
from pathlib import Path

import train
import tune
from qa.methods import METHODS

README = (Path(__file__).parent.parent / "README.md").read_text()


def commands(program: str) -> list[list[str]]:
    """Flags of every line of shell in the README that runs the program."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines if program in line]
    return [words[words.index(program) + 1 :] for words in found]


def test_training_commands_parse():
    assert commands("train.py")
    for flags in commands("train.py"):
        settings, _ = train.parse(flags)
        assert settings.method in METHODS


def test_searching_commands_parse():
    plans = [tune.parse(flags) for flags in commands("tune.py")]
    assert {len(plan.tasks) for plan in plans} == {2, 3} and {p.workers for p in plans} == {1, 2}


def test_every_method_stands_in_the_table():
    for row in METHODS.values():
        shown = [f"{k} {p.default}" for k, p in row.params.items() if k != "target_modules"]
        rate = f"{row.learning_rate:g}" if row.kind != "none" else "–"
        paper = f"[{row.paper.split('/')[-1]}](https://{row.paper})" if row.paper else ""
        cells = (f"`{row.name}`", row.summary, rate, ", ".join(shown), paper)
        assert f"| {' | '.join(cells)} |" in README


def test_the_python_says_what_its_comments_say(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(block, {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"\)  # (.*)", block)

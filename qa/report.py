"""What a person sees: headers, tables, answers, and errors as one line."""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qa import Interrupted, UserError
from qa.study import FIELDS, Settings, read_study, recorded_results

SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s+|[。！？]|\n\s*")
SENTENCE_CHARACTERS = 240  # shown at most on either side of an answer


def run_command(main: Callable[[], None]) -> None:
    """Run a command's main: 0 done, 2 the user's mistake in one line, 130/143 interrupted."""
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    except Interrupted as stopped:
        status = 128 + stopped.signum
        print(f"stopped; {stopped.advice}", file=sys.stderr)
    except KeyboardInterrupt:
        status = 130
        print("stopped; nothing was left half-written", file=sys.stderr)
    except BrokenPipeError:  # the reader of our output has gone (| head)
        sys.stderr.close()
        status = 141
    except OSError as error:  # a full disk, a folder that may not be written
        place = error.filename or "standard output, or a file"
        print(f"error: {place}: {error.strerror or error}", file=sys.stderr)
        status = 2
    else:
        status = 0
    sys.exit(status)


def make_console(quiet: bool = False, stderr: bool = False) -> Console:
    """The one place output goes through. Pipes get lines that are not folded."""
    console = Console(quiet=quiet, stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(quiet=quiet, stderr=stderr, highlight=False, width=100, soft_wrap=False)
    return console


def say(console: Console, text: str) -> None:
    """One line, as it stands: nothing in it is markup, and it is not folded."""
    console.print(text, markup=False, soft_wrap=True)


def print_header(console: Console, title: str, facts: Mapping[str, str]) -> None:
    console.rule(f"[bold]{title}", align="left", style="dim")
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"[dim]{name:<{width}}[/]  ", end="")
        say(console, value)


def describe_settings(settings: Settings, origins: Mapping[str, str]) -> dict[str, str]:
    """The settings that shape a result, grouped by where they came from."""
    groups: dict[str, list[str]] = {}
    apart = ("study", "method", "hyperparameters")
    values = {name: getattr(settings, name) for name, f in FIELDS.items()
              if f.metadata["affects_result"] and name not in apart}  # fmt: skip
    for name, value in {**values, **settings.hyperparameters}.items():
        if value is not None:
            origin = origins[name].removeprefix(f"studies/{settings.study}/")
            groups.setdefault(origin, []).append(f"{name} {value}")
    return {f"from {origin}": ", ".join(items) for origin, items in groups.items()}


def print_replay(console: Console, settings: Settings) -> None:
    """The command that trains a search's best again without the search."""
    say(
        console,
        f"the best {settings.method} again, without a search:\n    python train.py --config "
        f"{shown(settings.run_dir())}/config.json --run_name {settings.run_name}-again",
    )


def shown(path: Path) -> Path:
    """`path` as a person in this folder would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def print_methods(console: Console, name: str, base: Any, rows: Sequence[tuple]) -> None:
    """The table of methods; rows: (method, what it trains in this encoder or None)."""
    say(
        console,
        f"{name} ({base.model.config.model_type}, {base.num_parameters:,} parameters); with every "
        "method but pretrained the span head trains, and counts",
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("method", no_wrap=True)
    table.add_column("what trains")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("rate", justify="right", no_wrap=True)
    table.add_column("paper", overflow="fold", max_width=24)
    for method, count in rows:
        table.add_row(
            method.name,
            method.summary,
            "does not fit" if count is None else f"{count:,}",
            "–" if method.kind == "none" else f"{method.learning_rate:g}",
            method.paper,
        )
    console.print(table)


def compare(console: Console, settings: Settings) -> dict[str, Any]:
    """Compare a study's runs: the table, and results.json, report.html, report.md beside them.

    → what results.json holds. Raises UserError.
    """
    from qa import bertscore, comparison, runs, squad  # which load torch: not before it is needed

    read_study(settings.study)
    folder, title = settings.study_dir(), f"Study {settings.study}"
    found = runs.find_runs(folder)
    if not found:
        recorded = recorded_results(settings.study)
        if settings.output_dir or not recorded.is_file():
            place = f" --output_dir {settings.output_dir}" if settings.output_dir else ""
            raise UserError(
                f"{folder}: there is no finished run; train some: "
                f"train.py --study {settings.study}{place} --method lora …"
            )
        say(console, f"no finished run in {folder}; this is what {shown(recorded)} holds")
        made = squad.read_json(recorded)
        present(console, folder, title, made, None, [])
        return made
    tests = {run["fingerprints"]["test"]: run for run in found}
    if len(tests) > 1:
        one, other = list(tests.values())[:2]
        raise UserError(
            f"{folder}: runs were scored on different test data ({one['run_dir']}: "
            f"{one['data']['test']}; {other['run_dir']}: {other['data']['test']}) and do not "
            "compare; keep them apart with --output_dir"
        )
    predictions = [
        squad.read_predictions(folder / run["run_dir"] / "eval_predictions.json") for run in found
    ]
    runs.check_seeds(found)
    examples, problem = runs.read_test_examples(found, *tests)
    scorer = None
    if examples is None:
        say(console, f"no intervals, slices and examples: {problem}")
    else:
        scorer = bertscore.scorer_of(settings)
    with console.status("comparing"):
        made = comparison.compare(found, predictions, examples, scorer)
    made = {"study": settings.study, **made}
    present(console, folder, title, made, examples, predictions)
    return made


def present(
    console: Console,
    folder: Path,
    title: str,
    made: Mapping[str, Any],
    examples: Sequence[Any] | None,
    predictions: Sequence[Mapping[str, str]],
) -> None:
    """Print a comparison's table and findings; write results.json and the report. Raises UserError.

    examples, predictions: those that it was made from.
    """
    from qa import checkpoint, page

    print_table(console, made)
    console.print(" ".join(made["findings"]), markup=False)
    text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(folder / "results.json", text)
        written = [folder / "results.json", *page.write(folder, made, title, examples, predictions)]
    except OSError as error:
        raise UserError(f"output_dir: {folder}: {error.strerror}; choose another folder") from None
    names = ", ".join(path.name for path in written)
    say(console, f"{names} written to {shown(folder)}")


def print_table(console: Console, made: Mapping[str, Any]) -> None:
    """One row a method, over its seeds; the best of each score marked, and what ties with it."""
    from qa import page

    rows, letters = made["rows"], page.devices(made)
    for line in page.subtitle(made):
        say(console, line)
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("run", overflow="fold", min_width=max(len(row["run_name"]) for row in rows))
    table.add_column("seeds", justify="right", no_wrap=True)
    for label in page.SCORES.values():
        table.add_column(label, justify="left", no_wrap=True)
    searched = any(row["cost"]["search_trials"] for row in rows)
    for name in ("trainable", "train s", *(["search"] if searched else [])):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = []
        for key in page.SCORES:
            score = row["scores"].get(key)
            sign = page.mark(score, len(rows))
            text = Text(f"{page.spread(score)} {sign}", style="bold" if sign == "*" else "")
            if page.interval(score):
                text.append(f"\n{page.interval(score)}", style="not bold dim")
            cells.append(text)
        cost = row["cost"]
        search = None
        if cost["search_trials"]:
            search = (
                f"{cost['search_trials']} × {cost['search_seconds'] / cost['search_trials']:.0f} s"
            )
        table.add_row(
            Text(row["run_name"] + (" †" if row["random_head"] else "")),
            str(len(row["seeds"])),
            *cells,
            page.number(cost["trainable_params"]),
            page.seconds(cost, letters),
            *([search or "–"] if searched else []),
        )
    console.print(table)
    for note in page.legend(made):
        console.print(note, markup=False)
    if made["bertscore_hash"]:
        say(console, f"BERTScore: {made['bertscore_hash']}")


def one_line(text: str) -> str:
    """`text` for a terminal: white space as single blanks, control characters as �."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "�", re.sub(r"\s+", " ", text))


def sentence(context: str, start: int, end: int) -> tuple[str, str]:
    """What stands before and after context[start:end] in its sentence, shortened if that is long."""
    begin, finish = 0, len(context)
    for found in SENTENCE_END.finditer(context):
        if found.end() <= start:
            begin = found.end()
        elif found.end() >= end:
            finish = max(end, found.end())
            break
    before, after = context[begin:start], context[end:finish].rstrip()
    if len(before) > SENTENCE_CHARACTERS:
        before = "…" + before[-SENTENCE_CHARACTERS:]
    if len(after) > SENTENCE_CHARACTERS:
        after = after[:SENTENCE_CHARACTERS] + "…"
    return before, after


def print_answers(
    console: Console, question: str, context: str, answers: Sequence[Any], as_json: bool = False
) -> None:
    """The answers to one question: as JSON, as bare lines into a pipe, else for a person.

    A person sees a single answer in its sentence, several as a table. Nothing in question or
    context is taken for markup or reaches the terminal as a control sequence.
    """
    if as_json:
        for answer in answers:
            line = {"question": question, **answer._asdict()}
            print(json.dumps(line, ensure_ascii=False), flush=True)
    elif not console.is_terminal:
        for answer in answers:
            print(one_line(answer.text), flush=True)
    elif len(answers) == 1:
        answer = answers[0]
        before, after = sentence(context, answer.start, answer.end)
        shown = Text(one_line(before)).append(one_line(answer.text), "bold reverse")
        console.print(shown.append(one_line(after)))
        place = f"score {answer.score:.2f}, characters {answer.start}–{answer.end}"
        console.print(place, style="dim", markup=False)
    else:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column("score", justify="right", no_wrap=True)
        table.add_column("answer", overflow="fold")
        table.add_column("characters", justify="right", no_wrap=True)
        for answer in answers:
            place = f"{answer.start}–{answer.end}"
            table.add_row(f"{answer.score:.2f}", Text(one_line(answer.text)), place)
        console.print(table)


@cache
def _warn_once(text: str) -> None:
    print_warning(text)


def warn_of_labels(findings: Mapping[str, Sequence[Any]]) -> None:
    """Say, once a process, what `labels.findings` warns of, by split: for those who see no header."""
    for name, found in findings.items():
        for finding in found:
            if finding.level:
                _warn_once(f"{name} {finding.about}: {finding.text}")


def print_warning(message: Any, *details: Any) -> None:
    """One line on standard error; takes what `warnings.showwarning` is given."""
    print(f"warning: {one_line(str(message))}", file=sys.stderr)

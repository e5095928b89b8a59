"""What a person sees: headers, progress, tables, and errors as one line.

On a terminal there are bars and colours; into a pipe or file go plain lines.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from qa import Interrupted, UserError
from qa.study import FIELDS, Settings, read_study

PLAIN_LINE_SECONDS = 30  # between two lines of progress where there is no terminal
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
    else:
        status = 0
    sys.exit(status)


def make_console(quiet: bool = False, stderr: bool = False) -> Console:
    """The one place output goes through. Pipes get lines that are not folded."""
    console = Console(quiet=quiet, stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(quiet=quiet, stderr=stderr, highlight=False, width=100, soft_wrap=False)
    return console


def print_header(console: Console, title: str, facts: Mapping[str, str]) -> None:
    console.rule(f"[bold]{title}", align="left", style="dim")
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(f"[dim]{name:<{width}}[/]  ", end="")
        console.print(value, markup=False, soft_wrap=True)


def describe_settings(settings: Settings, origins: Mapping[str, str]) -> dict[str, str]:
    """The settings that shape a result, grouped by where they came from."""
    groups: dict[str, list[str]] = {}
    values = {name: getattr(settings, name) for name, f in FIELDS.items() if _shapes_result(f)}
    for name, value in {**values, **settings.hyperparameters}.items():
        if value is not None:
            origin = origins[name].removeprefix(f"studies/{settings.study}/")
            groups.setdefault(origin, []).append(f"{name} {value}")
    return {f"from {origin}": ", ".join(items) for origin, items in groups.items()}


def _shapes_result(f: Any) -> bool:
    return f.metadata["affects_result"] and f.name not in ("study", "method", "hyperparameters")


class TrainingDisplay:
    """Progress of one training as callbacks of `loop.fit` and `loop.predict`."""

    def __init__(self, console: Console):
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal or console.quiet,
        )
        self.tasks: dict[str, Any] = {}
        self.spoke = time.monotonic()

    def __enter__(self) -> "TrainingDisplay":
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()

    def _advance(self, name: str, done: int, total: int, note: str) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bar.add_task(name, total=total, note="")
        ended = done == total
        self.bar.update(self.tasks[name], completed=done, total=total, note=note, visible=not ended)
        if not self.console.is_terminal and time.monotonic() - self.spoke > PLAIN_LINE_SECONDS:
            self.spoke = time.monotonic()
            self.console.print(f"{name} {done}/{total} {note}", markup=False)

    def on_step(self, progress: Any, total: int, loss: float) -> None:
        speed = progress.windows_seen / max(
            1e-9, progress.train_seconds - progress.seconds_at_evaluation
        )
        self._advance("train", progress.step, total, f"loss {loss:.3f} · {rate(speed)} examples/s")

    def on_batch(self, done: int, total: int) -> None:
        self._advance("predict", done, total, "")

    def on_evaluation(self, progress: Any) -> None:
        row = progress.history[-1]
        better = " *" if progress.best_step == progress.step else ""
        self.console.print(
            f"epoch {row['epoch']:>6.2f}  step {row['step']:>6}  train_loss {row['train_loss']:.4f}  "
            f"eval_loss {row['eval_loss']:.4f}  eval_f1 {row['eval_f1']:5.2f}  "
            f"eval_em {row['eval_exact_match']:5.2f}  "
            f"{rate(row['examples_per_second'])} ex/s{better}",
            markup=False,
            soft_wrap=True,
        )


class SearchDisplay:
    """A search as it goes on: a live table on a terminal, else a line for each ended trial.

    rows: → the trials of a method so far, as `search.describe` gives them.
    """

    def __init__(self, console: Console, name: str, budget: Any, rows: Callable[[], list[dict]]):
        self.console, self.name, self.budget, self.rows = console, name, budget, rows
        self.spoken: set[int] = {row["number"] for row in rows() if row["seconds"] is not None}
        self.live = Live(
            get_renderable=self.table,
            console=console,
            refresh_per_second=1,
            auto_refresh=console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> "SearchDisplay":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.update()
        if self.console.is_terminal:
            self.live.stop()

    def table(self) -> Table:
        rows = self.rows()
        table = Table(title=f"{self.name}: {self.status(rows)}", title_justify="left")
        table.add_column("trial", justify="right")
        for name in ("parameters", "state", self.budget.metric, "s"):
            table.add_column(name, justify="left" if name == "parameters" else "right")
        best = self.best(rows)
        for row in rows[-15:]:
            table.add_row(
                str(row["number"]),
                parameters(row["params"]),
                row["reason"] or row["state"],
                "" if row["value"] is None else f"{row['value']:.4g}",
                "" if row["seconds"] is None else f"{row['seconds']:.0f}",
                style="bold" if row is best else None,
            )
        return table

    def best(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        complete = [row for row in rows if row["state"] == "complete"]
        sign = 1 if self.budget.metric == "eval_f1" else -1
        return max(complete, key=lambda row: sign * row["value"], default=None)

    def status(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """'5 of 8 trials, best 53.8 (trial 2), about 40 s left'"""
        times = [row["seconds"] for row in rows if row["counts"]]
        text = f"{len(times)} of {self.budget.n_trials} trials"
        best = self.best(rows)
        if best:
            text += f", best {best['value']:.4g} (trial {best['number']})"
        at_once = max(1, sum(row["state"] == "running" for row in rows))
        left = self.budget.n_trials - len(times)
        if times and left > 0:
            text += f", about {left * mean(times) / at_once:.0f} s left"
        return text

    def update(self) -> None:
        """Say what has ended since the last call."""
        rows = self.rows()
        for row in rows:
            if row["number"] in self.spoken or row["seconds"] is None:
                continue
            self.spoken.add(row["number"])
            value = "" if row["value"] is None else f" {row['value']:.4g}"
            reason = f" ({row['reason']})" if row["reason"] else ""
            self.console.print(
                f"{self.name} trial {row['number']}: {row['state']}{value}{reason} · "
                f"{parameters(row['params'])} · {row['seconds']:.0f} s · {self.status(rows)}",
                markup=False,
                soft_wrap=True,
            )


def parameters(values: Mapping[str, Any]) -> str:
    """'learning_rate 0.00213, r 16'"""
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


def print_outcome(console: Console, name: str, found: Mapping[str, Any]) -> None:
    """What a search found, against the settings it began with."""
    against = found["default_value"]
    untuned = "" if against is None else f" (untuned {against:.4g})"
    of_trial = f"; with {parameters(found['trial'])}" if found["trial"] else ""
    console.print(
        f"{name}: best {found['metric']} {found['best_value']:.4g}{untuned} with "
        f"{parameters(found['best_params'])}; {found['n_trials']} trials ({found['pruned']} "
        f"pruned, {found['fail']} failed{of_trial}), {found['seconds']:.0f} s of training",
        markup=False,
        soft_wrap=True,
    )
    if found["importances"]:
        shares = ", ".join(f"{key} {value:.0%}" for key, value in found["importances"].items())
        console.print(
            f"{name}: importance of the parameters: {shares}", markup=False, soft_wrap=True
        )


def print_run(console: Console, run_dir: Path, done: Any) -> None:
    """One line for a finished run of a worker; `done`, a future, holds its results."""
    if not done.cancelled() and done.exception() is None:
        found = done.result()
        console.print(
            f"{shown(run_dir)}: EM {found['eval_exact_match']:.2f}, F1 {found['eval_f1']:.2f}, "
            f"{found['train_seconds']:.0f} s",
            markup=False,
            soft_wrap=True,
        )


def print_replay(console: Console, settings: Settings) -> None:
    """The command that trains a search's best again without the search."""
    console.print(
        f"the best {settings.method} again, without a search:\n    python train.py --config "
        f"{shown(settings.run_dir())}/config.json --run_name {settings.run_name}-again",
        markup=False,
        soft_wrap=True,
    )


def shown(path: Path) -> Path:
    """`path` as a person in this folder would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def rate(value: float) -> str:
    """Three digits or so: 4.53, 45.3, 1,020."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def print_methods(console: Console, name: str, base: Any, rows: Sequence[tuple]) -> None:
    """The table of methods; rows: (method, what it trains in this encoder or None)."""
    console.print(
        f"{name} ({base.model.config.model_type}, {base.num_parameters:,} parameters); with every "
        "method but pretrained the span head trains, and counts",
        markup=False,
        soft_wrap=True,
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
    from qa import bertscore, comparison, runs  # which load torch: not before it is needed

    read_study(settings.study)
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
    folders = [folder / run["run_dir"] for run in found]
    evidence = [runs.read_evidence(run_dir) for run_dir in folders]
    predictions, histories, configs = map(list, zip(*evidence))
    examples, problem = runs.read_test_examples(folders, *tests)
    scorer = None
    if examples is None:
        console.print(f"no intervals, slices and examples: {problem}", markup=False, soft_wrap=True)
    else:
        scorer = bertscore.scorer_of(settings)
    with console.status("comparing"):
        made = comparison.compare(found, predictions, histories, examples, scorer)
    made = {"study": settings.study, **made}
    evidence = examples, predictions, histories, configs
    present(console, settings.study_dir(), f"Study {settings.study}", made, *evidence)
    return made


def present(
    console: Console, folder: Path, title: str, made: Mapping[str, Any], *evidence: Any
) -> None:
    """Print a comparison's table and findings; write results.json and the report. Raises UserError.

    evidence: what the page takes beside the comparison (`page.html`).
    """
    from qa import checkpoint, page

    print_table(console, made)
    console.print(" ".join(made["findings"]), markup=False)
    text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(folder / "results.json", text)
        written = [folder / "results.json", *page.write(folder, made, title, *evidence)]
    except OSError as error:
        raise UserError(f"output_dir: {folder}: {error.strerror}; choose another folder") from None
    names = ", ".join(path.name for path in written)
    console.print(f"{names} written to {shown(folder)}", markup=False, soft_wrap=True)


def print_table(console: Console, made: Mapping[str, Any]) -> None:
    """One row a method, over its seeds; the best of each score marked, and what ties with it."""
    from qa import page

    rows = made["rows"]
    for line in page.subtitle(made):
        console.print(line, markup=False, soft_wrap=True)
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
            page.number(cost["train_seconds"]),
            *([search or "–"] if searched else []),
        )
    console.print(table)
    for note in page.legend(made):
        console.print(note, markup=False)
    if made["bertscore_hash"]:
        console.print(f"BERTScore: {made['bertscore_hash']}", markup=False, soft_wrap=True)


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


def print_warning(message: Any, *details: Any) -> None:
    """One line on standard error; takes what `warnings.showwarning` is given."""
    print(f"warning: {one_line(str(message))}", file=sys.stderr)

"""What a person sees: headers, progress, tables, and errors as one line.

On a terminal there are bars and colours; into a pipe or file go plain lines.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qa import Interrupted, UserError
from qa.study import FIELDS, Settings

PLAIN_LINE_SECONDS = 30  # between two lines of progress where there is no terminal


def run_command(main: Callable[[], None]) -> None:
    """Run a command's main: 0 done, 2 the user's mistake in one line, 130/143 interrupted."""
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    except Interrupted as stopped:
        status = 128 + stopped.signum
        print("stopped; a checkpoint is saved, --resume goes on from it", file=sys.stderr)
    except KeyboardInterrupt:
        status = 130
        print("stopped; nothing was left half-written", file=sys.stderr)
    except BrokenPipeError:  # the reader of our output has gone (| head)
        sys.stderr.close()
        status = 141
    else:
        status = 0
    sys.exit(status)


def make_console(quiet: bool = False) -> Console:
    """The one place output goes through. Pipes get lines that are not folded."""
    console = Console(quiet=quiet, highlight=False)
    if not console.is_terminal:
        console = Console(quiet=quiet, highlight=False, width=100, soft_wrap=False)
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


def rate(value: float) -> str:
    """Three digits or so: 4.53, 45.3, 1,020."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def spread(values: Sequence[float]) -> str:
    """'mean ± sd' over seeds; one seed has no sd."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ± {stdev(values):.2f}"


def print_table(console: Console, runs: Sequence[Mapping[str, Any]], title: str) -> None:
    """One row a method, over its seeds; the best of each score in bold."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["run_name"], []).append(run)
    ordered = sorted(groups.items(), key=lambda g: -mean(r["eval_f1"] for r in g[1]))
    best = {
        key: max(mean(r[key] for r in group) for group in groups.values())
        for key in ("eval_exact_match", "eval_f1")
    }
    console.print(title, markup=False, soft_wrap=True)
    table = Table()
    table.add_column("run")
    for name in ("seeds", "EM", "F1", "trainable", "best epoch", "train s", "weights kB"):
        table.add_column(name, justify="right", no_wrap=True)
    notes = set()
    for name, group in ordered:
        cells = []
        for key in ("eval_exact_match", "eval_f1"):
            values = [run[key] for run in group]
            text = spread(values)
            cells.append(f"[bold]{text}[/]" if mean(values) == best[key] else text)
        trained = any(run["trainable_params"] for run in group)
        if not trained and not group[0]["head_trained"]:
            name += " †"
            notes.add(
                "† head not trained: this encoder comes without a span head, so its own is random"
            )
        table.add_row(
            name,
            str(len(group)),
            *cells,
            f"{group[0]['trainable_params']:,}",
            f"{mean(r['best_epoch'] for r in group):.1f}" if trained else "–",
            f"{mean(r['train_seconds'] for r in group):.0f}" if trained else "–",
            f"{mean(r['adapter_bytes'] for r in group) / 1000:.0f}" if trained else "–",
        )
    console.print(table)
    for note in sorted(notes):
        console.print(note, markup=False, soft_wrap=True)

"""What a person sees while training and search go on, and what a search found.

On a terminal there are bars and a live table; into a pipe or file go plain lines.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from qa.report import say, shown

PLAIN_LINE_SECONDS = 30  # between two lines of progress where there is no terminal


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
        say(
            self.console,
            f"epoch {row['epoch']:>6.2f}  step {row['step']:>6}  train_loss {row['train_loss']:.4f}  "
            f"eval_loss {row['eval_loss']:.4f}  eval_f1 {row['eval_f1']:5.2f}  "
            f"eval_em {row['eval_exact_match']:5.2f}  "
            f"{rate(row['examples_per_second'])} ex/s{better}",
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
        counted = [row["seconds"] for row in rows if row["counts"]]
        times = [s for s in counted if s is not None]  # one about to fail has not ended yet
        text = f"{len(counted)} of {self.budget.n_trials} trials"
        best = self.best(rows)
        if best:
            text += f", best {best['value']:.4g} (trial {best['number']})"
        at_once = max(1, sum(row["state"] == "running" for row in rows))
        left = self.budget.n_trials - len(counted)
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
            say(
                self.console,
                f"{self.name} trial {row['number']}: {row['state']}{value}{reason} · "
                f"{parameters(row['params'])} · {row['seconds']:.0f} s · {self.status(rows)}",
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
    say(
        console,
        f"{name}: best {found['metric']} {found['best_value']:.4g}{untuned} with "
        f"{parameters(found['best_params'])}; {found['n_trials']} trials ({found['pruned']} "
        f"pruned, {found['fail']} failed{of_trial}), {found['seconds']:.0f} s of training",
    )
    if found["importances"]:
        shares = ", ".join(f"{key} {value:.0%}" for key, value in found["importances"].items())
        say(console, f"{name}: importance of the parameters: {shares}")


def print_run(console: Console, run_dir: Path, done: Any) -> None:
    """One line for a finished run of a worker; `done`, a future, holds its results."""
    if not done.cancelled() and done.exception() is None:
        found = done.result()
        say(
            console,
            f"{shown(run_dir)}: EM {found['eval_exact_match']:.2f}, F1 {found['eval_f1']:.2f}, "
            f"{found['train_seconds']:.0f} s",
        )


def rate(value: float) -> str:
    """Three digits or so: 4.53, 45.3, 1,020."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"

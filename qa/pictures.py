"""What do the runs look like? SVG for the page, with a text for those who do not see it.

Text stays text, in the page's own font and, by `currentColor`, in its own colour, light or dark.
"""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from qa.methods import METHODS

# Told apart on white and on black (3:1 at least); beyond eight they come again with other marks.
COLOURS = ("#3b82c4", "#d9822b", "#2e9e6b", "#9b6bd0", "#d1495b", "#17939e", "#a0785a", "#7f8790")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#123456"  # stands for the page's own colour until the picture is put into it
SIZE = (4.7, 3.1)  # inches: as wide as a phone, so that text keeps its size there


@dataclass(frozen=True)
class Picture:
    """An SVG element to be put into a page, and what it shows, in words."""

    svg: str
    alt: str


INSIDE = 8  # entries of a legend that still fit between the lines


def styles(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """(colour, mark) of each row's run name.

    The colour is the method's, the same on every page whatever its rank; the mark tells methods of
    one colour apart, and runs of one method.
    """
    order, chosen = list(METHODS), {}
    for row in sorted(rows, key=lambda row: (row["run_name"] != row["method"], row["run_name"])):
        known = row["method"] in METHODS  # else it is a name that somebody gave to predictions
        place = order.index(row["method"]) if known else zlib.crc32(row["method"].encode())
        colour = COLOURS[place % len(COLOURS)]
        marks = [MARKS[(place // len(COLOURS) + k) % len(MARKS)] for k in range(len(MARKS))]
        free = (mark for mark in marks if (colour, mark) not in chosen.values())
        chosen[row["run_name"]] = colour, next(free, marks[0])
    return chosen


def _legend(figure: Any, axes: Any) -> None:
    """Inside the axes; where there are many entries, below them, and the picture grows."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > INSIDE:
        rows = -(-len(labels) // 3)
        figure.set_size_inches(SIZE[0], SIZE[1] + 0.16 * rows)
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8,
                      frameon=False, columnspacing=1.0, handletextpad=0.4)  # fmt: skip
    elif labels:
        axes.legend(fontsize=8, frameon=False)


def _draw(title: str, alt: str, paint: Callable[[Any], None]) -> Picture:
    """What `paint` puts on a pair of axes."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
    }
    with matplotlib.rc_context(style):
        figure = Figure(SIZE, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        # over the whole width: beside wide labels the axes alone would cut a long one off
        figure.suptitle(title, fontsize=10, x=0.01, horizontalalignment="left")
        axes.grid(alpha=0.25, linewidth=0.6)
        paint(axes)
        _legend(figure, axes)
        file = StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every picture, and used by none
    svg = svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
    return Picture(svg, alt)


def learning_curves(
    key: str,
    title: str,
    runs: Sequence[tuple[str, int, Sequence[Mapping[str, float]]]],
    style: Mapping[str, tuple[str, str]],
) -> Picture | None:
    """A line for each run, (run name, seed, history); None where no history has the key.

    style: of each run name, from `styles`.
    """
    runs = [run for run in runs if run[2] and key in run[2][0]]
    if not runs:
        return None
    ends = "; ".join(
        f"{name} seed {seed} from {history[0][key]:.4g} to {history[-1][key]:.4g} "
        f"at step {history[-1]['step']}"
        for name, seed, history in runs
    )

    def paint(axes: Any) -> None:
        for name, seed, history in runs:
            colour, mark = style[name]
            axes.plot(
                [row["step"] for row in history],
                [row[key] for row in history],
                color=colour,
                marker=mark,
                markersize=3.5,
                linewidth=1.3,
                label=name if seed == min(s for n, s, _ in runs if n == name) else None,
            )
        axes.set_xlabel("updates")

    return _draw(title, f"{title}, by run: {ends}.", paint)


def pareto(rows: Sequence[Mapping[str, Any]]) -> Picture | None:
    """F1 against trained parameters; a line joins the runs that none beats in both."""
    trained = [row for row in rows if row["cost"]["trainable_params"]]
    if not trained:
        return None
    by_cost = sorted(trained, key=lambda row: row["cost"]["trainable_params"])
    frontier: list[Mapping] = []
    for row in by_cost:
        if not frontier or row["scores"]["f1"]["value"] > frontier[-1]["scores"]["f1"]["value"]:
            frontier.append(row)
    from matplotlib.ticker import LogLocator, NullFormatter

    words = "; ".join(
        f"{row['run_name']} {row['cost']['trainable_params']:,} parameters, F1 "
        f"{row['scores']['f1']['value']:.2f}"
        for row in by_cost
    )

    def paint(axes: Any) -> None:
        least, most = (by_cost[i]["cost"]["trainable_params"] for i in (0, -1))
        axes.set_xscale("log")
        axes.set_xlim(least / 2, most * 2)
        wide = most > 100 * least
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, place: f"{value:,.0f}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.step(
            [row["cost"]["trainable_params"] for row in frontier],
            [row["scores"]["f1"]["value"] for row in frontier],
            where="post", color=INK, linewidth=0.9, alpha=0.5, label="best for so many",
        )  # fmt: skip
        style = styles(rows)
        for row in rows:
            colour, mark = style[row["run_name"]]
            f1, params = row["scores"]["f1"], row["cost"]["trainable_params"]
            if params == 0:
                axes.axhline(f1["value"], color=colour, linewidth=1, linestyle="--",
                             label=f"{row['run_name']} (0)")  # fmt: skip
            elif params:
                bars = [[f1["value"] - f1["low"]], [f1["high"] - f1["value"]]] if "low" in f1 else 0
                axes.errorbar(params, f1["value"], bars, color=colour, markersize=6,
                              marker=mark, linestyle="", capsize=3,
                              label=row["run_name"])  # fmt: skip
        axes.set_xlabel("trained parameters (log)")

    title = "F1 against trained parameters"
    return _draw(title, f"{title}: {words}. Unbeaten in both: "
                 f"{', '.join(row['run_name'] for row in frontier)}.", paint)  # fmt: skip


def search_history(name: str, search: Mapping[str, Any]) -> Picture:
    """The value of every trial, and the best so far."""
    sign = -1 if search["metric"] == "eval_loss" else 1
    trials = [t for t in search["trials"] if t["value"] is not None]
    best, so_far = None, []
    for trial in trials:
        if trial["state"] == "complete" and (best is None or sign * trial["value"] > sign * best):
            best = trial["value"]
        so_far.append(best)

    def paint(axes: Any) -> None:
        for state, shape in (("complete", "o"), ("pruned", "x")):
            chosen = [t for t in trials if t["state"] == state]
            if chosen:
                axes.plot([t["number"] for t in chosen], [t["value"] for t in chosen], shape,
                          color=COLOURS[0], markersize=5, label=state)  # fmt: skip
        axes.step([t["number"] for t in trials if so_far[trials.index(t)] is not None],
                  [value for value in so_far if value is not None],
                  where="post", color=INK, linewidth=1, alpha=0.6, label="best so far")  # fmt: skip
        axes.set_xlabel("trial")

    title = f"{name}: {search['metric']} by trial"
    values = ", ".join(f"{t['number']} {t['value']:.4g} {t['state']}" for t in trials)
    return _draw(title, f"{title}: {values}; best {search['best_value']:.4g} "
                 f"in trial {search['best_trial']}.", paint)  # fmt: skip


def importances(name: str, search: Mapping[str, Any]) -> Picture | None:
    """How much each searched parameter mattered (PED-ANOVA); None where that is not known."""
    shares = sorted(search["importances"].items(), key=lambda item: item[1])
    if not shares:
        return None

    def paint(axes: Any) -> None:
        axes.barh([key for key, _ in shares], [value for _, value in shares], color=COLOURS[0])
        axes.set_xlim(0, 1)

    title = f"{name}: importance of the parameters"
    words = ", ".join(f"{key} {value:.0%}" for key, value in reversed(shares))
    return _draw(title, f"{title}: {words}.", paint)

"""The report as files: report.html, one file that needs nothing else, and report.md for pasting.

Whatever comes from data files goes through Jinja2's escaping, or as JSON into a data block that
the page's script puts into text nodes: it is never read as HTML.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from qa import __version__, checkpoint, metrics, pictures
from qa.comparison import SCORES
from qa.squad import Example

TEMPLATE = Path(__file__).with_name("report.html.j2")
LEGEND = {
    "*": "the best of its column",
    "≈": "not distinguishable from it (its 95 % interval of the difference covers 0, or Holm's "
    "correction leaves p ≥ 0.05)",
    "†": "head not trained: this encoder comes without a span head, so its own is random",
}


def spread(score: Mapping[str, Any] | None, digits: int = 2) -> str:
    """'mean ± sd' over seeds; one seed has no sd."""
    if score is None:
        return "–"
    sd = "" if score["sd"] is None else f" ± {score['sd']:.{digits}f}"
    return f"{score['value']:.{digits}f}{sd}"


def mark(score: Mapping[str, Any] | None, rows: int = 2) -> str:
    """'*' best of the column, '≈' not distinguishable from it; nothing for a single row."""
    if score is None or rows < 2:
        return ""
    return "*" if score["best"] else "≈" if score.get("tied") else ""


def interval(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None or estimate.get("low") is None:
        return ""
    return f"[{estimate['low']:.2f}, {estimate['high']:.2f}]"


def number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _device_names(made: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for row in made["rows"] for name in row["cost"]["devices"]))


def devices(made: Mapping[str, Any]) -> dict[str, str]:
    """A letter for each device that seconds were taken on, where there are several."""
    names = _device_names(made)
    return dict(zip(names, ascii_lowercase)) if len(names) > 1 else {}


def seconds(cost: Mapping[str, Any], letters: Mapping[str, str]) -> str:
    """Seconds of training, with the device's letter (see `devices`); – of several devices at once."""
    if cost["train_seconds"] is None:
        return "–"
    return " ".join(
        [number(cost["train_seconds"]), *(letters[d] for d in cost["devices"] if letters)]
    )


def legend(made: Mapping[str, Any]) -> list[str]:
    """What the marks in this table mean."""
    rows = made["rows"]
    marks = {mark(score, len(rows)) for row in rows for score in row["scores"].values()}
    marks |= {"†" for row in rows if row["random_head"]}
    notes = [f"{sign} {meaning}" for sign, meaning in LEGEND.items() if sign in marks]
    letters = devices(made)
    notes += [f"{letter}: on {name}" for name, letter in letters.items()]
    return notes + (["seconds of two devices do not compare"] if letters else [])


def subtitle(made: Mapping[str, Any]) -> list[str]:
    """The test split, and where the intervals come from."""
    lines = [f"test split: {made['test']}"]
    if made["bootstrap"]:
        count = made["bootstrap"]["num_resamples"]
        lines.append(f"mean ± sd over seeds, [95 % interval] over {count:,} resamples of articles")
    names = _device_names(made)
    if len(names) == 1:
        lines.append(f"trained on {names[0]}")
    return lines


def markdown(made: Mapping[str, Any], title: str) -> str:
    """The table, its legend and the findings."""
    rows, letters = made["rows"], devices(made)
    head = ["run", "seeds", *SCORES.values(), "trainable", "train s", "adapter kB"]
    lines = [
        f"# {_escape(title)}",
        "",
        _escape("; ".join(subtitle(made))),
        "",
        "| " + " | ".join(head) + " |",
    ]
    lines.append("|---|" + "---:|" * (len(head) - 1))
    for row in rows:
        cost = row["cost"]
        cells = [_escape(row["run_name"]) + (" †" if row["random_head"] else "")]
        cells.append(str(len(row["seeds"])))
        for key in SCORES:
            score = row["scores"].get(key)
            sign = mark(score, len(rows)).replace("*", "\\*")
            cells.append(f"{spread(score)} {interval(score)} {sign}".strip())
        size = None if cost["adapter_bytes"] is None else cost["adapter_bytes"] / 1000
        cells += [number(cost["trainable_params"]), seconds(cost, letters), number(size)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"{line}  ".replace("* the", "\\* the") for line in legend(made))]
    if made["bertscore_hash"]:
        lines += [f"BERTScore: {_escape(made['bertscore_hash'])}"]
    lines += ["", "## Findings", "", _escape(" ".join(made["findings"]))]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Text that Markdown shows as it stands, HTML in it too."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    return "".join(f"\\{c}" if c in "|`*[]\\" else c for c in text)


def browsable(
    made: Mapping[str, Any],
    examples: Sequence[Example],
    predictions: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """The examples for the page's script: of each run name the first seed's answers.

    Positions count UTF-16 units, as JavaScript does; a gold answer without a place has -1.
    """
    firsts = {}
    for run, texts in zip(made["runs"], predictions, strict=True):
        firsts.setdefault(run["run_name"], texts)
    names = [row["run_name"] for row in made["rows"]]
    style = pictures.styles(made["rows"])
    scored = [metrics.by_question(firsts[name], examples) for name in names]
    contexts: dict[str, int] = {}
    items = []
    for i, example in enumerate(examples):
        texts = [firsts[name].get(example.id, "") for name in names]
        golds = {
            (text, len(example.context[:start].encode("utf-16-le")) // 2 if start >= 0 else -1)
            for text, start in example.answers
        }
        items.append(
            {
                "id": example.id,
                "title": example.title,
                "context": contexts.setdefault(example.context, len(contexts)),
                "question": example.question,
                "golds": sorted(golds, key=lambda gold: gold[1]),
                "answers": texts,
                "right": [int(em[i] == 100) for em, _ in scored],
                "f1": [round(overlap[i]) for _, overlap in scored],
                "disagree": len({metrics.normalize_answer(text) for text in texts}) == len(names),
            }
        )
    return {
        "runs": names,
        "colours": [style[name][0] for name in names],
        "contexts": list(contexts),
        "examples": items,
    }


def html(
    made: Mapping[str, Any],
    title: str,
    examples: Sequence[Example] | None,
    predictions: Sequence[Mapping[str, str]],
) -> str:
    """The whole page of a comparison; examples and predictions are those it was made from."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "spread": spread, "interval": interval, "number": number,
    }  # fmt: skip
    style, letters = pictures.styles(made["rows"]), devices(made)
    order = {row["run_name"]: k for k, row in enumerate(made["rows"])}
    curves = sorted(
        ((run["run_name"], run["seed"], run.get("history", [])) for run in made["runs"]),
        key=lambda curve: order[curve[0]],
    )
    searches = {run["run_name"]: run["search"] for run in made["runs"] if run.get("search")}
    searched = [
        picture
        for name, search in searches.items()
        for picture in (pictures.search_history(name, search), pictures.importances(name, search))
        if picture
    ]
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        version=__version__,
        made=made,
        mark=mark,
        subtitle="; ".join(subtitle(made)),
        legend=legend(made),
        scores=SCORES,
        devices=letters,
        seconds=lambda cost: seconds(cost, letters),
        colours=[style[row["run_name"]][0] for row in made["rows"]],
        curves=[
            picture
            for key, name in (("eval_f1", "Validation F1"), ("eval_loss", "Validation loss"),
                              ("train_loss", "Training loss"))
            if (picture := pictures.learning_curves(key, name, curves, style))
        ],
        pareto=pictures.pareto(made["rows"]),
        searched=searched,
        browsable=browsable(made, examples, predictions) if examples is not None else None,
        settings=_table_of("settings", made["runs"]),
        versions=_table_of("environment", made["runs"]),
    )  # fmt: skip


def _table_of(part: str, runs: Sequence[Mapping]) -> list[dict[str, Any]]:
    """Each name in this part of the runs with what all of them have, or what each has."""
    table = []
    for name in dict.fromkeys(name for run in runs for name in run.get(part, {})):
        found: dict[str, list[str]] = {}
        for run in runs:
            seed = f"{run['run_name']}, seed {run['seed']}"
            found.setdefault(_shown(run.get(part, {}).get(name)), []).append(seed)
        table.append({"name": name, "values": found})
    return table


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "–"
    return "–" if value is None else str(value)


def write(
    folder: Path,
    made: Mapping[str, Any],
    title: str,
    examples: Sequence[Example] | None,
    predictions: Sequence[Mapping[str, str]],
) -> list[Path]:
    """report.html and report.md."""
    paths = [folder / "report.html", folder / "report.md"]
    texts = [html(made, title, examples, predictions), markdown(made, title)]
    for path, text in zip(paths, texts, strict=True):
        checkpoint.write_text(path, text)
    return paths

"""Which method is better, by how much, how sure, where, and at what cost?

From the results and predictions of runs to one plain structure, `compare`, of which
table, page and results.json are made. Every sentence of the findings is computed from it.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import inf
from statistics import mean, stdev
from typing import Any

import numpy as np

from qa import metrics
from qa.bertscore import Scorer
from qa.certainty import ALPHA, MIN_ARTICLES, NUM_RESAMPLES, Bootstrap, holm
from qa.squad import Example

SCORES = {"exact_match": "EM", "f1": "F1", "bertscore_f1": "BERTScore"}
QUESTION_WORDS = ("what", "which", "who", "whose", "whom", "when", "where", "how", "why")
SINGLY = 6  # so many other runs are spoken of one by one
CONVERGED = 0.95  # of the best validation F1


def compare(
    found: Sequence[Mapping[str, Any]],
    predictions: Sequence[Mapping[str, str]],
    examples: Sequence[Example] | None,
    scorer: Scorer | None,
) -> dict[str, Any]:
    """Everything that is said of some runs, as plain values.

    found: the runs (`runs.find_runs`); predictions: theirs, in their order.
    examples: of the test split; without them there are scores and costs, but no certainty.
    scorer: for BERTScore; None takes what the runs have saved, where it is of one scorer.
    """
    found = [dict(run) for run in found]
    by_question: dict[str, np.ndarray] = {}
    if examples is not None:
        by_question = _score(found, predictions, examples, scorer)
    elif len({run.get("bertscore_hash") for run in found}) > 1:
        for run in found:  # of several scorers, which do not compare
            run.pop("eval_bertscore_f1", None)
    groups: dict[str, list[int]] = {}
    for index, run in enumerate(found):
        groups.setdefault(run["run_name"], []).append(index)
    rows = [_row(name, [found[i] for i in indices]) for name, indices in groups.items()]
    rows.sort(key=lambda row: -row["scores"]["f1"]["value"])
    _mark_best(rows)
    made = {
        "rows": rows,
        "runs": found,
        "test": found[0].get("data", {}).get("test"),
        "bertscore_hash": found[0].get("bertscore_hash"),
        "no_intervals": "the test data is not there",
        "bootstrap": None,
        "differences": [],
        "slices": [],
    }
    if examples is not None:
        arrays = {
            name: {key: scores[indices] for key, scores in by_question.items()}
            for name, indices in groups.items()
        }  # of each run name and score: (S, Q)
        boot = Bootstrap([example.title for example in examples])
        made["no_intervals"] = f"the test data is of fewer than {MIN_ARTICLES} articles"
        if boot.num_articles >= MIN_ARTICLES:
            made["no_intervals"] = None
            made["bootstrap"] = {
                "num_resamples": NUM_RESAMPLES,
                "questions": len(examples),
                "articles": boot.num_articles,
            }
            made["differences"] = _certainty(rows, arrays, boot)
        made["slices"] = _slices(rows, arrays, boot, examples)
    made["claims"] = _claims(made)
    made["findings"] = _findings(made)
    return made


def _score(
    found: list[dict[str, Any]],
    predictions: Sequence[Mapping[str, str]],
    examples: Sequence[Example],
    scorer: Scorer | None,
) -> dict[str, np.ndarray]:
    """Percent of every run and question, (runs, Q) by score; the means go to the results."""
    pairs = [metrics.by_question(texts, examples) for texts in predictions]
    scores = {
        "exact_match": np.stack([em for em, _ in pairs]),
        "f1": np.stack([overlap for _, overlap in pairs]),
    }
    if scorer:
        scores["bertscore_f1"] = scorer.score(predictions, examples)
    for index, run in enumerate(found):
        run |= {f"eval_{key}": float(of_runs[index].mean()) for key, of_runs in scores.items()}
        if scorer:
            run["bertscore_hash"] = scorer.hash
    return scores


def _row(name: str, runs: list[Mapping]) -> dict[str, Any]:
    """One run name over its seeds: mean ± sd of the scores, and what it cost."""
    scores = {}
    for key in SCORES:
        values = [run[f"eval_{key}"] for run in runs if f"eval_{key}" in run]
        if len(values) == len(runs):
            sd = stdev(values) if len(values) > 1 else None
            scores[key] = {"value": mean(values), "sd": sd}
    first = runs[0]
    trained = any(run.get("trainable_params") for run in runs)
    search = first.get("search") or {}
    histories = [run.get("history", []) for run in runs]
    rates = [rate for rate in map(_examples_per_second, histories) if rate]
    devices = sorted({device for device in map(_device, runs) if device})
    timed = trained and len(devices) < 2  # a mean over several devices would be of none
    cost = {
        "trainable_params": first.get("trainable_params"),
        "total_params": first.get("total_params"),
        "adapter_bytes": _mean(runs, "adapter_bytes") if trained else None,
        "devices": devices,
        "train_seconds": _mean(runs, "train_seconds") if timed else None,
        "examples_per_second": mean(rates) if rates and timed else None,
        "peak_memory_mb": _mean(runs, "peak_memory_mb") if len(devices) < 2 else None,
        "search_trials": search.get("n_trials"),
        "search_seconds": search.get("seconds"),
    }
    return {
        "run_name": name,
        "method": first["method"],
        "seeds": [run["seed"] for run in runs],
        "scores": scores,
        "cost": cost,
        "best_epoch": _mean(runs, "best_epoch") if trained else None,
        # a freshly drawn head that nothing has trained answers at random
        "random_head": not trained and first.get("head_trained") is False,
    }


def _mean(runs: Sequence[Mapping], key: str) -> float | None:
    values = [run[key] for run in runs if run.get(key) is not None]
    return mean(values) if values else None


def _examples_per_second(history: Sequence[Mapping[str, float]]) -> float | None:
    """Over the whole training: each evaluation's own rate, weighted by the time it took."""
    steps = np.diff([0, *(row["step"] for row in history)])
    seconds = [n / row["examples_per_second"] for n, row in zip(steps, history, strict=True)]
    return float(steps.sum() / sum(seconds)) if len(history) else None


def _device(run: Mapping[str, Any]) -> str | None:
    """What a run's seconds were taken on: machine, and of a CPU the threads."""
    made_in = run.get("environment", {})
    if "machine" not in made_in:
        return None
    threads, processes = made_in["num_threads"], made_in["num_processes"]
    name = made_in["machine"]
    if made_in["device"] == "cpu":
        name += f", {threads} thread{'s' if threads > 1 else ''}"
    return name + (f", {processes} processes" if processes > 1 else "")


def converged_step(history: Sequence[Mapping[str, float]], target: float) -> float:
    """Updates until validation F1 first reached the target; infinite where it never did.

    Known as finely as the run was evaluated.
    """
    return next((row["step"] for row in history if row["eval_f1"] >= target), inf)


def _mark_best(rows: list[dict[str, Any]]) -> None:
    for key in SCORES:
        values = [row["scores"][key]["value"] for row in rows if key in row["scores"]]
        for row in rows:
            if key in row["scores"]:
                row["scores"][key]["best"] = row["scores"][key]["value"] == max(values)


def _certainty(rows: list[dict], arrays: Mapping, boot: Bootstrap) -> list[dict[str, Any]]:
    """Intervals into the rows; the difference of every pair, the better first.

    A row is `tied` with the best unless their difference stands up to Holm's correction over the
    comparisons with the best.
    """
    differences = []
    for key in rows[0]["scores"]:
        resampled = boot.resample({name: scores[key] for name, scores in arrays.items()})
        ordered = sorted(rows, key=lambda row: -row["scores"][key]["value"])
        for row in rows:
            estimate = resampled[row["run_name"]].estimate()
            row["scores"][key] |= {"low": estimate.low, "high": estimate.high}
        names = [row["run_name"] for row in ordered]
        pairs = [
            {"score": key, "a": a, "b": b, **asdict(resampled[a].minus(resampled[b]))}
            for a, b in itertools.combinations(names, 2)
        ]
        with_best = {pair["b"]: pair for pair in pairs if pair["a"] == names[0]}
        corrected = holm({name: pair["p"] for name, pair in with_best.items()})
        for row in ordered[1:]:
            pair = with_best[row["run_name"]]
            pair["p_holm"] = corrected[row["run_name"]]
            row["scores"][key]["p_holm"] = pair["p_holm"]
            row["scores"][key]["tied"] = pair["p_holm"] >= ALPHA
        differences += pairs
    return differences


def slices_of(examples: Sequence[Example]) -> dict[str, dict[str, np.ndarray]]:
    """Groups of questions, (Q,) masks by kind and label; those without a question are left out."""
    words = [_question_word(example.question) for example in examples]
    answers = [min(len(text.split()) for text, _ in example.answers) for example in examples]
    contexts = np.array([len(example.context.split()) for example in examples])
    low, high = np.quantile(contexts, [1 / 3, 2 / 3]).round().astype(int)
    agreement = [_agreement(example) for example in examples]
    kinds = {
        "question word": (np.array(words), [*QUESTION_WORDS, "other"]),
        "answer length": (
            np.select(
                [np.array(answers) <= n for n in (1, 2, 4)],
                ["1 word", "2 words", "3–4 words"],
                "5 words or more",
            ),
            ["1 word", "2 words", "3–4 words", "5 words or more"],
        ),
        "context length": (
            np.select(
                [contexts <= low, contexts <= high],
                [f"up to {low} words", f"{low + 1}–{high} words"],
                f"over {high} words",
            ),
            [f"up to {low} words", f"{low + 1}–{high} words", f"over {high} words"],
        ),
        "gold answers": (np.array(agreement), ["a single one", "all alike", "differing"]),
    }
    return {
        kind: {label: of == label for label in labels if (of == label).any()}
        for kind, (of, labels) in kinds.items()
    }


def _question_word(question: str) -> str:
    """The first of the words in the question that asks; 'other' where there is none."""
    return next((w for w in re.findall(r"\w+", question.lower()) if w in QUESTION_WORDS), "other")


def _agreement(example: Example) -> str:
    if len(example.answers) == 1:
        return "a single one"
    distinct = {metrics.normalize_answer(text) for text, _ in example.answers}
    return "all alike" if len(distinct) == 1 else "differing"


def _slices(
    rows: list[dict], arrays: Mapping, boot: Bootstrap, examples: Sequence[Example]
) -> list:
    """F1 of each run with its interval, by slice."""
    f1 = {row["run_name"]: arrays[row["run_name"]]["f1"] for row in rows}
    return [
        {
            "kind": kind,
            "label": label,
            "n": int(mask.sum()),
            "f1": {
                name: asdict(resampled.estimate())
                for name, resampled in boot.resample(f1, mask).items()
            },
        }
        for kind, masks in slices_of(examples).items()
        for label, mask in masks.items()
    ]


def _claims(made: Mapping[str, Any]) -> list[dict[str, str]]:
    """The starting report's claims about LoRA and prompt tuning, held against the data.

    For each pair of runs set up alike (lora with prompt_tuning, lora-tuned with
    prompt_tuning-tuned, …).
    """
    rows = {row["run_name"]: row for row in made["rows"]}
    by_setup: dict[str, dict[str, dict]] = {}
    for name, row in rows.items():
        if row["method"] in ("lora", "prompt_tuning"):
            by_setup.setdefault(name.removeprefix(row["method"]), {})[row["method"]] = row
    claims = []
    for pair in by_setup.values():
        if len(pair) < 2:
            continue
        lora, prompt = pair["lora"], pair["prompt_tuning"]
        names = f"{lora['run_name']} above {prompt['run_name']}"
        trained = [
            [run for run in made["runs"] if run["run_name"] == row["run_name"]]
            for row in (lora, prompt)
        ]
        claims.append({"claim": f"{names} in convergence speed", **_faster(*trained)})
        for key in ("f1", "exact_match"):
            claims.append({"claim": f"{names} in {SCORES[key]}", **_above(made, lora, prompt, key)})
    return claims


def _faster(a: Sequence[Mapping], b: Sequence[Mapping]) -> dict[str, str]:
    """Is run a, given by its seeds, the faster one to reach a validation F1?

    The target is 95 % of the best of both: one of each run's own would call a run that never
    improves the fastest. yes or no where all seeds of one lie on one side of all seeds of the other,
    two at least.
    """
    trained = [run for run in (*a, *b) if run.get("history")]
    if len({run.get("fingerprints", {}).get("validation") for run in trained}) > 1:
        return {"answer": "undecided", "evidence": "their validation splits differ"}
    target = CONVERGED * max((r["eval_f1"] for run in trained for r in run["history"]), default=0)
    fast, slow = (
        [converged_step(run["history"], target) for run in runs if run.get("history")]
        for runs in (a, b)
    )
    answer = "undecided"
    if min(len(fast), len(slow)) > 1:
        if max(fast) < min(slow):
            answer = "yes"
        elif min(fast) > max(slow):
            answer = "no"
    listed = [
        ", ".join("never" if step == inf else str(step) for step in steps) or "no history"
        for steps in (fast, slow)
    ]
    why = (
        f"updates until validation F1 is {target:.2f}, 95 % of the best of both, by seed: "
        f"{listed[0]} against {listed[1]}"
    )
    return {"answer": answer, "evidence": why}


def _above(made: Mapping[str, Any], a: Mapping, b: Mapping, key: str) -> dict[str, str]:
    """yes or no where the difference's interval lies on one side of 0."""
    for pair in made["differences"]:
        if pair["score"] == key and {pair["a"], pair["b"]} == {a["run_name"], b["run_name"]}:
            sign = 1 if pair["a"] == a["run_name"] else -1
            low, high = sorted((sign * pair["low"], sign * pair["high"]))
            answer = "yes" if low > 0 else "no" if high < 0 else "undecided"
            why = f"difference {sign * pair['value']:+.2f}, 95 % interval [{low:.2f}, {high:.2f}]"
            return {"answer": answer, "evidence": why}
    return {"answer": "undecided", "evidence": f"no intervals: {made['no_intervals']}"}


def _findings(made: Mapping[str, Any]) -> list[str]:
    """The closing paragraph, a sentence an item."""
    rows, boot = made["rows"], made["bootstrap"]
    best, rest = rows[0], rows[1:]
    name, f1 = best["run_name"], best["scores"]["f1"]
    over = f" over {len(best['seeds'])} seeds" if len(best["seeds"]) > 1 else ""
    if not boot:
        return [
            f"{name} has the highest F1, {f1['value']:.2f}{over}; there are no intervals "
            f"({made['no_intervals']}), and nothing is said of differences."
        ]
    about = f"on {boot['questions']:,} questions of {boot['articles']:,} articles"
    value = f"{f1['value']:.2f} [{f1['low']:.2f}, {f1['high']:.2f}]{over}"
    if not rest:
        return [f"{name} reaches F1 {value} {about}; there is nothing to compare it with."]
    tied = [row for row in rest if row["scores"]["f1"]["tied"]]
    said = [f"{name} {'has the highest F1' if tied else 'won'}: F1 {value} {about}."]
    pairs = {d["b"]: d for d in made["differences"] if (d["score"], d["a"]) == ("f1", name)}
    if len(rest) > SINGLY:
        said += _many(pairs, [row["run_name"] for row in tied])
    else:
        said += [_distance(pairs[row["run_name"]], row in tied) for row in rest]
    said += _cost_findings(best, tied, rest)
    for claim in made["claims"]:
        said.append(f"Claimed: {claim['claim']}; found: {claim['answer']} ({claim['evidence']}).")
    return said


def _distance(pair: Mapping[str, Any], tied: bool) -> str:
    """The best's distance from another run, in a sentence."""
    interval = f"{pair['value']:.2f} [{pair['low']:.2f}, {pair['high']:.2f}]"
    p = f"p {_p(pair['p_holm'])}"
    if tied:
        return f"Its distance from {pair['b']}, {interval} ({p}), is a tie."
    return f"It stands {interval} F1 above {pair['b']} ({p})."


def _many(pairs: Mapping[str, Mapping[str, Any]], tied: list[str]) -> list[str]:
    """The same of many runs: those that tie by name, of the others the nearest."""
    said = []
    if tied:
        furthest = max(pairs[name]["value"] for name in tied)
        said.append(f"It ties with {', '.join(tied)} (at most {furthest:.2f} F1 below it).")
    below = [pair for name, pair in pairs.items() if name not in tied]
    if below:
        nearest = min(below, key=lambda pair: pair["value"])
        said.append(f"{len(below)} runs stand below it. {_distance(nearest, tied=False)}")
    return said


def _cost_findings(best: Mapping, tied: list[Mapping], rest: list[Mapping]) -> list[str]:
    cost, said = best["cost"], []
    several = len({device for row in (best, *rest) for device in row["cost"]["devices"]}) > 1

    def time(cost: Mapping) -> str:
        """' in 70 s', with the device where there are several: seconds of two do not compare."""
        if cost["train_seconds"] is None:
            return ""
        where = "".join(f" on {name}" for name in cost["devices"] if several)
        return f" in {cost['train_seconds']:.0f} s{where}"

    if cost["trainable_params"]:
        share = 100 * cost["trainable_params"] / cost["total_params"]
        search = (
            f", after {cost['search_seconds']:.0f} s of search" if cost["search_seconds"] else ""
        )
        said.append(
            f"{best['run_name']} trains {cost['trainable_params']:,} of {cost['total_params']:,} "
            f"parameters ({share:.2f} %){time(cost)} a seed{search}."
        )
    elif cost["trainable_params"] == 0:
        said.append(f"{best['run_name']} trains nothing.")
    cheaper = [
        row
        for row in (tied or rest)
        if cost["trainable_params"]
        and row["cost"]["trainable_params"]
        and row["cost"]["trainable_params"] < cost["trainable_params"]
    ]
    if cheaper:
        row = min(cheaper, key=lambda row: row["cost"]["trainable_params"])
        ratio = cost["trainable_params"] / row["cost"]["trainable_params"]
        decimals = 1 if ratio < 100 else 0
        said.append(
            f"The cheapest trained run {'that ties with it' if tied else 'below it'}, "
            f"{row['run_name']}, trains {ratio:,.{decimals}f} times fewer parameters"
            f"{time(row['cost'])}."
        )
    return said


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"

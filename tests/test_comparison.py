"""What is said of runs, against small cases worked out by hand."""

import json

import numpy as np
import pytest

from qa import comparison, page
from qa.certainty import Bootstrap
from qa.squad import Example

QUESTIONS = ["What is it?", "In which year?", "Name the ship.", "Who came, and when?", "HOW so?"]


def make_examples(count=60, articles=12):
    return [
        Example(
            str(n),
            f"article {n % articles}",
            " ".join(["word"] * (50 + n)),
            QUESTIONS[n % 5],
            ((" ".join(["word"] * (1 + n % 6)), 0), ("the word", 0))[: 1 + n % 2],
        )
        for n in range(count)
    ]


def run(name, seed=0, method=None, **more):
    return {
        "run_name": name, "seed": seed, "method": method or name, "trainable_params": 10,
        "total_params": 100, "adapter_bytes": 4000, "train_seconds": 30.0, "peak_memory_mb": 512.0,
        "head_trained": True, "data": {"test": "toy"}, "search": None, **more,
    }  # fmt: skip


def answers(examples, share, seed=0):
    """The gold answer for so large a share of the questions, else nothing right."""
    rng = np.random.default_rng(seed)
    return {e.id: e.answers[0][0] if rng.random() < share else "x" for e in examples}


def history(*f1, every=10):
    return [
        {"step": every * (k + 1), "eval_f1": value, "examples_per_second": 10.0 * (k + 1)}
        for k, value in enumerate(f1)
    ]


def compare(runs, shares, histories=None, examples=None):
    examples = examples or make_examples()
    texts = [answers(examples, share, seed=k) for k, share in enumerate(shares)]
    if histories:
        runs = [{**run, "history": rows} for run, rows in zip(runs, histories, strict=True)]
    return comparison.compare(runs, texts, examples, None)


def test_a_clear_winner_a_tie_and_what_is_said_of_them():
    runs = [run("prompt_tuning", s) for s in (1, 2)] + [run("lora", s) for s in (1, 2)]
    runs += [run("head", trainable_params=2), run("pretrained", trainable_params=0)]
    histories = [history(50, 60, 100), history(50, 96, 100), history(99, 100), history(97, 100)]
    examples = make_examples(articles=15)  # of twelve, p below 0.001 cannot be after correction
    made = compare(runs, [0.15, 0.2, 0.95, 0.9, 0.95, 0.1], [*histories, [], []], examples)
    rows = {row["run_name"]: row for row in made["rows"]}
    assert next(iter(rows)) == "lora" and rows["lora"]["scores"]["f1"]["best"]
    assert rows["lora"]["scores"]["f1"]["sd"] > 0 and rows["head"]["scores"]["f1"]["sd"] is None
    tied = [name for name, row in rows.items() if row["scores"]["f1"].get("tied")]
    assert tied == ["head"]
    said = " ".join(made["findings"])
    assert "lora has the highest F1" in said and "from head" in said and "is a tie" in said
    assert "F1 above prompt_tuning (p < 0.001)" in said and "head, trains 5.0 times fewer" in said
    assert [claim["answer"] for claim in made["claims"]] == ["yes", "yes", "yes"]
    assert "10, 10 against 30, 20" in made["claims"][0]["evidence"]
    pair = next(
        d for d in made["differences"]
        if (d["score"], d["a"], d["b"]) == ("f1", "lora", "prompt_tuning")
    )  # fmt: skip
    assert pair["low"] < pair["value"] < pair["high"] and pair["p"] <= pair["p_holm"]
    value = rows["lora"]["scores"]["f1"]["value"] - rows["prompt_tuning"]["scores"]["f1"]["value"]
    assert pair["value"] == pytest.approx(value)
    assert len(made["differences"]) == 2 * 6  # every pair of four, in EM and F1
    json.dumps(made, allow_nan=False)


def test_claims_are_denied_or_left_open_by_the_data():
    runs = [run("prompt_tuning", s) for s in (1, 2)] + [run("lora", s) for s in (1, 2)]
    slow, fast, odd = history(50, 60, 100), history(99, 100), history(50, 99, 100)
    made = compare(runs, [0.9, 0.95, 0.1, 0.1], [fast, fast, slow, slow])
    assert [claim["answer"] for claim in made["claims"]] == ["no", "no", "no"]
    made = compare(runs, [0.5, 0.5, 0.5, 0.5], [fast, odd, odd, slow])
    assert [claim["answer"] for claim in made["claims"]] == ["undecided"] * 3
    made = compare(runs[1:3], [0.1, 0.9], [slow, fast])
    assert made["claims"][0]["answer"] == "undecided", "one seed each says nothing of speed"
    tuned = [run("prompt_tuning-tuned", method="prompt_tuning"), run("lora", method="lora")]
    assert compare(tuned, [0.1, 0.9])["claims"] == [], "not set up alike"


def test_what_ties_with_the_best_has_an_interval_over_0_or_falls_to_the_correction():
    runs = [run(f"m{n}") for n in range(9)]
    made = compare(runs, [0.95, 0.93, 0.9, 0.87, 0.84, 0.8, 0.75, 0.7, 0.6])
    rows = {row["run_name"]: row for row in made["rows"]}
    for pair in made["differences"]:
        assert (pair["p"] < 0.05) == (pair["low"] > 0)
        if "p_holm" in pair:
            assert rows[pair["b"]]["scores"][pair["score"]]["tied"] == (pair["p_holm"] >= 0.05)
            assert pair["p_holm"] >= pair["p"]


def test_each_run_is_resampled_once_for_each_score_and_slice(monkeypatch):
    passes, whole = [], Bootstrap.weights
    monkeypatch.setattr(Bootstrap, "weights", lambda boot: passes.append(1) or whole(boot))
    for count in (2, 7):
        made = compare([run(f"m{n}") for n in range(count)], [0.5] * count)
        assert len(made["differences"]) == 2 * count * (count - 1) / 2
        assert len(passes) == 2 + len(made["slices"])
        passes.clear()


def test_slices_divide_the_questions():
    examples = make_examples()
    slices = comparison.slices_of(examples)
    for masks in slices.values():
        assert (np.sum(list(masks.values()), axis=0) == 1).all()
    words = slices["question word"]
    assert {name: mask.sum() for name, mask in words.items()} == {
        "what": 12, "which": 12, "who": 12, "how": 12, "other": 12,
    }  # fmt: skip
    assert {k: m.sum() for k, m in slices["gold answers"].items()} == {
        "a single one": 30, "differing": 30,
    }  # fmt: skip
    alike = Example("", "", "word", "?", (("the word", 0), ("word", 0)))
    assert comparison.slices_of([alike])["gold answers"].keys() == {"all alike"}
    # of n % 6 == 1, 3, 5 words against "the word": two, four, six words; shortest: two
    lengths = {name: mask.sum() for name, mask in slices["answer length"].items()}
    assert lengths == {"1 word": 10, "2 words": 30, "3–4 words": 10, "5 words or more": 10}
    made = compare([run("lora"), run("head")], [0.9, 0.2])
    assert sum(s["n"] for s in made["slices"] if s["kind"] == "context length") == 60
    for part in made["slices"]:  # n % 6 is of two articles, n % 2 of six, n % 5 of all twelve
        found = part["f1"]["lora"]
        if part["kind"] in ("answer length", "gold answers"):
            assert found["low"] is None
        else:
            assert found["low"] <= found["value"] <= found["high"]


def test_costs_are_means_over_seeds():
    search = {"n_trials": 4, "seconds": 120.0}
    made = compare([run("lora", search=search)], [1.0], [history(50, 60)])
    cost = made["rows"][0]["cost"]
    assert cost["examples_per_second"] == pytest.approx(20 / (1 + 0.5))  # 10 at 10/s, 10 at 20/s
    assert (cost["train_seconds"], cost["search_seconds"]) == (30.0, 120.0)
    assert "nothing to compare" in made["findings"][0]


def on(machine, device="cpu", num_threads=1):
    return {
        "machine": machine, "device": device, "num_threads": num_threads, "num_processes": 1,
    }  # fmt: skip


def test_seconds_of_several_devices_are_named_and_not_put_together():
    gpu, slow = on("Linux, H200", "cuda"), on("Linux, 2 cores")
    runs = [
        run("lora", 1, environment=gpu), run("lora", 2, environment=gpu),
        run("head", trainable_params=2, environment=slow),
        run("full", 1, environment=gpu), run("full", 2, environment=slow),
    ]  # fmt: skip
    examples = make_examples()
    made = compare(runs, [0.95, 0.95, 0.1, 0.3, 0.3], examples=examples)
    costs = {row["run_name"]: row["cost"] for row in made["rows"]}
    assert costs["lora"]["devices"] == ["Linux, H200"] and costs["lora"]["train_seconds"] == 30
    assert costs["full"]["train_seconds"] is None, "of two devices there is no mean"
    assert costs["full"]["peak_memory_mb"] is None and costs["head"]["peak_memory_mb"] == 512
    said = " ".join(made["findings"])
    assert "in 30 s on Linux, H200 a seed" in said
    assert "trains 5.0 times fewer parameters in 30 s on Linux, 2 cores, 1 thread" in said
    table = page.markdown(made, "")
    letters = page.devices(made)
    assert f"| 30 {letters['Linux, H200']} |" in table and "do not compare" in table
    html = page.html(made, "", None, [])
    assert all(f"{letter}: on {name}." in html for name, letter in letters.items())
    unknown = {**runs[0], "environment": {}}  # as in a predictions file's report
    said = " ".join(compare([unknown, *runs[2:]], [0.95, 0.1, 0.3, 0.3])["findings"])
    assert "(10.00 %) in 30 s a seed" in said
    alone = compare(runs[:2], [0.9, 0.9])
    assert page.devices(alone) == {} and "trained on Linux, H200" in page.subtitle(alone)


def test_convergence_is_measured_to_one_target_for_both():
    """A run that never improves does not get anywhere first."""
    assert comparison.converged_step(history(90, 94, 96, 100), 95) == 30
    assert comparison.converged_step(history(90, 94), 95) == np.inf
    runs = [run(name, seed) for name in ("lora", "prompt_tuning") for seed in (1, 2)]
    flat, rising = history(20, 20, 20), history(20, 79, 80)
    made = compare(runs, [0.5] * 4, [rising, rising, flat, flat])
    assert made["claims"][0]["answer"] == "yes"
    evidence = "until validation F1 is 76.00, 95 % of the best of both, by seed: 20, 20 against "
    assert evidence + "never, never" in made["claims"][0]["evidence"]
    json.dumps(made, allow_nan=False)
    for index, one in enumerate(runs):
        one["fingerprints"] = {"validation": str(index % 2)}
    made = compare(runs, [0.5] * 4, [rising, rising, flat, flat])
    assert made["claims"][0] | {"claim": ""} == {
        "claim": "", "answer": "undecided", "evidence": "their validation splits differ",
    }  # fmt: skip


def test_without_the_test_data_nothing_is_said_of_differences():
    runs = [
        run(
            "lora", eval_f1=50.0, eval_exact_match=40.0, eval_bertscore_f1=90.0, bertscore_hash="a"
        ),
        run(
            "head", eval_f1=30.0, eval_exact_match=20.0, eval_bertscore_f1=80.0, bertscore_hash="b"
        ),
    ]
    made = comparison.compare(runs, [{}, {}], None, None)
    assert made["differences"] == [] and made["slices"] == [] and made["bootstrap"] is None
    assert "no intervals" in made["findings"][0]
    assert "bertscore_f1" not in made["rows"][0]["scores"], "of two scorers, which do not compare"


def test_of_few_articles_nothing_is_said_of_differences():
    examples = make_examples(articles=7)
    made = compare([run("lora"), run("prompt_tuning")], [0.9, 0.1], examples=examples)
    assert made["differences"] == [] and made["bootstrap"] is None and made["slices"]
    assert "fewer than 8 articles" in made["findings"][0]
    assert made["claims"][1]["answer"] == "undecided"
    page.html(made, "", examples, [answers(examples, 1)] * 2)


def test_of_many_runs_the_ties_are_named_and_the_nearest_of_the_others():
    runs = [run(f"m{n}") for n in range(9)]
    made = compare(runs, [0.95, 0.9, 0.92, 0.3, 0.2, 0.2, 0.1, 0.1, 0.0])
    said = " ".join(made["findings"])
    assert "It ties with m" in said and said.count("is a tie") == 0
    below = [row["run_name"] for row in made["rows"][1:] if not row["scores"]["f1"]["tied"]]
    assert f"{len(below)} runs stand below it. It stands " in said
    assert f"F1 above {below[0]} " in said

"""Intervals and p-values against brute force, and their coverage where the truth is known."""

import time

import numpy as np
import pytest

from qa.certainty import MIN_ARTICLES, Bootstrap, holm, tail


def simulated(rng, articles=48, seeds=1, effect=0.0, methods=1, seed_sd=1.0):
    """Scores (methods, S, Q) around 50 + effect of the first, and the article of each question.

    Articles of several sizes; what makes a question hard is shared by its article and by all
    methods; every seed of every method has its own luck.
    """
    article = np.repeat(np.arange(articles), rng.integers(5, 12, articles))
    hard = rng.normal(0, 12, articles)[article]
    shape = (methods, seeds, len(article))
    scores = 50 + hard + rng.normal(0, 30, shape) + rng.normal(0, seed_sd, (methods, seeds, 1))
    scores[0] += effect
    return scores, article


def brute_force(scores, article, num_resamples, rng):
    """The means over drawn articles, one question at a time."""
    names = np.unique(article)
    found = []
    for _ in range(num_resamples):
        questions = [
            score
            for name in rng.choice(names, len(names) - 1)
            for score in scores[article == name].tolist()
        ]
        found.append(sum(questions) / len(questions))
    return np.array(found)


def test_each_resample_is_the_mean_over_the_drawn_articles():
    rng = np.random.default_rng(1)
    [scores], article = simulated(rng, articles=9)
    boot = Bootstrap([f"title {a}" for a in article], num_resamples=20)
    assert (boot.weights.sum(1) == 8).all()
    # articles are numbered in the order of their sorted names: here their own order
    for r, found in enumerate(boot.means("x", scores)):
        copies = np.repeat(np.arange(len(article)), boot.weights[r].astype(int)[article])
        assert found == pytest.approx(scores[0, copies].mean())


def test_intervals_agree_with_brute_force():
    rng = np.random.default_rng(2)
    [scores], article = simulated(rng, articles=20)
    reference = brute_force(scores[0], article, 2000, rng)
    boot = Bootstrap(article)
    found = boot.score("x", scores)
    assert found.value == pytest.approx(scores.mean())
    assert tail(20) == pytest.approx(0.0186, abs=1e-3)  # Student's 2.093 at 19 degrees of freedom
    width = found.high - found.low
    for mine, theirs in zip(
        (found.low, found.high), np.quantile(reference, [tail(20), 1 - tail(20)])
    ):
        assert mine == pytest.approx(theirs, abs=0.05 * width)


def test_seeds_add_their_own_variance_alone():
    """Variance of the resampled means against the components that made the data."""
    rng = np.random.default_rng(8)
    articles, seeds, luck = 400, 40, 2.0
    article = np.repeat(np.arange(articles), 5)
    hard = rng.normal(0, 10, articles)[article]
    noise = rng.normal(0, 30, (seeds, len(article)))
    scores = hard + noise + rng.normal(0, luck, (seeds, 1))
    expected = 10**2 / articles + 30**2 / (seeds * len(article)) + luck**2 / seeds
    found = Bootstrap(article).means("x", scores).var()
    assert found == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0), (3, 0.5), (5, 1.0)])
def test_intervals_of_scores_and_differences_hold_the_truth_19_times_in_20(seeds, seed_sd):
    rng = np.random.default_rng(3)
    trials, held, held_difference = 1000, 0, 0
    for _ in range(trials):
        (a, b), article = simulated(rng, seeds=seeds, effect=4.0, methods=2, seed_sd=seed_sd)
        boot = Bootstrap(article, num_resamples=1500)
        one, difference = boot.score("a", a), boot.difference("a", a, "b", b)
        held += one.low <= 54.0 <= one.high
        held_difference += difference.low <= 4.0 <= difference.high
    assert 0.93 <= held / trials <= 0.97
    assert 0.93 <= held_difference / trials <= 0.97


def test_p_values_are_uniform_where_nothing_differs_and_small_where_much_does():
    rng = np.random.default_rng(4)
    p = []
    for _ in range(400):
        (a, b), article = simulated(rng, methods=2, seed_sd=0)
        p.append(Bootstrap(article, num_resamples=300).difference("a", a, "b", b).p)
    assert np.quantile(p, [0.05, 0.25, 0.5, 0.75]) == pytest.approx(
        [0.05, 0.25, 0.5, 0.75], abs=0.06
    )
    (a, b), article = simulated(rng, methods=2, effect=20)
    assert Bootstrap(article).difference("a", a, "b", b).p < 0.001
    assert Bootstrap(article).difference("a", a, "b", a).p == 1.0


def test_pairing_makes_differences_sharper_than_scores():
    rng = np.random.default_rng(5)
    (a, b), article = simulated(rng, methods=2, seed_sd=0)
    b = a + rng.normal(0, 2, a.shape)
    boot = Bootstrap(article)
    one, difference = boot.score("a", a), boot.difference("a", a, "b", b)
    assert difference.high - difference.low < (one.high - one.low) / 5


def test_a_slice_counts_its_own_questions():
    rng = np.random.default_rng(6)
    [scores], article = simulated(rng)
    mask = article % 3 == 0
    boot = Bootstrap(article)
    found = boot.score("x", scores, mask)
    assert found.n == mask.sum() and found.value == pytest.approx(scores[:, mask].mean())
    assert found.low < found.value < found.high
    # the same as those articles by themselves, but for which draws hold how many of them
    alone = Bootstrap(article[mask]).score("x", scores[:, mask])
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_few_articles_have_no_interval():
    """Drawn from one, a score would be certain; from two or three, nearly."""
    rng = np.random.default_rng(9)
    (a, b), article = simulated(rng, methods=2)
    boot = Bootstrap(article)
    for count in (1, MIN_ARTICLES - 1, MIN_ARTICLES):
        mask = article < count
        few = Bootstrap(article[mask])
        found = [
            boot.score("a", a, mask),
            few.score("a", a[:, mask]),
            few.difference("a", a[:, mask], "b", b[:, mask]),
        ]
        assert all(
            (one.low is None) == (count < MIN_ARTICLES) == (one.high is None) for one in found
        )


def test_holm_against_a_worked_example():
    """Four tests at 0.005, 0.01, 0.03, 0.04: 4, 3, 2, 1 times, never falling."""
    found = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.005})
    assert found == pytest.approx({"b": 0.02, "a": 0.03, "c": 0.06, "d": 0.06})
    assert holm({"a": 0.9}) == {"a": 0.9} and holm({}) == {}


def test_all_of_squad_dev_takes_seconds(squad_dev):
    """Five methods of three seeds, three scores, every pair."""
    rng = np.random.default_rng(7)
    scores = rng.uniform(0, 100, (5, 3, 3, len(squad_dev.examples)))
    began = time.perf_counter()
    boot = Bootstrap([e.title for e in squad_dev.examples])
    for m in range(3):
        for i in range(5):
            boot.score(str(i), scores[i, m])
            for j in range(i):
                boot.difference(str(i), scores[i, m], str(j), scores[j, m])
    assert time.perf_counter() - began < 5

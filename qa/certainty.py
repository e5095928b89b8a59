"""How sure can one be of a score, and of a difference between two methods?

Questions of one article share its text and its author, so whole articles are resampled, not
questions: the cluster bootstrap (Cameron, Gelbach & Miller 2008, https://doi.org/10.1162/rest.90.3.414;
Efron & Tibshirani 1993, ch. 8 and 16). All methods are scored on the same drawn articles, so that
differences are paired (Dror et al. 2018, https://aclanthology.org/P18-1128).

Where a method has several seeds these are drawn as well, for each method on its own, as random
effects. The means of two seeds differ partly because each answers single questions by luck, which
the draw of articles holds already: counted twice it would make intervals half as wide again (Owen
2007, https://doi.org/10.1214/07-AOAS122). So the seeds' deviations are shrunk to the part that is
theirs alone (Davison & Hinkley 1997, section 3.8).

Of n articles or seeds, n - 1 are drawn with replacement: n would make the variance too small by
(n - 1) / n (Rao & Wu 1988, https://doi.org/10.1080/01621459.1988.10478591), a third for three
seeds. With two or three seeds their part of an interval remains a rough one.

S seeds, Q questions, C articles, R resamples.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

NUM_RESAMPLES = 10_000
ALPHA = 0.05  # intervals hold 1 - ALPHA
MIN_ARTICLES = 5  # of fewer, draws say too little of how others would do
Z = 1.959964  # the normal distribution's 1 - ALPHA / 2 quantile


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and over how many questions; `p` where it is a difference.

    Of fewer than MIN_ARTICLES articles there is no interval.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    p: float | None = None


def _draws(things: int, rng: np.random.Generator, num_resamples: int) -> np.ndarray:
    """How often each of `things` was drawn, (R, things): one less than there are, or the only one."""
    drawn = max(1, things - 1)
    return rng.multinomial(drawn, np.full(things, 1 / things), num_resamples).astype(float)


class Bootstrap:
    """The same R draws of articles for every score that is asked of it.

    articles: the article of each question, (Q,).
    """

    def __init__(self, articles: Sequence, num_resamples: int = NUM_RESAMPLES, seed: int = 0):
        names, self.article_of = np.unique(np.asarray(articles), return_inverse=True)
        self.num_articles, self.num_resamples, self.seed = len(names), num_resamples, seed
        rng = np.random.default_rng(seed)
        self.weights = _draws(self.num_articles, rng, num_resamples)  # (R, C)

    def seed_weights(self, name: str, seeds: int) -> np.ndarray:
        """Shares of a method's seeds, (R, S): its own draws, the same for each of its scores."""
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        drawn = _draws(seeds, rng, self.num_resamples)
        return drawn / drawn.sum(1, keepdims=True)

    def means(self, name: str, scores: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """A method's mean score in each resample, (R,).

        scores: (S, Q). mask: the questions that count, (Q,); NaN where none of them was drawn.
        """
        inside = np.ones(scores.shape[1]) if mask is None else mask.astype(float)
        sums = np.stack(
            [np.bincount(self.article_of, row * inside, self.num_articles) for row in scores], 1
        )  # (C, S)
        counts = np.bincount(self.article_of, inside, self.num_articles)  # (C,)
        with np.errstate(invalid="ignore"):
            drawn = (self.weights @ sums.mean(1)) / (self.weights @ counts)
        if len(scores) == 1:
            return drawn
        return drawn + self.seed_weights(name, len(scores)) @ _seed_effects(sums, counts)

    def score(self, name: str, scores: np.ndarray, mask: np.ndarray | None = None) -> Estimate:
        """A method's mean score over seeds and (masked) questions, with its interval."""
        chosen, articles = scores, self.num_articles
        if mask is not None:
            chosen, articles = scores[:, mask], len(np.unique(self.article_of[mask]))
        low, high = _interval(self.means(name, scores, mask), articles)
        return Estimate(float(chosen.mean()), low, high, chosen.shape[1])

    def difference(self, a: str, of_a: np.ndarray, b: str, of_b: np.ndarray) -> Estimate:
        """Mean of a minus mean of b, its interval, and the p-value of their being equal.

        p: how often the resampled difference, shifted to be centred on 0, is as far from 0 as the
        observed one (two-sided; one is added to both counts, Davison & Hinkley 1997, eq. 4.11).
        """
        value = float(of_a.mean() - of_b.mean())
        resampled = self.means(a, of_a) - self.means(b, of_b)
        low, high = _interval(resampled, self.num_articles)
        # Equal scores differ by rounding alone: 1e-6 of a percentage point.
        extreme = np.abs(resampled - value) >= abs(value) - 1e-6
        p = (1 + int(extreme.sum())) / (1 + self.num_resamples)
        return Estimate(value, low, high, of_a.shape[1], p)


def tail(articles: int) -> float:
    """The share of resamples on either side of an interval.

    Few articles vary like Student's t: the percentiles are put out as far as its quantile
    (Hesterberg 2015, https://doi.org/10.1080/00031305.2015.1089789), here by its expansion.
    """
    return NormalDist().cdf(-(Z + (Z**3 + Z) / (4 * (articles - 1))))


def _interval(resampled: np.ndarray, articles: int) -> tuple[float, float] | tuple[None, None]:
    if articles < MIN_ARTICLES:
        return None, None
    low, high = np.nanquantile(resampled, [tail(articles), 1 - tail(articles)])
    return float(low), float(high)


def _seed_effects(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """What each seed adds to the mean, (S,): their deviations, shrunk to the variance of seeds.

    sums: of the scores by article and seed, (C, S). counts: questions by article, (C,).
    """
    articles, seeds = sums.shape
    means = sums.sum(0) / counts.sum()
    residual = sums - counts[:, None] * means
    residual -= residual.mean(1, keepdims=True)
    # variance of a seed's mean that comes from articles and seeds together
    by_luck = (residual**2).sum() / (seeds - 1) / counts.sum() ** 2
    by_luck *= articles / max(1, articles - 1)
    between = means.var(ddof=1)
    share = max(0.0, 1 - by_luck / between) if between > 0 else 0.0
    return (means - means.mean()) * np.sqrt(share)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number (Holm 1979, https://www.jstor.org/stable/4615733)."""
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.get)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return corrected

"""How sure can one be of a score, and of a difference between two methods?

Questions of one article share its text and its author, so whole articles are drawn, not single
questions. Each resample holds every article with probability one half, and its score is the mean
over their questions. An interval is the middle 95 % of these means. If articles deviate from the
true mean independently and symmetrically, it holds the true mean that often for any number of
articles, of any sizes and variances (Hartigan 1969, "Using subsample values as typical values",
JASA 64, 1303-1317). Draws with replacement give intervals that are too short where articles are few
or their sizes unequal.

All methods are scored on the same draws, so that differences are paired. The share of resamples in
which a difference has the other sign is then the p-value of the test that exchanges the answers of
the two methods article by article (Noreen 1989, "Computer-intensive methods for testing
hypotheses"; Dror et al. 2018, https://aclanthology.org/P18-1128). Interval and p-value agree:
p < 0.05 exactly where the interval leaves out 0.

The seeds of a method are random effects, which move all articles together. The means of two seeds
differ partly because each answers single questions by luck, which the draw of articles holds
already: counted twice it would make intervals half as wide again (Owen 2007,
https://doi.org/10.1214/07-AOAS122). So the seeds' deviations are shrunk to the part that is theirs
alone (Davison & Hinkley 1997, section 3.8), and normal draws of that size are added. With two or
three seeds this size is itself only roughly known, so the resamples are spread out as far as
Student's t, with degrees of freedom by Satterthwaite (1946, https://doi.org/10.2307/3002019).

S seeds, Q questions, C articles, R resamples.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

NUM_RESAMPLES = 10_000
ALPHA = 0.05  # intervals hold 1 - ALPHA
MIN_ARTICLES = 8  # fewer have too few subsets to tell 5 % of them
# Student's 1 - ALPHA / 2 quantile in powers of 1 / df (Abramowitz & Stegun 1964, eq. 26.7.5)
T_QUANTILE = (1.5895340, 2.5558497, 2.8224986, 2.3722712, 1.9599640)
BLOCK = 1 << 18  # so many draws are unpacked at a time: 2 MB, which stay in the cache


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and over how many questions; `p` where it is a difference.

    Of fewer than MIN_ARTICLES articles there is no interval and no p.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    p: float | None = None


@dataclass(frozen=True)
class Resampled:
    """A mean score, or a difference of two, and its draws: what it is in each resample, (R,).

    A draw is NaN where it holds no question. articles: of how many the questions are.
    seed_term: variance that comes from seeds, squared and divided by its degrees of freedom.
    bounds: the lowest and the highest score of a question.
    """

    value: float
    draws: np.ndarray
    n: int
    articles: int
    seed_term: float
    bounds: tuple[float, float] = (-np.inf, np.inf)

    def estimate(self) -> Estimate:
        """The value and its interval, which does not leave the range of the scores."""
        if self.articles < MIN_ARTICLES:
            return Estimate(self.value, None, None, self.n)
        values, below = self.distribution
        ends = np.interp([ALPHA / 2, 1 - ALPHA / 2], below, values)
        low, high = np.clip(ends, *self.bounds).tolist()
        return Estimate(self.value, low, high, self.n)

    def minus(self, other: "Resampled") -> Estimate:
        """This less another of the same resamples, with the p-value of their being equal.

        No p is smaller than C articles can show, whose answers can be exchanged in 2^C ways, or
        than R resamples can.
        """
        difference = Resampled(
            self.value - other.value,
            self.draws - other.draws,
            self.n,
            self.articles,
            self.seed_term + other.seed_term,
        )
        found = difference.estimate()
        if found.low is None:
            return found
        values, below = difference.distribution
        share = np.interp(0, values, below, left=0, right=1)
        least = max(2.0 ** (1 - self.articles), 1 / len(self.draws))
        return replace(found, p=float(max(2 * min(share, 1 - share), least)))

    @cached_property
    def distribution(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct draws in ascending order, and the share of draws below each.

        Half of those equal to it count as below: scores of 0 and 1 tie often, and would seem less
        certain than they are (mid-distribution: Ma, Genton & Parzen 2011, "Asymptotic properties
        of sample quantiles of discrete distributions", AISM 63). Rounded, so that equal means tie.
        """
        draws = self.draws[~np.isnan(self.draws)]
        if self.seed_term:
            quantile = np.polyval(T_QUANTILE, self.seed_term / draws.var() ** 2)
            draws = self.value + (draws - self.value) * quantile / T_QUANTILE[-1]
        values, counts = np.unique(draws.round(9) + 0.0, return_counts=True)  # no -0.0
        return values, (counts.cumsum() - counts / 2) / len(draws)


class Bootstrap:
    """The same R draws of articles for every score that is asked of it.

    articles: the article of each question, (Q,).
    """

    def __init__(self, articles: Sequence, num_resamples: int = NUM_RESAMPLES, seed: int = 0):
        names, self.article_of = np.unique(np.asarray(articles), return_inverse=True)
        self.num_articles, self.num_resamples, self.seed = len(names), num_resamples, seed
        rng = np.random.default_rng(seed)
        # a bit for each article: 25 MB for 20,000 articles
        self.bits = rng.integers(256, size=(num_resamples, -(-len(names) // 8)), dtype=np.uint8)

    def weights(self) -> Iterator[np.ndarray]:
        """1 for the articles that a resample holds, else 0: (R, C) in blocks of rows."""
        rows = max(1, BLOCK // self.num_articles)
        for start in range(0, self.num_resamples, rows):
            block = self.bits[start : start + rows]
            yield np.unpackbits(block, axis=1, count=self.num_articles).astype(float)

    def resample(
        self, runs: Mapping[str, np.ndarray], mask: np.ndarray | None = None
    ) -> dict[str, Resampled]:
        """The mean score of each method, in all and in each resample.

        runs: scores by method, (S, Q) each. mask: the questions that count, (Q,).
        """
        inside = np.ones(len(self.article_of), bool) if mask is None else mask
        article_of = self.article_of[inside]
        counts = np.bincount(article_of, minlength=self.num_articles)  # (C,)
        chosen = {name: scores[:, inside] for name, scores in runs.items()}
        sums = {
            name: np.stack([np.bincount(article_of, row, self.num_articles) for row in scores], 1)
            for name, scores in chosen.items()
        }  # (C, S) each
        columns = np.stack([counts, *(of.mean(1) for of in sums.values())], 1)
        drawn = np.concatenate([block @ columns for block in self.weights()])
        with np.errstate(invalid="ignore"):
            means = (drawn[:, 1:] / drawn[:, :1]).T
        found = {}
        for (name, scores), draws in zip(chosen.items(), means, strict=True):
            seeds, seed_term = len(scores), 0.0
            if seeds > 1:
                effects = _seed_effects(sums[name], counts)
                draws = draws + self.seed_weights(name, seeds) @ effects
                seed_term = float((effects @ effects) ** 2 / (seeds - 1))
            found[name] = Resampled(
                float(scores.mean()),
                draws,
                scores.shape[1],
                np.count_nonzero(counts),
                seed_term,
                (float(scores.min()), float(scores.max())),
            )
        return found

    def seed_weights(self, name: str, seeds: int) -> np.ndarray:
        """A method's own draws of its seeds, (R, S), standard normal: the same for all scores."""
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        return rng.standard_normal((self.num_resamples, seeds))

    def score(self, name: str, scores: np.ndarray, mask: np.ndarray | None = None) -> Estimate:
        """A method's mean score over seeds and (masked) questions, with its interval."""
        return self.resample({name: scores}, mask)[name].estimate()

    def difference(self, a: str, of_a: np.ndarray, b: str, of_b: np.ndarray) -> Estimate:
        """Mean of a minus mean of b, its interval, and the p-value of their being equal."""
        return self.resample({a: of_a})[a].minus(self.resample({b: of_b})[b])


def _seed_effects(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """What each seed adds to the mean, (S,); the sum of squares is the variance that they add.

    Their deviations, shrunk to the variance of seeds.
    sums: of the scores by article and seed, (C, S). counts: questions by article, (C,).
    """
    articles, seeds = np.count_nonzero(counts), sums.shape[1]
    means = sums.sum(0) / counts.sum()
    residual = sums - counts[:, None] * means
    residual -= residual.mean(1, keepdims=True)
    # variance of a seed's mean that comes from articles and seeds together
    by_luck = (residual**2).sum() / (seeds - 1) / counts.sum() ** 2
    by_luck *= articles / max(1, articles - 1)
    between = means.var(ddof=1)
    share = max(0.0, 1 - by_luck / between) if between > 0 else 0.0
    return (means - means.mean()) * np.sqrt(share / (seeds * (seeds - 1)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number (Holm 1979, https://www.jstor.org/stable/4615733)."""
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.get)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return corrected

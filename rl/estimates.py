"""Estimates from samples, with their intervals: pass@k, maj@k, shares, means, paired differences, calibration.

    pass@k = mean over problems of 1 - C(n - c, k) / C(n, k)          c of n samples right (Chen et al., arXiv
                                                                      2107.03374, equation 1): unbiased
    maj@k  = mean over the C(n, k) choices of k samples of how right the most frequent answer is, ties shared
"""

import collections
import itertools
import math
from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 10_000
EXACT_SIGNS = 14  # up to here all 2^n choices of signs are looked at
MAX_CHOICES = 500  # of samples, per problem and k; more are drawn
Z95 = 1.959963984540054
BINS = 10


def pass_at(num_right: int, num_samples: int, k: int) -> float:
    """The chance that at least one of k samples is right, from n >= k of which c are."""
    if not 0 <= num_right <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_right} right among {num_samples}")
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def maj_at(votes: Sequence[Hashable | None], scores: Sequence[float], k: int) -> float:
    """How right the majority of k of the samples is; a vote of None is none, and no votes at all are wrong."""
    count = math.comb(len(votes), k)
    if count <= MAX_CHOICES:
        chosen = list(itertools.combinations(range(len(votes)), k))
    else:
        rng = np.random.default_rng(0)
        chosen = [tuple(rng.permutation(len(votes))[:k].tolist()) for _ in range(MAX_CHOICES)]
    return math.fsum(_majority([votes[i] for i in picked], [scores[i] for i in picked]) for picked in chosen) / len(
        chosen
    )


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` independent trials (E. B. Wilson, JASA 22, 1927)."""
    if count < 1:
        return (0.0, 1.0)
    scale = 1 + Z95**2 / count
    middle = (share + Z95**2 / (2 * count)) / scale
    half = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2)) / scale
    return (max(0.0, middle - half), min(1.0, middle + half))


def bootstrap(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean: the percentiles of the means of resampled values, always the same draws."""
    found = np.asarray(values, np.float64)
    rng = np.random.default_rng(0)
    means = np.concatenate(
        [found[rng.integers(len(found), size=(RESAMPLES // 10, len(found)))].mean(axis=1) for _ in range(10)]
    )
    low, high = np.percentile(means, (2.5, 97.5))
    return (float(low), float(high))


def sign_flip(change: Sequence[float]) -> float:
    """The chance of a mean as low as this, or lower, if every difference could as well have the other sign."""
    size = np.abs(np.asarray([value for value in change if value], np.float64))
    if not len(size):
        return 1.0
    seen = math.fsum(change) + 1e-9  # sums in another order differ in the last bits
    if len(size) <= EXACT_SIGNS:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(size)))).reshape(-1, len(size))
        return float((signs @ size <= seen).mean())
    rng = np.random.default_rng(0)
    found = sum(int((rng.choice((-1.0, 1.0), size=(1000, len(size))) @ size <= seen).sum()) for _ in range(20))
    return (found + 1) / (20 * 1000 + 1)


def calibration_error(confidence: Sequence[float], right: Sequence[float]) -> float | None:
    """Expected calibration error: mean distance of confidence and accuracy in ten equal bins; None of nothing.

    Bins weigh as many as they hold (M. P. Naeini et al., AAAI 2015).
    """
    if not confidence:
        return None
    bins: dict[int, list[tuple[float, float]]] = collections.defaultdict(list)
    for sure, hit in zip(confidence, right, strict=True):
        bins[min(int(sure * BINS), BINS - 1)].append((sure, hit))
    gaps = (abs(math.fsum(sure - hit for sure, hit in rows)) for rows in bins.values())
    return math.fsum(gaps) / len(confidence)


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, and `most` itself."""
    return sorted({*(2**i for i in range(most.bit_length()) if 2**i <= most), most})


def _majority(votes: Sequence[Hashable | None], scores: Sequence[float]) -> float:
    by_answer: dict[Hashable, list[float]] = {}
    for vote, score in zip(votes, scores, strict=True):
        if vote is not None:
            by_answer.setdefault(vote, []).append(score)
    if not by_answer:
        return 0.0
    most = max(map(len, by_answer.values()))
    leading = [math.fsum(found) / len(found) for found in by_answer.values() if len(found) == most]
    return math.fsum(leading) / len(leading)

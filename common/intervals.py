"""The 95 % interval of a share, hits / number, of at least one."""


def exact_interval(hits: int, number: int) -> tuple[float, float]:
    """The exact one (Clopper and Pearson 1934)."""
    return _of_share(hits, number, "exact")


def wilson_interval(hits: int, number: int) -> tuple[float, float]:
    """By Wilson's score (1927, J. Am. Stat. Assoc. 22)."""
    return _of_share(hits, number, "wilson")


def _of_share(hits: int, number: int, method: str) -> tuple[float, float]:
    from scipy.stats import binomtest  # here, because importing it takes a second

    found = binomtest(hits, number).proportion_ci(method=method)
    return float(found.low), float(found.high)

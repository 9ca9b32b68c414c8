"""Verdicts from raw samples: what a gate asks, what the samples say at its confidence, and the sentence that tells it. No I/O.

Every interval is two-sided at `gate.confidence`, so a pass at 0.95 leaves a one-sided risk of 2.5 %:

    pass        the interval's bad end meets the bound (a bound met exactly passes)
    fail        the whole interval misses it
    undecided   the interval holds the bound; the reason says how many rows or blocks would decide at the observed rate

`judge` asks who is compared with whom and corrects for slices, `evidence` has the statistics, `words` the sentences.
"""

from ioptim.gates.judge import judge

__all__ = ["judge"]

"""Weights of terms that are given as a share of a gradient (`weight: {gradient: 0.3}`).

The norm of a term's gradient at the student's features (all tapped layers together, `gradient_norms`) is measured every so many
steps, and that of the loss on labels with it; both are smoothed by a running mean over the measurements. The weight is then

    share * norm of the loss on labels / norm of the term.

Until both have been measured above 0 (a batch without labels has no gradient to compare with), the weight is 0.
"""

import math
from collections.abc import Mapping

from pipeline.config import GradientShare, Term


class Balance:
    def __init__(self, terms: Mapping[str, Term]):
        self.terms = {name: term for name, term in terms.items() if isinstance(term.weight, GradientShare)}
        self.norms: dict[str, list[float]] = {}  # by term: running means of the norms of the loss on labels, and of the term

    def due(self, name: str, step: int) -> bool:
        """Whether this term is measured at this step."""
        if name not in self.terms or step < self.terms[name].start:
            return False
        share = self.terms[name].weight
        assert isinstance(share, GradientShare)
        return name not in self.norms or (step - self.terms[name].start) % share.every == 0

    def follow(self, name: str, label: float, norm: float) -> None:
        """Takes in one measurement: unweighted norms, the same in every process."""
        share = self.terms[name].weight
        assert isinstance(share, GradientShare)
        if not (0 < label < math.inf and 0 < norm < math.inf):
            return
        before = self.norms.get(name, [label, norm])
        self.norms[name] = [share.decay * old + (1 - share.decay) * new for old, new in zip(before, (label, norm))]

    def weight(self, name: str) -> float:
        share = self.terms[name].weight
        assert isinstance(share, GradientShare)
        if name not in self.norms:
            return 0.0
        label, norm = self.norms[name]
        return share.gradient * label / norm

    def weights(self) -> dict[str, float]:
        return {name: self.weight(name) for name in self.terms}

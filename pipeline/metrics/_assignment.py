"""Kuhn-Munkres assignment with the tolerance of CULane's official program, ties and all.

Labels u (left) and v (right) start at u_i = max_j s_ij, v = 0. A pair is tight if |u_i + v_j - s_ij| < 0.01. Each
left node in turn looks depth-first for an augmenting path of tight pairs, trying right nodes in order; where there is
none, the labels of the reached nodes move by the least slack between reached left and unreached right nodes. So
assignments whose sums differ by less than 0.01 a pair count as equal and the search order decides; SciPy's exact
solver decides otherwise. NaN is never tight and no slack: a left node with nothing but NaN ends the search, and the
ones after it stay unmatched.

Source: XingangPan/SCNN, tools/lane_evaluation (the graph of its counter). The search order shows in the counts.
"""

from collections.abc import Sequence

TOLERANCE = 0.01
FLOOR, NO_SLACK = -1e5, 1e10


def assign(scores: Sequence[Sequence[float]]) -> list[int]:
    """For each row the column it is matched to, or -1. The smaller side is the left one; rows if equal."""
    rows, columns = len(scores), len(scores[0])
    if rows <= columns:
        return _search(scores)
    partner = [-1] * rows
    for column, row in enumerate(_search(list(zip(*scores)))):
        if row >= 0:
            partner[row] = column
    return partner


def _search(scores: Sequence[Sequence[float]]) -> list[int]:
    lefts, rights = range(len(scores)), range(len(scores[0]))
    partner_left, partner_right = [-1 for _ in lefts], [-1 for _ in rights]
    label_left, label_right = [FLOOR for _ in lefts], [0.0 for _ in rights]
    for i in lefts:
        for score in scores[i]:
            if score > label_left[i]:  # False for NaN
                label_left[i] = score

    def augment(i: int) -> bool:
        reached_left.add(i)
        for j in rights:
            if j not in reached_right and abs(label_left[i] + label_right[j] - scores[i][j]) < TOLERANCE:
                reached_right.add(j)
                if partner_right[j] < 0 or augment(partner_right[j]):
                    partner_right[j], partner_left[i] = i, j
                    return True
        return False

    reached_left: set[int]
    reached_right: set[int]
    for start in lefts:
        reached_left, reached_right = set(), set()
        while not augment(start):
            slack = NO_SLACK
            for i in reached_left:
                for j in rights:
                    if j not in reached_right and label_left[i] + label_right[j] - scores[i][j] < slack:
                        slack = label_left[i] + label_right[j] - scores[i][j]
            if slack == NO_SLACK:
                return partner_left
            for i in reached_left:
                label_left[i] -= slack
            for j in reached_right:
                label_right[j] += slack
            reached_left, reached_right = set(), set()
    return partner_left

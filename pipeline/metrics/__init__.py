"""Scores, as the datasets' own evaluators count them."""

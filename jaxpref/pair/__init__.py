"""Scored candidates to comparisons: rules, and trees of attempts."""

from jaxpref.pair.axes import check_axes
from jaxpref.pair.prepared import with_pairs
from jaxpref.pair.rules import compare, pair_record

__all__ = ["check_axes", "compare", "pair_record", "with_pairs"]

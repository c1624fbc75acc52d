"""Comparisons: the same clients, budget and tuning effort for all methods; chosen on validation, reported on test.

spec      what is compared, as it is written down
tuning    the settings that each method is tried with, equally many for all
cells     one method, one seed, one setting: run once, kept as a line
drive     runs the cells, in an order that a stop does not change
figures   from cells to the table
"""

from .grid import check, compare, is_comparison, resume, start
from .spec import Comparison, compose, from_toml

__all__ = ["Comparison", "check", "compare", "compose", "from_toml", "is_comparison", "resume", "start"]

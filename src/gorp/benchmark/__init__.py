"""Run comparisons of methods. A cell is one method on one order of tasks with one seed; a grid is a set of cells."""

from gorp.benchmark.cell import Cell, learn_in_turn, run_cell
from gorp.benchmark.grid import best_trial, collect, run_grid


__all__ = ["Cell", "best_trial", "collect", "learn_in_turn", "run_cell", "run_grid"]

"""Measurements of speed, as ratios within one process: each module prints a table and writes JSON if asked to."""

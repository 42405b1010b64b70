"""Batch systems: the text they are given, the commands they are asked with, the jobs of a run in them."""

"""Judging any data: `turnout analyze` and `control.stats.analyze`, out of core through DuckDB.

Owns reading, aggregating in SQL and putting estimates, sequences and a verdict together. Refuses
to own a formula (`control.stats` does) and to hold rows in Python.
"""

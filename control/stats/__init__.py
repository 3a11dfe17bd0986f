"""The pure statistics: estimates, tests, confidence sequences, e-processes from sufficient state.

Owns every formula by which versions of a model are compared; README.md lists the families with
their sources. Refuses clocks, chance, storage and any knowledge of experiments or transports.
"""

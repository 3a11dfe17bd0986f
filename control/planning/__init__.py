"""Planning a rollout: what its steps can find out, and when, before it starts.

Pure: dataclasses in, dataclasses out. Asks the code that judges (the lanes, the checks' bounds, the
sample sizes of `control.stats`) what it would say of expected counts; has no test of its own.
Only margins of checks and ab steps need numpy and scipy, which are imported when there are some.
"""

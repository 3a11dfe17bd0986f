"""Planning a rollout: what its steps can find out, and when, before it starts.

Pure: dataclasses in, dataclasses out. Asks the code that judges (the lanes, the checks' bounds, the
sample sizes of `control.stats`) what it would say of expected counts; has no test of its own.
Only `comparison` needs numpy and scipy, and it is imported when an experiment has an ab step.
"""

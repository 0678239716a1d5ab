"""Files that nobody vouched for, by the million: `make fuzz`.

Each target hands mutated bytes to what reads them.  Allowed is an answer, or a DeployError of one line; a crash,
another exception, a hang or memory without a bound is a finding, and its input is kept.
"""

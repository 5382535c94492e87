"""Measurements: compile time against throughput, memory, scaling, and the same work in PyTorch.

Each module has `cases(quick)`, what can be measured and how; `table(rows)` and `plot(rows)`; some
have `remarks(rows)`, a sentence that follows from them.
`python -m benchmarks` runs them. No test depends on what they find.
"""

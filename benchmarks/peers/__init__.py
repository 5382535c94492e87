"""The same outer steps in PyTorch: same shapes, same arithmetic, losses compared.

    python -m benchmarks.peers [--quick] [--only TEXT] [--out FILE]

Each row is one outer step's loss and meta-gradient, ours compiled and PyTorch's eager, at the same
inputs and weights, alternating in one process; CPU seconds of all threads, the least of several
rounds. Memory: ours is what the compiled step needs besides its arguments (temporary arrays and
results, as XLA allots them); PyTorch's by how much a first step raises the peak of resident memory
(Linux), in a process of its own. Rows that are not measured again stay in the file. Needs the extra
`torch`.
"""

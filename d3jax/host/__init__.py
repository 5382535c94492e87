"""The machine: files, clocks, progress, processes, launch."""

"""The machine: files, clocks, progress, events, processes, launch."""

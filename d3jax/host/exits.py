"""What a command exits with."""

DIVERGED = 1
REFUSED = 2
OUT_OF_MEMORY = 71  # EX_OSERR; not UNFINISHED, as the same command would end so again
UNFINISHED = 75  # EX_TEMPFAIL: what a scheduler reads as "run me again"

MEANINGS = {
    "0": "done",
    str(DIVERGED): "diverged: numbers are not finite",
    str(REFUSED): "refused: the line says what would be right",
    str(OUT_OF_MEMORY): "out of memory: the line names flags that need less",
    str(UNFINISHED): "not finished (interrupted, files in use, disk full): run it again",
}

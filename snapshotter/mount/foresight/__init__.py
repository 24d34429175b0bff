"""What a mount is going to be asked for next, told from what it was asked for and from the files themselves.

Programs load libraries and modules (`loading` over `companions`, `elf`, `modules`, `pyc`, `pyso`, `pysource`), and who reads
all files reads them in the order of the tree (`scan`, `sweep`). Everything here is a guess: a wrong one costs bytes, never a
wrong answer.
"""

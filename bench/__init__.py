"""The measurements behind docs/benchmarks.md: one module a benchmark, each run by ``make bench-<name>``."""

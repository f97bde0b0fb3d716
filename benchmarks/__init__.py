"""What ringfence costs beside other pools, measured in one run: ``python -m benchmarks --help``."""

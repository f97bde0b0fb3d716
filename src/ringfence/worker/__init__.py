"""The code that runs inside a worker and the zygote."""

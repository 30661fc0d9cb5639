"""`python -m mgkit bench`: what it measures (`shapes`), how (`stopwatch`), its table and plot (`timings`)."""

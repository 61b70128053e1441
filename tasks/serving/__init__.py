"""The room of `tasks.serve`: models as requests use them, batches, limits, and what is said over HTTP."""

"""Searches: a trial is one call of a pipeline's `main` with its own run folder; `python -m tuning.search`."""

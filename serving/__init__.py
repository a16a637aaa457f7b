"""Served models: export a run, serve it over REST and gRPC, ask it.

`python -m serving.export`, `python -m serving.server` and `python -m serving.client` are the three commands.
"""

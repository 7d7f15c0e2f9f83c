"""Runs Envoy and Nuncio side by side on one configuration and compares what they do. `run.py` is the entry; `cases/` are the tables."""

"""Commands of the suite, run as `python scripts/<name>.py` from the repository root."""

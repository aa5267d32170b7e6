"""Run folders as they lie on disk, and what each run is doing."""

"""Benchmark families and the one training loop that runs them."""

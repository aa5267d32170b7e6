"""Trained runs read back: their networks, and the pictures and texts made with them."""

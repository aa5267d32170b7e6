"""The one training loop. It knows tasks through `tasks.base` alone."""

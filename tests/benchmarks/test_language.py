"""The language benchmark runs and writes its table."""

from pathlib import Path

from benchmarks.language import main


def test_a_tiny_measurement_writes_table_and_hardware(tmp_path: Path) -> None:
    words = ["rounds=2", "steps=1", "layers=1", "width=16", "heads=2", "inner=16", "words=50", "columns=2", "length=8"]
    assert main([*words, "memory_steps=3", f"out={tmp_path}"]) == 0
    text = (tmp_path / "language.md").read_text()
    assert "| torch.nn.TransformerEncoderLayer |" in text and "1.000" in text and "commit" in text
    assert len((tmp_path / "language.csv").read_text().splitlines()) == 5

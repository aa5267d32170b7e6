"""transformers: AdamP in Trainer, with its groups without decay, clipping and resuming.

Needs transformers 5 and accelerate; runs in seconds on a CPU.
"""

import tempfile
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import adamp


class Counting(Dataset):
    """Sequences of 8 numbers that count upwards."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.arange(index, index + 8)
        return {"input_ids": tokens, "labels": tokens}


def trainer(folder: Path) -> Trainer:
    """Return the Trainer of a small language model, which saves every 2 of its 4 steps."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=8, learning_rate=1e-2,
        weight_decay=0.1, use_cpu=True, report_to="none", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    # Trainer makes two groups, norms and biases without weight_decay. Other options, lr too, come from here alone.
    optimizer = (adamp.AdamP, {"lr": arguments.learning_rate})
    return Trainer(LlamaForCausalLM(config), arguments, train_dataset=Counting(), optimizer_cls_and_kwargs=optimizer)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        trainer(Path(name)).train()
        trainer(Path(name)).train(resume_from_checkpoint=f"{name}/checkpoint-2")

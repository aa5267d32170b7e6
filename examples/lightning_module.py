"""Lightning: AdamP in automatic optimization (bf16, clipping, resuming) and two optimizers in manual optimization.

Needs pytorch-lightning 2; with the package `lightning`, import `lightning.pytorch` instead. Runs in seconds on a CPU.
"""

import tempfile
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import adamp


class Classifier(pl.LightningModule):
    """A small convolutional network; Lightning calls the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2)
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def configure_optimizers(self) -> dict[str, object]:
        """AdamP with a cosine rate. Attach hooks and probes here: they run at each step, resumed runs included."""
        optimizer = adamp.AdamP(self.parameters(), lr=1e-2, weight_decay=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class TwoOptimizers(Classifier):
    """The same network; filters and classifier have an optimizer each, called by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """SGDP for the filters, and AdamW under the projection for the rest."""
        filters = adamp.SGDP(self.net[0].parameters(), lr=0.1, momentum=0.9, nesterov=True)
        rest = torch.optim.AdamW(self.net[1:].parameters(), lr=1e-2)
        adamp.project_updates(rest)
        return [filters, rest]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Step both optimizers; clipping by hand too."""
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in optimizers:
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizer.step()


def data() -> TensorDataset:
    """Return 32 random images whose class is the sign of their mean."""
    images = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, (images.mean((1, 2, 3)) > 0).long())


def fit(model: pl.LightningModule, folder: Path, *, epochs: int, resume: Path | None = None, **options: object) -> Path:
    """Train up to `epochs` epochs, from the checkpoint `resume` if given, and return the last checkpoint."""
    loader = DataLoader(data(), batch_size=16)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", default_root_dir=folder, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(model, loader, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt", weights_only=False)
    return folder / f"{epochs}.ckpt"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        options = {"precision": "bf16-mixed", "gradient_clip_val": 1.0}
        checkpoint = fit(Classifier(), Path(name), epochs=2, **options)
        fit(Classifier(), Path(name), epochs=4, resume=checkpoint, **options)
        fit(TwoOptimizers(), Path(name), epochs=2)

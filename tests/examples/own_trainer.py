"""Pretraining under your own Trainer, then text from it. Arguments: overrides, as for `lit-illada pretrain`."""

import sys

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

import lit_illada

config = lit_illada.load("pretrain", ["experiment=demo", *sys.argv[1:]])
data = lit_illada.build_datamodule(config)
module = lit_illada.build_module(config, data)
best = ModelCheckpoint(monitor="val/nll_bound")
trainer = lightning.Trainer(logger=CSVLogger("logs"), callbacks=[best], gradient_clip_val=0.5, log_every_n_steps=10)
trainer.fit(module, datamodule=data)
print(lit_illada.generate(best.best_model_path, "import ", max_new_tokens=32))
print(lit_illada.nll_bound(best.best_model_path, "def add(a, b):\n    return a + b\n"))

"""Transformer Engine's layers on a CPU: python -m tests.helpers.te_rank MODEL CHECKPOINT OUT LENGTHS_JSON, with TE_ON_CPU set.

Loads CHECKPOINT, writes logits, loss, gradients and attention's calls of one pack to OUT/out.pt, and a checkpoint to OUT/saved.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

from tests.helpers.te_on_cpu.install import install_if_asked


def main() -> None:
    warnings.filterwarnings("ignore")
    model, checkpoint, out, lengths = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    install_if_asked()
    import torch

    from benchmarks.models import random_pack
    from dasd_megatron.config.training import ParallelConfig
    from dasd_megatron.megatron_model.build_model import ModelOptions, build_model, named_weights
    from dasd_megatron.megatron_model.process_groups import process_groups
    from dasd_megatron.megatron_model.weights import load_weights
    from dasd_megatron.models.hf_model import HFModel
    from dasd_megatron.training.checkpoint.checkpoints import save_weights
    from tests.helpers.logits import aligned_batch, logits_and_loss
    from tests.helpers.te_on_cpu.extension.attention import calls

    hf = HFModel(model)
    with process_groups(ParallelConfig(), 0):
        chunks = build_model(hf, ParallelConfig(), ModelOptions(), sum(lengths))
        load_weights(chunks, checkpoint)
        batch = aligned_batch(random_pack(lengths, hf.shape.vocabulary), 16).to(torch.device("cuda"))
        logits, loss = logits_and_loss(chunks[0], batch, hf.shape.vocabulary)
        loss.backward()
        found = {"logits": logits.detach().cpu(), "loss": loss.detach().cpu()}
        gradients = {name: parameter.grad.cpu() for name, parameter in named_weights(chunks)}
        types = sorted({type(part).__module__ for part in chunks[0].modules()})
        torch.save({**found, "gradients": gradients, "modules": types}, out / "out.pt")
        save_weights(chunks, hf, out / "saved")
    described = [{**asdict(call), "dtype": str(call.dtype)} for call in calls]
    (out / "attention.json").write_text(json.dumps(described))


if __name__ == "__main__":
    main()

"""The CPU reference, in a process that sees no GPU: python -m tests.helpers.reference_rank MODEL CHECKPOINT OUT LENGTHS_JSON.

Imports the model into CHECKPOINT, and writes logits and gradients of one pack to OUT.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""


def main() -> None:
    import torch

    from benchmarks.models import random_pack
    from conversion.convert import import_hf
    from dasd_megatron.config.training import ParallelConfig
    from dasd_megatron.megatron_model.build_model import ModelOptions, build_model, named_weights
    from dasd_megatron.megatron_model.process_groups import process_groups
    from dasd_megatron.megatron_model.weights import load_weights
    from dasd_megatron.models.hf_model import HFModel
    from tests.helpers.logits import aligned_batch, logits_and_loss

    model, checkpoint, out, lengths = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
    hf = HFModel(model)
    import_hf(model, checkpoint)
    with process_groups(ParallelConfig(), 0):
        chunks = build_model(hf, ParallelConfig(), ModelOptions(), sum(lengths))
        load_weights(chunks, checkpoint)
        batch = aligned_batch(random_pack(lengths, hf.shape.vocabulary), 16)
        logits, loss = logits_and_loss(chunks[0], batch, hf.shape.vocabulary)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in named_weights(chunks)}
        torch.save({"logits": logits.detach(), "loss": loss.detach(), "gradients": gradients}, out)


if __name__ == "__main__":
    main()

"""Megatron's side of a verification: every rank of a layout runs the probes and compares what it holds with transformers.

python -m conversion.verify_ranks REQUEST_JSON, alone or under torchrun; rank 0 writes the differences to the file that the
request names.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open

from conversion.probes import Probe
from conversion.verify_request import VerifyRequest
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.utils.child_process import die_with_launcher
from dasd_megatron.utils.errors import UserError

Differences = dict[str, dict[str, Any]]


def main() -> int:
    die_with_launcher()
    request = VerifyRequest.model_validate_json(Path(sys.argv[1]).read_text())
    from dasd_megatron.megatron_model.process_groups import process_groups

    try:
        with process_groups(request.parallel, seed=0), torch.no_grad():
            found = Side(request).compare(request)
            every: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
            dist.gather_object(found, every)
            if every is not None:
                merged = {name: {k: v for part in every for k, v in part[name].items()} for name in found}
                request.result.write_text(json.dumps(merged))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


class Side:
    """This rank's model chunk."""

    def __init__(self, request: VerifyRequest) -> None:
        from dasd_megatron.megatron_model.build_model import ModelOptions, build_model
        from dasd_megatron.megatron_model.weights import load_weights
        from dasd_megatron.models.pack_padding import alignment

        self.hf, self.parallel = HFModel(request.config), request.parallel
        self.align = alignment(self.parallel, None)
        self.chunks = build_model(self.hf, self.parallel, ModelOptions(torch.float32), max_length=1)
        load_weights(self.chunks, request.megatron)

    def compare(self, request: VerifyRequest) -> dict[str, Differences]:
        """By probe: what this rank holds of logits and layers, against transformers; see `_difference`."""
        found: dict[str, Differences] = {}
        with safe_open(request.reference, framework="pt") as file:
            for probe in request.probes:
                outputs = self._run(probe.input_ids, probe.positions)
                found[probe.name] = {
                    name: _difference(name, output, file.get_tensor(f"{probe.name}/{name}"), probe)
                    for name, output in outputs.items()
                }
        return found

    def _run(self, ids: list[int], positions: list[int]) -> dict[str, torch.Tensor]:
        """`layer N` [tokens, hidden] of the layers here, and `logits` [tokens, vocabulary] on the last stage."""
        import numpy as np
        from megatron.core import tensor_parallel
        from megatron.core.pipeline_parallel import get_forward_backward_func

        from dasd_megatron.megatron_model.micro_batch import Pack, make_micro_batches, padding_mask

        pack = Pack(np.array(ids), np.ones(len(ids), np.bool_), [len(ids)])
        [batch] = make_micro_batches([pack], self.align)
        [model] = self.chunks
        outputs: dict[str, torch.Tensor] = {}
        _set_positions(model, positions, batch.input_ids.shape[1])

        def keep(layer: Any, _args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if self.parallel.splits_sequence:
                hidden = tensor_parallel.gather_from_sequence_parallel_region(hidden)
            outputs[f"layer {layer.layer_number - 1}"] = hidden[: len(ids), 0]

        def forward(_: Any, chunk: Any) -> tuple[torch.Tensor, Any]:
            mask = padding_mask(batch, chunk) if self.hf.shape.experts else None
            output = chunk(
                batch.input_ids,
                batch.position_ids,
                attention_mask=None,
                packed_seq_params=batch.documents,
                padding_mask=mask,
            )
            if chunk.post_process:
                logits = tensor_parallel.gather_from_tensor_model_parallel_region(output)
                outputs["logits"] = logits[0, : len(ids), : self.hf.shape.vocabulary]
            return output, lambda output, non_loss_data: 0

        hooks = [layer.register_forward_hook(keep) for layer in model.decoder.layers]
        get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iter([]),
            model=model,
            num_microbatches=1,
            seq_length=batch.input_ids.shape[1],
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
        for hook in hooks:
            hook.remove()
        return outputs


def _set_positions(model: Any, positions: list[int], slots: int) -> None:
    """Puts the tokens where the probe says, for the rotary embedding; padding behind them continues from there."""
    padded = torch.tensor([*positions, *range(positions[-1] + 1, positions[-1] + 1 + slots - len(positions))])
    frequencies = torch.outer(padded.float(), model.rotary_pos_emb.inv_freq.float())
    table = torch.cat([frequencies, frequencies], -1)[:, None, None]
    model.rotary_pos_emb.forward = lambda length, **_: table


def _difference(name: str, ours: torch.Tensor, theirs: torch.Tensor, probe: Probe) -> dict[str, Any]:
    """`difference`: the largest one; `scale`: the largest value; nulls where not all values are `finite`.

    Of logits also `greedy`: whether they give the probe's text.
    """
    finite = bool(torch.isfinite(ours).all() and torch.isfinite(theirs).all())
    found: dict[str, Any] = {
        "finite": finite,
        "difference": float((ours - theirs).abs().max()) if finite else None,
        "scale": float(theirs.abs().max()) if finite else None,
    }
    if name == "logits":
        prompt = probe.prompt_tokens
        greedy = ours[prompt - 1 : -1].argmax(-1).tolist() if prompt < len(ours) else []
        # Each token is the likeliest after those before it: so greedy decoding gives this very text.
        found["greedy"] = greedy == probe.input_ids[prompt:]
    return found


if __name__ == "__main__":
    sys.exit(main())

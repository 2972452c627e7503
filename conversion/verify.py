"""Proves a conversion: the same config, the same tensors, and the same logits as transformers, in any layout."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import save_file

from conversion.compare import TensorComparison, compare_files, compare_models, compare_tensors
from conversion.megatron_checkpoint import MegatronCheckpoint
from conversion.probes import Probe, ReferenceOutputs, reference_outputs
from conversion.verify_request import VerifyRequest
from conversion.worker_pool import available_cores
from dasd_megatron import versions
from dasd_megatron.config.training import ParallelConfig, TrainingConfig
from dasd_megatron.models.hf_model import HFModel, dtype_named
from dasd_megatron.models.parallel_layout import layout_problem
from dasd_megatron.utils.child_process import TORCHRUN_VARIABLES, child_options
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import write_json

# Both sides sum the same numbers in another order, in fp32. What is allowed of the largest value; and where a model blows
# rounding up more than that, how many times what a rounding of the embeddings alone does.
TOLERANCE = 1e-5
ROUNDINGS = 4


@dataclass(frozen=True)
class Card:
    """What was compared and what came out; `problems` says in a line each what differs."""

    content: dict[str, Any]
    problems: list[str]

    def __str__(self) -> str:
        lines = [f"{name}: {value}" for name, value in self.content["summary"].items()]
        lines += [f"differs: {problem}" for problem in self.problems]
        return "\n".join([*lines, "verified" if not self.problems else "NOT the same model"])


def card_path(megatron: Path) -> Path:
    """Where a checkpoint's card lies: beside it."""
    return megatron.resolve().with_name(f"{megatron.resolve().name}.verification.json")


def verify(hf_folder: Path, megatron: Path, parallel: ParallelConfig) -> Card:
    """Compares configs, tensors and logits, and writes the card. Raises UserError where the two can't be compared."""
    hf, checkpoint = HFModel(hf_folder), MegatronCheckpoint(megatron)
    problem = layout_problem(
        hf.shape, parallel, TrainingConfig(steps=1, global_batch=parallel.data), context_length=1 << 20
    )
    if problem is not None:
        raise UserError(f"{problem} ({hf_folder})")
    checkpoint_hf = HFModel(checkpoint.hf_folder) if checkpoint.has_hf_config else None
    if checkpoint_hf is not None and checkpoint_hf.shape != hf.shape:
        raise UserError(f"{megatron}: is of another model than {hf_folder}: {_changed(checkpoint_hf.shape, hf.shape)}")
    tensors = compare_tensors(hf, checkpoint)
    _check_memory(sum(part.numel for part in hf.parts), tensors)
    say("transformers runs the probes")
    reference = reference_outputs(hf, *map(dtype_named, tensors.rounded_to[:1]))
    say(f"Megatron runs the probes, layout {parallel}")
    outputs = _megatron_outputs(checkpoint_hf or hf, megatron, parallel, reference)
    problems = compare_models(hf, checkpoint_hf) if checkpoint_hf else []
    problems += (
        [f"{name} isn't the same" for name in compare_files(hf.folder, checkpoint_hf.folder)] if checkpoint_hf else []
    )
    problems += map(str, tensors.differences)
    problems += [problem for probe in reference.probes for problem in _output_problems(probe, outputs[probe.name])]
    card = Card(_content(hf, checkpoint, checkpoint_hf, parallel, tensors, reference, outputs, problems), problems)
    write_json(card_path(megatron), card.content)
    return card


def say(line: str) -> None:
    """Progress of work whose length isn't known."""
    print(f"verify: {line}", file=sys.stderr, flush=True)


def _megatron_outputs(hf: HFModel, megatron: Path, parallel: ParallelConfig, reference: ReferenceOutputs) -> Any:
    """Differences by probe and output, from a process for each rank; always on the CPU, in fp32."""
    with tempfile.TemporaryDirectory(prefix="verify-") as temporary:
        folder = Path(temporary)
        request = VerifyRequest(
            config=hf.folder,
            megatron=megatron,
            parallel=parallel,
            reference=folder / "reference.safetensors",
            probes=reference.probes,
            result=folder / "result.json",
        )
        save_file(reference.tensors, request.reference)
        (folder / "request.json").write_text(request.model_dump_json())
        command = [sys.executable, "-m"]
        if parallel.world_size > 1:
            command += [
                "dasd_megatron.runtime.torchrun",
                "--standalone",
                "--nproc-per-node",
                str(parallel.world_size),
                "-m",
            ]
        in_child, environment = child_options()
        for name in TORCHRUN_VARIABLES:
            environment.pop(name, None)
        environment["CUDA_VISIBLE_DEVICES"] = ""
        environment["OMP_NUM_THREADS"] = str(max(1, available_cores() // parallel.world_size))
        command += ["conversion.verify_ranks", str(folder / "request.json")]
        done = subprocess.run(command, env=environment, preexec_fn=in_child)
        if done.returncode:
            raise UserError(f"{megatron}: Megatron's side failed (exit code {done.returncode}, see above)")
        outputs = json.loads(request.result.read_text())
    names = {f"{probe}/{name}" for probe, found in outputs.items() for name in found}
    assert names == reference.tensors.keys(), f"not compared: {reference.tensors.keys() - names}"
    return outputs


def _output_problems(probe: Probe, outputs: dict[str, Any]) -> list[str]:
    """Logits beyond the tolerance, with the first layer that is; and another greedy text."""
    found = []
    logits = outputs["logits"]
    if not logits["finite"]:
        return [f"{probe.name}: logits aren't finite, so nothing can be said of them"]
    if not logits["difference"] <= max(TOLERANCE * logits["scale"], ROUNDINGS * probe.rounding):
        layers = sorted((name for name in outputs if name != "logits"), key=lambda name: int(name.split()[1]))
        differing = (name for name in layers if not _within(outputs[name]))
        first = next(differing, "the final norm or the head")
        found.append(
            f"{probe.name}: logits by {logits['difference']:.3g} of {logits['scale']:.3g}; the first to differ is {first}"
        )
    if not logits["greedy"]:
        found.append(f"{probe.name}: the greedy text")
    return found


def _within(layer: dict[str, Any]) -> bool:
    return bool(layer["finite"] and layer["difference"] <= TOLERANCE * layer["scale"])


def _content(
    hf: HFModel,
    checkpoint: MegatronCheckpoint,
    checkpoint_hf: HFModel | None,
    parallel: ParallelConfig,
    tensors: TensorComparison,
    reference: ReferenceOutputs,
    outputs: Any,
    problems: list[str],
) -> dict[str, Any]:
    logits = [outputs[probe.name]["logits"] for probe in reference.probes]
    worst = max((found["difference"] / found["scale"] for found in logits if found["finite"]), default=0.0)
    positions = max(max(probe.positions) for probe in reference.probes)
    greedy = [probe for probe in reference.probes if probe.prompt_tokens < len(probe.input_ids)]
    same = sum(bool(outputs[probe.name]["logits"]["greedy"]) for probe in greedy)
    return {
        "passed": not problems,
        "summary": {
            "model": f"{hf.family.architecture}, {hf.folder}",
            "checkpoint": f"{checkpoint.folder}, layout {parallel}",
            "tensors": _equal(tensors),
            "logits": f"differ by up to {worst:.1e} of the largest (fp32), positions to {positions:,}",
            "greedy text": f"the same for {same} of {len(greedy)} prompts",
            "config and tokenizer": "compared, too" if checkpoint_hf else "the checkpoint has none",
        },
        "problems": problems,
        "command": sys.argv,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "weights_sha256": tensors.sha256,
        "allowed": {"of the largest value": TOLERANCE, "times the rounding": ROUNDINGS},
        "parallel": parallel.model_dump(),
        "tensor_differences": [difference.as_dict() for difference in tensors.differences],
        "probes": [{**probe.as_dict(), "outputs": outputs[probe.name]} for probe in reference.probes],
    }


def _equal(tensors: TensorComparison) -> str:
    equal = tensors.compared - len({difference.name for difference in tensors.differences})
    rounded = f", after rounding to {', '.join(tensors.rounded_to)}" if tensors.rounded_to else ""
    return f"{equal:,} of {tensors.compared:,} equal bit by bit{rounded}"


def _changed(ours: Any, theirs: Any) -> str:
    names = [name for name in vars(ours) if getattr(ours, name) != getattr(theirs, name)]
    return ", ".join(f"{name} {getattr(ours, name)} against {getattr(theirs, name)}" for name in names)


def _check_memory(parameters: int, tensors: TensorComparison) -> None:
    needed, available = 5 * parameters, psutil.virtual_memory().available  # fp32, and some to work with
    if needed > available:
        raise UserError(
            f"running the model in fp32 takes about {needed / 1e9:.0f} GB of memory, but {available / 1e9:.0f} GB are free; "
            f"use a larger machine (of its tensors {_equal(tensors)})"
        )

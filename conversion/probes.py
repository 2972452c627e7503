"""Inputs that a conversion is verified on, and what transformers computes from them."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.utils.errors import UserError

TEXTS = (
    "The capital of France is",
    "def fibonacci(n: int) -> int:\n    if n < 2:\n        return n\n    return",
    "Frage: Was ist 17 × 23?\nAntwort: 17 × 23 = 17 × 20 + 17 × 3 =",
    "数学:若 x² = 2,则 x ≈ 1.414。\nПривет 🌍, \\frac{1}{2} +",
)
GREEDY_TOKENS = 16
# Tokens of the probe of far positions: blocks of BLOCK at each of these, and at the end of what the model is made for.
BLOCK = 16
FAR_POSITIONS = (0, 8192)
RANDOM_TOKENS = 24  # of a prompt, where the folder has no tokenizer


@dataclass
class Probe:
    """One input, and the tokens that greedy decoding appended to it.

    Attributes:
        input_ids: prompt and greedy continuation.
        positions: position of each token for the rotary embedding.
        prompt_tokens: how many tokens the prompt has.
        rounding: how far the logits move when each element of the embeddings moves by its last bit.
        text: of the continuation, where there is a tokenizer.
    """

    name: str
    input_ids: list[int]
    positions: list[int]
    prompt_tokens: int
    rounding: float = 0.0
    text: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)


@dataclass
class ReferenceOutputs:
    """What transformers computed, fp32: `logits` [tokens, vocabulary] and `layers`, each [tokens, hidden], by probe."""

    probes: list[Probe] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


def reference_outputs(hf: HFModel, weights: torch.dtype = torch.float32) -> ReferenceOutputs:
    """Runs transformers on the CPU in fp32, with the model's weights rounded to the type `weights`."""
    model = _load(hf, weights)
    tokenizer = _tokenizer(hf.folder)
    found = ReferenceOutputs()
    with torch.no_grad():
        for number, prompt in enumerate(_prompts(hf, tokenizer)):
            ids = [*prompt, *_greedy(model, prompt)]
            text = tokenizer.decode(ids[len(prompt) :]) if tokenizer else None
            found.probes.append(Probe(f"prompt {number}", ids, list(range(len(ids))), len(prompt), text=text))
        found.probes += [_far(hf), *_beyond_the_window(hf)]
        for probe in found.probes:
            with _layer_outputs(model) as layers:
                logits = _logits(model, probe)
            found.tensors[f"{probe.name}/logits"] = logits
            found.tensors |= {f"{probe.name}/layer {n}": output for n, output in enumerate(layers)}
            with _rounded_embeddings(model):
                moved = float((_logits(model, probe) - logits).abs().max())
                probe.rounding = moved if math.isfinite(moved) else 0.0
    del model
    gc.collect()
    return found


def _load(hf: HFModel, weights: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(hf.folder),
            dtype=weights,
            attn_implementation="eager",
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
    except (ValueError, TypeError, OSError) as error:  # transformers' own checks of a config
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{hf.folder}: transformers can't load it: {reason}") from None
    return model.float().eval()


def _tokenizer(folder: Path) -> Any:
    if not (folder / "tokenizer.json").is_file():
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of many kinds, for a damaged file
        raise UserError(f"{folder}: its tokenizer can't be loaded: {error}") from None


def _prompts(hf: HFModel, tokenizer: Any) -> list[list[int]]:
    if tokenizer is None:
        return [_random_tokens(hf, RANDOM_TOKENS, seed) for seed in range(len(TEXTS))]
    prompts = [prompt for prompt in map(tokenizer.encode, TEXTS) if prompt]
    largest = max(map(max, prompts), default=0)
    if largest >= hf.shape.vocabulary:
        raise UserError(
            f"{hf.folder}: the tokenizer has token {largest}, but the model's vocabulary {hf.shape.vocabulary}"
        )
    return prompts


def _far(hf: HFModel) -> Probe:
    last = hf.max_positions or 0
    starts = [*FAR_POSITIONS, *([last - BLOCK] if last > FAR_POSITIONS[-1] + 2 * BLOCK else [])]
    positions = [start + place for start in starts for place in range(BLOCK)]
    return Probe("far positions", _random_tokens(hf, len(positions), len(TEXTS)), positions, len(positions))


def _beyond_the_window(hf: HFModel) -> list[Probe]:
    """Where layers have a window, one probe that is longer: in a shorter one they see everything."""
    if not hf.shape.window:
        return []
    length = hf.shape.window + 2 * BLOCK
    return [Probe("beyond the window", _random_tokens(hf, length, len(TEXTS) + 1), list(range(length)), length)]


def _random_tokens(hf: HFModel, count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, hf.shape.vocabulary, (count,), generator=generator).tolist()


def _greedy(model: Any, prompt: list[int]) -> list[int]:
    """The likeliest continuation, token by token."""
    tokens: list[int] = []
    ids, cache = torch.tensor([prompt]), None
    for _ in range(GREEDY_TOKENS):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        ids = output.logits[:, -1:].argmax(-1)
        tokens.append(int(ids))
    return tokens


def _logits(model: Any, probe: Probe) -> torch.Tensor:
    """[tokens, vocabulary]."""
    logits: torch.Tensor = model(
        input_ids=torch.tensor([probe.input_ids]),
        position_ids=torch.tensor([probe.positions]),
        # Without a mask transformers takes a jump in positions for the beginning of another document.
        attention_mask=torch.ones(1, len(probe.input_ids), dtype=torch.long),
        use_cache=False,
    ).logits[0]
    return logits.clone()


@contextmanager
def _rounded_embeddings(model: Any) -> Iterator[None]:
    """Moves every element of the embeddings' output up or down by its last bit, as another order of sums might."""
    generator = torch.Generator().manual_seed(0)

    def move(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
        return output * (1 + torch.finfo(output.dtype).eps * signs)

    hook = model.get_input_embeddings().register_forward_hook(move)
    yield
    hook.remove()


@contextmanager
def _layer_outputs(model: Any) -> Iterator[list[torch.Tensor]]:
    outputs: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output)[0].clone())

    hooks = [layer.register_forward_hook(keep) for layer in model.model.layers]
    yield outputs
    for hook in hooks:
        hook.remove()

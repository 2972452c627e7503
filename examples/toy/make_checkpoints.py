"""Train the toy problem's two models and write them as Hugging Face folders, ``teacher/`` and ``student/``.

Both are Qwen3 models of a few hundred thousand parameters, trained here from nothing, so that a whole distillation run
fits on a laptop. `problems` explains the task and `chat_tokenizers` the two tokenizers.

* The teacher has learned everything: 2-5 products, both modes, slips and their repair.
* The student knows the notation but little more: 2-3 products, products first only, never a slip. Distillation has to
  teach it the longer problems, the second mode and the repair of slips.

Step counts, seeds and the number of threads are fixed: a rerun on the same machine gives the same weights. Training
uses no problem of the validation or the test split.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from chat_tokenizers import MAX_LENGTH, STUDENT, TEACHER, TokenizerSpec, build_tokenizer
from problems import LENGTHS, draw_mode, draw_problem, is_correct, read_problems, write_trace
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

HERE = Path(__file__).resolve().parent
IGNORED = -100  # the label of positions that carry no loss
MAX_NEW_TOKENS = 384
PROGRESS_PROBLEMS = 200
TEMPERATURES = (0.0, 0.6, 1.0)


@dataclass(frozen=True)
class ModelRecipe:
    """How one model is built and trained.

    Attributes:
        tokenizer: its tokenizer.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP.
        steps: optimizer steps.
        lengths: products in the problems it is trained on.
        write: writes a response to a problem.
        first_lengths: products in the problems of the first steps (easier ones first make learning faster).
        first_share: the share of steps that are the first.
        batch_size: responses a step.
        learning_rate: the peak.
        betas: AdamW's.
        weight_decay: AdamW's.
        seed: of the initial weights and of the training problems.
    """

    tokenizer: TokenizerSpec
    hidden_size: int
    intermediate_size: int
    steps: int
    write: Callable[[str, random.Random], str]
    lengths: tuple[int, ...] = LENGTHS
    first_lengths: tuple[int, ...] = (2, 3)
    first_share: float = 0.25
    batch_size: int = 64
    learning_rate: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    seed: int = 0


def write_as_teacher(problem: str, rng: random.Random) -> str:
    """In either mode, with slips."""
    return write_trace(problem, draw_mode(rng), rng)


def write_without_slips(problem: str, rng: random.Random) -> str:
    """In the commoner mode."""
    return write_trace(problem, "products_first", rng, slip_rate=0.0)


RECIPES: dict[str, ModelRecipe] = {
    "teacher": ModelRecipe(TEACHER, hidden_size=96, intermediate_size=256, steps=1600, write=write_as_teacher),
    "student": ModelRecipe(
        STUDENT, hidden_size=64, intermediate_size=160, steps=900, write=write_without_slips, lengths=(2, 3)
    ),
}


@dataclass(frozen=True)
class Example:
    """A prompt and a response as one sequence; the labels of the prompt's tokens are ignored."""

    input_ids: list[int]
    labels: list[int]


def build_model(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """An untrained model of the recipe's size."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,  # the smallest that vLLM's attention takes on a CPU
        max_position_embeddings=MAX_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.dtype = torch.float32
    torch.manual_seed(recipe.seed)
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def encode_prompt(tokenizer: PreTrainedTokenizerFast, problem: str) -> list[int]:
    """A problem as the user's turn, up to where the model's answer begins."""
    messages = [{"role": "user", "content": problem}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def encode_example(tokenizer: PreTrainedTokenizerFast, problem: str, trace: str) -> Example:
    """What a model is trained on: the prompt, the trace and the end of the turn; loss on the latter two."""
    prompt_ids = encode_prompt(tokenizer, problem)
    response_ids = [*tokenizer.encode(trace, add_special_tokens=False), tokenizer.eos_token_id]
    return Example(prompt_ids + response_ids, [IGNORED] * len(prompt_ids) + response_ids)


def training_batches(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast, steps: int) -> Iterator[list[Example]]:
    """Freshly drawn examples, ``steps`` batches of them. Batches hold examples of like length, to waste no padding."""
    rng = random.Random(recipe.seed)
    batches: list[list[Example]] = []
    for step in range(steps):
        if not batches:
            lengths = recipe.first_lengths if step < recipe.first_share * steps else recipe.lengths
            examples = []
            for _ in range(8 * recipe.batch_size):
                problem = draw_problem(rng, "train", lengths)
                examples.append(encode_example(tokenizer, problem, recipe.write(problem, rng)))
            examples.sort(key=lambda example: len(example.input_ids))
            batches = [examples[i : i + recipe.batch_size] for i in range(0, len(examples), recipe.batch_size)]
            rng.shuffle(batches)
        yield batches.pop()


def collate(examples: Sequence[Example], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input ids and labels, padded on the right (where a causal model needs no attention mask)."""
    length = max(len(example.input_ids) for example in examples)
    input_ids = torch.full((len(examples), length), pad_token_id)
    labels = torch.full((len(examples), length), IGNORED)
    for row, example in enumerate(examples):
        input_ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        labels[row, : len(example.labels)] = torch.tensor(example.labels)
    return input_ids, labels


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """A short linear warm-up, a plateau, and a linear decay to 1% of the peak over the last 40% of steps."""
    warm_up = min(1.0, (step + 1) / 50)
    decay = min(1.0, (1 - step / steps) / 0.4 + 0.01)
    return peak * warm_up * decay


def train(name: str, recipe: ModelRecipe, steps: int | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train one model from nothing. ``steps`` overrides the recipe's number of steps."""
    steps = recipe.steps if steps is None else steps
    tokenizer = build_tokenizer(recipe.tokenizer)
    model = build_model(recipe, tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    validation = read_problems(HERE / "validation.jsonl")[:PROGRESS_PROBLEMS]
    print(f"{name}: {model.num_parameters():,} parameters, vocabulary {len(tokenizer)}, {steps:,} steps", flush=True)
    started, losses = time.process_time(), []
    for step, examples in enumerate(training_batches(recipe, tokenizer, steps)):
        input_ids, labels = collate(examples, tokenizer.pad_token_id)
        logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps, recipe.learning_rate)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 500 == 0 or step + 1 == steps:
            accuracy = measure_accuracy(model, tokenizer, validation, temperature=0.0)
            print(
                f"{name}: step {step + 1:,}/{steps:,}, loss {sum(losses) / len(losses):.4f}, "
                f"greedy accuracy {accuracy:.1%}, {time.process_time() - started:.0f} CPU-seconds",
                flush=True,
            )
            losses = []
    return model, tokenizer


@torch.no_grad()
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, problems: Sequence[str], temperature: float, seed: int
) -> list[str]:
    """One response to each problem; temperature 0 is greedy. Prompts of equal length share a batch: no padding."""
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    groups: dict[int, list[int]] = {}
    prompts = [encode_prompt(tokenizer, problem) for problem in problems]
    for index, prompt_ids in enumerate(prompts):
        groups.setdefault(len(prompt_ids), []).append(index)
    responses = [""] * len(problems)
    for length, indices in sorted(groups.items()):
        input_ids = torch.tensor([prompts[index] for index in indices])
        output_ids = model.generate(
            input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=MAX_NEW_TOKENS, **sampling
        )
        texts = tokenizer.batch_decode(output_ids[:, length:], skip_special_tokens=True)
        for index, text in zip(indices, texts, strict=True):
            responses[index] = text
    return responses


def measure_accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[str],
    temperature: float,
    seed: int = 0,
) -> float:
    """The share of problems that the model answers right."""
    model.eval()
    responses = generate(model, tokenizer, problems, temperature, seed)
    model.train()
    return sum(map(is_correct, problems, responses)) / len(problems)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model folder that ``from_pretrained`` can load."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes its file readable by its owner only
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:.2f} MB", flush=True)


def report_accuracy(name: str, folder: Path) -> None:
    """Print a saved model's accuracy on the validation problems, at each temperature."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    problems = read_problems(HERE / "validation.jsonl")
    shares = []
    for temperature in TEMPERATURES:
        label = f"T={temperature}" if temperature else "greedy"
        shares.append(f"{label} {measure_accuracy(model, tokenizer, problems, temperature):.1%}")
    print(f"{name}: accuracy on {len(problems):,} validation problems: {', '.join(shares)}", flush=True)


def build_parser(folder: Path) -> argparse.ArgumentParser:
    """The command line of the script in ``folder``."""
    parser = argparse.ArgumentParser(
        description="Train the toy problem's teacher and student (minutes on one CPU core) and print their accuracy.",
        epilog="examples: python examples/toy/make_checkpoints.py; "
        "python examples/toy/make_checkpoints.py --model student --output /tmp/models; "
        "python examples/toy/make_checkpoints.py --evaluate-only",
    )
    parser.add_argument("--model", choices=[*RECIPES, "both"], default="both", help="which to make (default: both)")
    parser.add_argument(
        "--output",
        type=Path,
        default=folder,
        help="where teacher/ and student/ go (default: the folder of this script)",
    )
    parser.add_argument("--steps", type=int, help="another number of training steps, for a quick trial")
    parser.add_argument("--evaluate-only", action="store_true", help="train nothing: print the saved models' accuracy")
    return parser


def main(recipes: Mapping[str, ModelRecipe], folder: Path) -> None:
    """Train and save the models, then print the accuracy of what was saved."""
    args = build_parser(folder).parse_args()
    torch.set_num_threads(1)  # the order of sums, and so the weights, would depend on the number of threads
    torch.use_deterministic_algorithms(True)
    disable_progress_bar()  # "loading weights" of a model this small
    names = list(recipes) if args.model == "both" else [args.model]
    if not args.evaluate_only:
        for name in names:
            save(*train(name, recipes[name], args.steps), args.output / name)
    for name in names:
        report_accuracy(name, args.output / name)


if __name__ == "__main__":
    main(RECIPES, HERE)

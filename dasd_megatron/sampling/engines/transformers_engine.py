"""The reference engine: plain transformers, to check the fast one against and to run where there is no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.sampling.engines.engine import (
    EMPTY,
    TOP,
    Arrivals,
    Ended,
    Request,
    Requests,
    Sample,
    TokenScores,
    brier_scores,
)
from dasd_megatron.utils.errors import UserError

# Batches' worth of requests among which it looks for prompts of equal length.
READ_AHEAD = 4


class TransformersEngine:
    """See Engine. Decodes up to `max_batch` prompts of equal length together, so that nothing is padded."""

    def __init__(self, model: Path, config: EngineConfig) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        logging.disable_progress_bar()
        try:
            self._model = AutoModelForCausalLM.from_pretrained(
                str(model), dtype=getattr(torch, config.dtype), use_safetensors=True, trust_remote_code=False
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{model}: the model can't be loaded: {error}") from None
        self._model = self._model.to(self._device).eval()
        self._max_batch: int = config.max_batch
        self._tokens_in_flight = 0
        self.max_length: int = config.max_length or self._model.config.max_position_embeddings

    def generate(self, requests: Requests) -> Iterator[Ended]:
        arrivals = Arrivals(requests)
        while not arrivals.exhausted:
            taken, ended = [], Ended()
            for number, request in arrivals.take(READ_AHEAD * self._max_batch):
                if len(request.prompt_ids) < self.max_length:
                    taken.append((number, request))
                else:
                    ended.append((number, EMPTY))
            if ended:
                yield ended
            for batch in _equal_lengths([request.prompt_ids for _, request in taken], self._max_batch):
                numbers = [taken[index][0] for index in batch]
                for ended in self._decode([taken[index][1] for index in batch]):
                    yield [(numbers[index], sample) for index, sample in ended]

    def tokens_in_flight(self) -> int:
        return self._tokens_in_flight

    @torch.inference_mode()
    def score(self, sequences: Sequence[Sequence[int]], brier: bool = False) -> list[TokenScores]:
        scores: dict[int, TokenScores] = {}
        for batch in _equal_lengths(sequences, self._max_batch):
            ids = torch.tensor([list(sequences[index]) for index in batch], device=self._device)
            logprobs = self._model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
            for index, rows, targets in zip(batch, logprobs, ids[:, 1:, None], strict=True):
                scores[index] = _scores(rows, targets, brier)
        return [scores[index] for index in range(len(sequences))]

    @torch.inference_mode()
    def _decode(self, requests: list[Request]) -> Iterator[Ended]:
        """Samples of requests with prompts of equal length, as they end."""
        generators = [torch.Generator().manual_seed(request.seed) for request in requests]
        ids: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        live = list(range(len(requests)))
        current = torch.tensor([list(request.prompt_ids) for request in requests], device=self._device)
        cache = None
        while live:
            output = self._model(input_ids=current, past_key_values=cache, use_cache=True)
            cache, scores = output.past_key_values, output.logits[:, -1].float().cpu()
            chosen = [
                _choose(row, requests[index].temperature, requests[index].top_p, generators[index])
                for row, index in zip(scores, live, strict=True)
            ]
            chosen_logprobs = scores.log_softmax(-1).gather(-1, torch.tensor(chosen)[:, None]).squeeze(-1).tolist()
            going: list[int] = []
            ended: Ended = []
            for row, index in enumerate(live):
                ids[index].append(chosen[row])
                logprobs[index].append(chosen_logprobs[row])
                if self._goes_on(requests[index], ids[index]):
                    going.append(row)
                else:
                    stopped = chosen[row] in requests[index].stop_ids
                    ended.append((index, Sample.of(ids[index], logprobs[index], "stop" if stopped else "length")))
            if len(going) < len(live):
                cache.batch_select_indices(torch.tensor(going, dtype=torch.long, device=self._device))
            live = [live[row] for row in going]
            self._tokens_in_flight = sum(len(ids[index]) for index in live)
            current = torch.tensor([[chosen[row]] for row in going], device=self._device)
            if ended:
                yield ended

    def _goes_on(self, request: Request, ids: list[int]) -> bool:
        room = min(request.max_tokens, self.max_length - len(request.prompt_ids))
        return ids[-1] not in request.stop_ids and len(ids) < room


def _scores(logprobs: torch.Tensor, targets: torch.Tensor, brier: bool) -> TokenScores:
    """Of targets [n, 1] under logprobs [n, vocabulary]."""
    own = logprobs.gather(-1, targets)
    ranks = (logprobs >= own).sum(-1).to(torch.int32)
    found = TokenScores(own.squeeze(-1).cpu().numpy(), ranks.cpu().numpy())
    if not brier:
        return found
    top = logprobs.topk(min(TOP, logprobs.shape[-1]))
    return replace(found, brier=brier_scores(top.values.cpu().numpy(), (top.indices == targets).cpu().numpy()))


def _choose(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token from the logits of one position, [vocabulary]."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities = (logits / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        ordered[ordered.cumsum(-1) - ordered > top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter(0, order, ordered)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _equal_lengths(sequences: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Indices in groups of equal sequence length, at most `most` together."""
    groups: dict[int, list[int]] = {}
    for index, sequence in enumerate(sequences):
        groups.setdefault(len(sequence), []).append(index)
    return [group[start : start + most] for _, group in sorted(groups.items()) for start in range(0, len(group), most)]

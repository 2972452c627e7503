"""Teacher and student: `teacher`, `student`."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any, Literal

from dasd_megatron.config.base import Config, ExecutionOnly


class ModelConfig(Config):
    """A Hugging Face model folder and how to talk to it."""

    model: ExecutionOnly[Path]
    """Folder with config.json, safetensors, tokenizer.json and a chat template. Its content shapes results, its place doesn't."""

    response_format: Literal["think", "harmony", "plain"] = "think"
    """How a response separates its reasoning from its answer: Qwen3's `<think>...</think>`, or gpt-oss's channels. `plain`: the
    model doesn't reason, and all of its response is the answer."""

    system_prompt: str | None = None
    """System message of every conversation; none by default. The student's becomes the default of the exported chat template."""

    template_date: date = date(2025, 8, 5)
    """The day that a chat template which asks for it is given, as gpt-oss's does for its system message. Not today: the same
    recipe gives the same prompts on any day."""

    template_kwargs: dict[str, Any] = {}
    """Passed to the chat template as they are, for example `{enable_thinking: true}`."""

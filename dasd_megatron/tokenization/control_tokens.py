"""Names of the tokens that structure a model's conversations."""

from __future__ import annotations

import json
from pathlib import Path

from dasd_megatron.utils.errors import UserError


def control_tokens(folder: Path) -> list[str]:
    """The special tokens of a tokenizer, by its model folder or tokenizer.json. Raises UserError where that can't be read."""
    path = folder if folder.suffix == ".json" else folder / "tokenizer.json"
    try:
        definition = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read ({error}); put the model's tokenizer.json into the folder") from None
    return [token["content"] for token in definition.get("added_tokens", []) if token["special"]]

"""Byte offsets: tokens, sentences and bytes partition each other, for toy and real tokenizers."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.curation.sentences import SentenceSplitter, sentence_of_tokens
from dasd_megatron.models.hf_assets import set_default_system_prompt
from dasd_megatron.tokenization.token_bytes import TokenBytes
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from dasd_megatron.utils.errors import UserError
from tests.conftest import TOY

SENTENCE_END = Recipe.model_fields["sentence_end"].default

SNIPPETS = [
    "The area is 3.14 cm². So what? ",
    "设 $x$ 为整数。那么 $x^2 \\ge 0$！",
    "\\begin{align}\n\\frac{a}{b} &= \\sqrt{2} \\\\\n\\end{align}\n",
    "def f(x):\n\treturn {'k': x ** 2}  # comment\n\n",
    "👩‍👩‍👧‍👦 family, 🇩🇪 flag, 🤷🏽‍♀️ shrug. ",
    "مرحبا بالعالم. שלום עולם! ",
    "नमस्ते दुनिया। ",
    "한국어 문장입니다. 日本語の文です。",
    "e\u0301 and \u00e9, \u1e9b\u0323, A\u030a, \ufb01 — not NFC. ",
    "<think>\nHmm…</think>\n\nAnswer: \\boxed{42}",
    "\r\n\t  \u00a0\u2003\u200b",
    "\x00\x07\ufffd\U0010ffff",
]
texts = st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=12)), max_size=6).map("".join)
real = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_partition(tokenizer: ChatTokenizer, text: str) -> None:
    """Tokens partition the bytes, sentences partition the bytes, and every token starts in exactly one sentence."""
    size = len(text.encode())
    ids, starts = tokenizer.encode_with_spans([text])[0]
    assert len(ids) == len(starts)
    spans = list(pairwise([*starts, size]))
    assert all(begin <= end for begin, end in spans)
    assert not spans or (spans[0][0] == 0 and spans[-1][1] == size)
    assert b"".join(text.encode()[begin:end] for begin, end in spans) == text.encode() if len(ids) else not text.strip()

    splitter = SentenceSplitter(SENTENCE_END)
    sentences = splitter.starts(text)
    assert "".join(splitter.split(text)) == text
    owners = sentence_of_tokens(starts, sentences).tolist()
    assert owners == sorted(owners)
    for start, owner in zip(starts, owners, strict=True):
        end = sentences[owner + 1] if owner + 1 < len(sentences) else size
        assert sentences[owner] <= start <= end


@real
@given(text=texts)
def test_qwen3_partition(qwen3: ChatTokenizer, text: str) -> None:
    check_partition(qwen3, text)


@real
@given(text=texts)
def test_gptoss_partition(gptoss: ChatTokenizer, text: str) -> None:
    check_partition(gptoss, text)


@real
@given(text=texts)
def test_two_tokenizers_meet_at_the_same_bytes(qwen3: ChatTokenizer, gptoss: ChatTokenizer, text: str) -> None:
    """Every boundary that both tokenizers share is a boundary of the same bytes of the text."""
    data = text.encode()
    for tokenizer in (qwen3, gptoss):
        ids, starts = tokenizer.encode_with_spans([text])[0]
        whole = b"".join(tokenizer.token_bytes[token] for token in ids)
        if whole == data:  # where nothing was normalised each token's bytes are exactly the text's
            for token, begin, end in zip(ids, starts, [*starts, len(data)][1:], strict=True):
                assert tokenizer.token_bytes[token] == data[begin:end]


def test_normalised_text_still_partitions(qwen3: ChatTokenizer) -> None:
    text = "e\u0301 x A\u030a."  # Qwen's tokenizer makes é and Å of these
    ids, starts = qwen3.encode_with_spans([text])[0]
    assert b"".join(qwen3.token_bytes[token] for token in ids) != text.encode()
    check_partition(qwen3, text)
    assert starts[-1] == len(text.encode()) - 1


toy_texts = st.text(alphabet="0123456789*+=;!?", max_size=40).map(lambda body: f"<think>{body}</think>7")


@settings(deadline=None)
@given(text=toy_texts)
def test_toy_tokenizers_partition(text: str) -> None:
    for name in ("teacher", "student"):
        tokenizer = _toy(name)
        check_partition(tokenizer, text)
        ids, _starts = tokenizer.encode_with_spans([text])[0]
        assert tokenizer.decode_bytes(ids).decode() == text


_TOYS: dict[str, ChatTokenizer] = {}


def _toy(name: str) -> ChatTokenizer:
    if name not in _TOYS:
        _TOYS[name] = ChatTokenizer(TOY / name)
    return _TOYS[name]


def test_toy_tokenizers_differ() -> None:
    assert _toy("teacher").encode("3*4=2;2+4=6;") != _toy("student").encode("3*4=2;2+4=6;")


def test_sentencepiece_tokens_stand_for_bytes() -> None:
    definition = {
        "model": {"type": "BPE", "vocab": {"▁Hi": 0, "<0xE2>": 1, "x": 2}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
        "added_tokens": [{"id": 3, "content": "<s>"}],
    }
    token_bytes = TokenBytes(definition)
    assert [token_bytes[index] for index in range(5)] == [b" Hi", b"\xe2", b"x", b"<s>", b""]


def test_wordpiece_is_refused() -> None:
    with pytest.raises(UserError, match="WordPiece"):
        TokenBytes({"model": {"type": "WordPiece", "vocab": {}}, "decoder": None})


def test_end_of_turn_comes_from_the_template() -> None:
    assert _toy("teacher").end_of_turn_id == _toy("teacher").token_id("<|return|>")
    assert _toy("student").end_of_turn_id == _toy("student").token_id("<|im_end|>")


def test_real_prompt_is_the_templates(qwen3: ChatTokenizer) -> None:
    prompt = qwen3.decode_bytes(qwen3.prompt_ids("What is 2+2?")).decode()
    assert prompt == "<|im_start|>user\nWhat is 2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert qwen3.end_of_turn_id == qwen3.token_id("<|im_end|>")


def test_system_prompt_and_template_settings(qwen3: ChatTokenizer) -> None:
    other = ChatTokenizer(
        qwen3.folder,
        ModelConfig(
            model=qwen3.folder,
            system_prompt="You are a helpful assistant.",
            template_kwargs={"enable_thinking": False},
        ),
    )
    prompt = other.decode_bytes(other.prompt_ids("Hi")).decode()
    assert prompt.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert prompt.endswith("<think>\n\n</think>\n\n")


def copy_of(name: str, folder: Path) -> Path:
    shutil.copytree(TOY / name, folder / name)
    return folder / name


def test_tokenizer_without_chat_template(tmp_path: Path) -> None:
    folder = copy_of("student", tmp_path)
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no chat template; put the model's chat_template\.jinja into the folder"):
        ChatTokenizer(folder)


def test_template_that_closes_no_turn(tmp_path: Path) -> None:
    folder = copy_of("student", tmp_path)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(UserError, match="could not learn to stop"):
        ChatTokenizer(folder)


def test_damaged_tokenizer(tmp_path: Path) -> None:
    folder = copy_of("student", tmp_path)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="can't be loaded"):
        ChatTokenizer(folder)


def test_stop_tokens_are_the_templates_and_the_generation_configs(tmp_path: Path) -> None:
    folder = copy_of("student", tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    assert ChatTokenizer(folder).stop_ids == [0, 2]
    (folder / "generation_config.json").unlink()
    assert ChatTokenizer(folder).stop_ids == [2]


def test_a_template_is_told_the_recipes_date(tmp_path: Path) -> None:
    """gpt-oss's writes `Current date: ` and strftime_now("%Y-%m-%d") into its system message, in a macro."""
    shutil.copytree(TOY / "teacher", tmp_path / "model")
    template = tmp_path / "model" / "chat_template.jinja"
    macro = '{%- macro system() -%}{{- strftime_now("%Y-%m-%d") + "\\n" }}{%- endmacro -%}{{- system() }}'
    template.write_text(macro + template.read_text())

    def prompt(**settings: object) -> str:
        tokenizer = ChatTokenizer(tmp_path / "model", ModelConfig(model=tmp_path / "model", **settings))
        return tokenizer._render([{"role": "user", "content": "3*4?"}], add_generation_prompt=True)

    assert prompt().startswith("2025-08-05")
    assert prompt(template_date="2026-01-31").startswith("2026-01-31")
    settings = ModelConfig(model=tmp_path, template_date="2026-01-31")
    assert settings.result_settings()["template_date"] == "2026-01-31"


@pytest.mark.parametrize("as_file", [True, False])
def test_an_exported_template_has_the_system_prompt_of_training(tmp_path: Path, as_file: bool) -> None:
    """Whoever serves the model gets the prompts that it was trained on; a system message of one's own goes before."""
    folder, prompt = tmp_path / "model", 'You are "helpful".\nAnswer {{ briefly }} – ja.'
    shutil.copytree(TOY / "student", folder)
    if not as_file:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] = (folder / "chat_template.jinja").read_text()
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "chat_template.jinja").unlink()
    trained = ChatTokenizer(folder, ModelConfig(model=folder, system_prompt=prompt)).prompt_ids("3*4?")
    own = ChatTokenizer(folder, ModelConfig(model=folder, system_prompt="Else.")).prompt_ids("3*4?")
    set_default_system_prompt(folder, prompt)
    assert ChatTokenizer(folder).prompt_ids("3*4?") == trained
    assert ChatTokenizer(folder, ModelConfig(model=folder, system_prompt="Else.")).prompt_ids("3*4?") == own

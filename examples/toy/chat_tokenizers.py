"""The teacher's and the student's tokenizers, with their chat templates.

They are different on purpose: distillation has to compare the two models' probabilities of one text although neither
its tokens nor the ids agree. Both are word-level tokenizers over characters and a few longer pieces, and both give
back exactly the text that was encoded:

=========  =====================================================  ===============  ======================
model      pieces longer than a character                         end of turn      template
=========  =====================================================  ===============  ======================
teacher    products ``3*4``, results ``=2``                       ``<|return|>``   one marker a role
student    products ``3*4``, addends ``+4`` (not in ``+4*5``)     ``<|im_end|>``   ChatML
=========  =====================================================  ===============  ======================

``<think>`` and ``</think>`` are added tokens that are not special, so text decoded without special tokens keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHARACTERS = "0123456789*+=;!?"
PRODUCTS = tuple(f"{a}*{b}" for a, b in product(range(10), repeat=2))
THINK_TOKENS = ("<think>", "</think>")
MAX_LENGTH = 512

TEACHER_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|' + message['role'] + '|>' + message['content'] }}
    {{- '<|return|>' if message['role'] == 'assistant' else '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

STUDENT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@dataclass(frozen=True)
class TokenizerSpec:
    """What one tokenizer consists of.

    Attributes:
        pieces: regular expression of the pieces longer than a character; all else is split into characters.
        words: the vocabulary of ordinary tokens.
        pad_token: fills up the shorter sequences of a batch.
        unk_token: stands for a character outside the vocabulary.
        eos_token: ends an assistant's turn.
        marker_tokens: the chat template's other special tokens.
        chat_template: the template, in Jinja.
    """

    pieces: str
    words: tuple[str, ...]
    pad_token: str
    unk_token: str
    eos_token: str
    marker_tokens: tuple[str, ...]
    chat_template: str


TEACHER = TokenizerSpec(
    pieces=r"\d\*\d|=\d",
    words=(*CHARACTERS, *PRODUCTS, *(f"={digit}" for digit in range(10))),
    pad_token="<|pad|>",
    unk_token="<|unk|>",
    eos_token="<|return|>",
    marker_tokens=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    chat_template=TEACHER_TEMPLATE,
)

STUDENT = TokenizerSpec(
    # The role names are pieces too, because ChatML writes them as ordinary text.
    pieces=r"\d\*\d|\+\d(?!\*)|system|user|assistant",
    words=("\n", "system", "user", "assistant", *CHARACTERS, *PRODUCTS, *(f"+{digit}" for digit in range(10))),
    pad_token="<|endoftext|>",
    unk_token="<|unknown|>",
    eos_token="<|im_end|>",
    marker_tokens=("<|im_start|>",),
    chat_template=STUDENT_TEMPLATE,
)


def build_tokenizer(spec: TokenizerSpec) -> PreTrainedTokenizerFast:
    """Make an ordinary fast tokenizer, which ``AutoTokenizer`` can load once it is saved."""
    special_tokens = (spec.pad_token, spec.unk_token, spec.eos_token, *spec.marker_tokens)
    vocabulary = {token: index for index, token in enumerate((*special_tokens, *THINK_TOKENS, *spec.words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=spec.unk_token))
    # What the pattern leaves between its matches is nothing: its last alternative takes any one character.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{spec.pieces}|[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THINK_TOKENS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=spec.pad_token,
        unk_token=spec.unk_token,
        eos_token=spec.eos_token,
        additional_special_tokens=list(spec.marker_tokens),
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_LENGTH,
    )
    fast.chat_template = spec.chat_template
    return fast

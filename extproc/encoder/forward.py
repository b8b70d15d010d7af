"""The forward pass of a sentence-transformers model in torch: tokens -> the vector of a text, and of parts of it.

The vector of parts is the mean over their tokens, as the model pools all tokens for the vector of a text.
"""

from typing import Any

import torch

from extproc.encoder.protocols import Vectors


def pools_parts(model: Any) -> bool:
    """Return whether the vector of a text is the mean over its tokens. Otherwise its parts are encoded apart."""
    return len(model) > 1 and getattr(model[1], "pooling_mode", None) == "mean"


class Forward(torch.nn.Module):
    """Maps tokens to vectors, through all modules of the model."""

    def __init__(self, model: Any, centre: Vectors | None = None) -> None:
        """`centre`, float32[d], is subtracted from each vector."""
        super().__init__()
        self.model = model
        self.register_buffer("centre", None if centre is None else torch.from_numpy(centre), persistent=False)

    def forward(self, input_ids: Any, attention_mask: Any, parts: Any = None) -> Any:
        """Return the vectors of texts, and with `parts`, a mask of their tokens, also those of the parts."""
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "token_type_ids" in self.model.tokenizer.model_input_names:
            features["token_type_ids"] = torch.zeros_like(input_ids)
        tokens, *others = self.model
        features = tokens(features)
        whole = self._pooled(features, attention_mask, others)
        return whole if parts is None else (whole, self._pooled(features, parts, others))

    def _pooled(self, features: Any, mask: Any, others: list[Any]) -> Any:
        features = {**features, "attention_mask": mask}
        for module in others:
            features = module(features)
        vector = features["sentence_embedding"]
        return vector if self.centre is None else vector - self.centre

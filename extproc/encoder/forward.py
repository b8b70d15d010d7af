"""The forward pass of a sentence-transformers model in torch: tokens -> the vector of a text, and of parts of it.

The vector of parts is the mean over their tokens, as the model pools all tokens for the vector of a text.
"""

from typing import Any

from extproc.encoder.protocols import Vectors


def pools_parts(model: Any) -> bool:
    """Return whether the vector of a text is the mean over its tokens. If it is not, parts are encoded apart."""
    return len(model) > 1 and getattr(model[1], "pooling_mode", None) == "mean"


def forward_of(model: Any, centre: Vectors | None = None) -> Any:
    """Return a torch module that runs all modules of the model and subtracts `centre`, float32[d], from vectors."""
    import torch

    class Forward(torch.nn.Module):  # type: ignore[misc]  # the types of torch are not read
        """Maps tokens to the vectors of texts and, with `parts`, a mask of their tokens, also to those of parts."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, parts: Any = None) -> Any:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            if "token_type_ids" in model.tokenizer.model_input_names:
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
            return vector if centre is None else vector - torch.from_numpy(centre)

    return Forward()

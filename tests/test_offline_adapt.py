"""Adapting the encoder, on a handful of texts and with the real weights."""

import msgspec
import numpy as np
import pytest

from extproc.offline import adapt
from extproc.offline.adapt import STAMP_FILE, Adaptation
from extproc.sentences import TorchSentences
from extproc.vectors import EncoderError

UTTERANCES = {
    "refund": ["I want my money back", "please refund the order", "return this and pay me", "cancel and refund"],
    "billing": ["why was I charged twice", "my invoice is wrong", "explain this bill", "a payment went missing"],
}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    return folder, adapt.adapt("all-MiniLM-L6-v2", UTTERANCES, folder / "once", "2026-01-01", share=1.0)


def gap(encoder) -> float:
    """How much more alike utterances of one cohort are than those of two."""
    rows = encoder.encode([text for some in UTTERANCES.values() for text in some])
    alike = rows @ rows.T
    return float((alike[:4, :4].sum() + alike[4:, 4:].sum() - 8) / 24 - alike[:4, 4:].mean())


def test_cohorts_move_apart_and_the_folder_says_what_it_was_made_of(adapted):
    """It loads like any other local model; its stamp is beside its weights."""
    folder, stamp = adapted
    assert gap(TorchSentences(str(folder / "once"), 1)) > gap(TorchSentences("all-MiniLM-L6-v2", 1)) + 0.05
    written = msgspec.json.decode((folder / "once" / STAMP_FILE).read_bytes(), type=Adaptation)
    assert written == stamp
    assert stamp == Adaptation(
        model="all-MiniLM-L6-v2",
        data=adapt.utterances_digest(UTTERANCES),
        cohorts=2,
        utterances=8,
        epochs=8,
        seed=0,
        share=1.0,
        date="2026-01-01",
    )


def test_adaptation_is_repeatable_and_its_share_is_a_way_back(adapted):
    """One seed gives the same vectors but for rounding; half the way lies between, none of it changes nothing."""
    folder, _ = adapted
    texts = ["where is my refund", "what is the weather"]
    vectors = {0.0: np.array([]), 0.5: np.array([]), 1.0: np.array([])}
    for share in vectors:
        adapt.adapt("all-MiniLM-L6-v2", UTTERANCES, folder / str(share), "2026-01-01", share=share)
        vectors[share] = TorchSentences(str(folder / str(share)), 1).encode(texts)
    assert vectors[1.0] == pytest.approx(TorchSentences(str(folder / "once"), 1).encode(texts), abs=1e-3)
    assert vectors[0.0] == pytest.approx(TorchSentences("all-MiniLM-L6-v2", 1).encode(texts), abs=1e-6)
    half, all_the_way = (1 - (vectors[0.0] * vectors[share]).sum(axis=1) for share in (0.5, 1.0))
    assert (half < all_the_way).all()


def test_the_digest_knows_texts_cohorts_and_order():
    """Whatever changes the fit changes it."""
    other = {"refund": UTTERANCES["refund"], "billing": UTTERANCES["billing"][::-1]}
    renamed = {"money": UTTERANCES["refund"], "billing": UTTERANCES["billing"]}
    digests = {adapt.utterances_digest(some) for some in (UTTERANCES, other, renamed)}
    assert len(digests) == 3 and adapt.utterances_digest(dict(UTTERANCES)) in digests


@pytest.mark.parametrize("utterances", [{}, {"one": ["text"]}, {"one": ["text"], "none": []}])
def test_there_must_be_something_to_tell_apart(utterances, tmp_path):
    """One cohort, or one without utterances, is the operator's mistake; nothing is written."""
    with pytest.raises(EncoderError, match="two or more"):
        adapt.adapt("all-MiniLM-L6-v2", utterances, tmp_path / "new", "2026-01-01")
    assert not (tmp_path / "new").exists()


def test_every_text_is_read_once_an_epoch_among_its_like():
    """Batches of one length cost least; their order is the seed's."""
    lengths = [10] * 70 + [50] * 70
    batches = [*adapt._batches(lengths, epochs=2, seed=0)]
    assert sorted(i for batch in batches for i in batch) == sorted([*range(140)] * 2)
    assert max(map(len, batches)) == 64
    assert batches == [*adapt._batches(lengths, epochs=2, seed=0)] != [*adapt._batches(lengths, epochs=2, seed=1)]

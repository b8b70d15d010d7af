"""Adapting the encoder, on a handful of texts and with the real weights."""

import shutil

import msgspec
import numpy as np
import pytest
import torch

from extproc.encoder.backends import ADAPTED_FILE, TorchSentences, load_encoder, words_weight
from extproc.encoder.features import WORDS_WEIGHT
from extproc.encoder.protocols import EncoderError
from extproc.evidence.fit import adapt
from extproc.evidence.fit.adapt import Adaptation

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
    written = msgspec.json.decode((folder / "once" / ADAPTED_FILE).read_bytes(), type=Adaptation)
    assert written == stamp
    assert stamp == Adaptation(
        model="all-MiniLM-L6-v2",
        data=adapt.adaptation_digest(UTTERANCES),
        cohorts=2,
        utterances=8,
        epochs=8,
        seed=0,
        share=1.0,
        words=0.5,
        date="2026-01-01",
    )


def test_words_weigh_as_the_stamp_says_where_it_serves(adapted):
    """Less beside an adapted encoder; as ever beside one as it comes; and a damaged stamp stops the start."""
    folder, _ = adapted
    for model, words in ((str(folder / "once"), 0.5), ("all-MiniLM-L6-v2", WORDS_WEIGHT)):
        (row,) = load_encoder(model).encode(["I want my money back"])
        assert np.linalg.norm(row[384:]) / np.linalg.norm(row[:384]) == pytest.approx(words, rel=1e-4)
    (shutil.copytree(folder / "once", folder / "older") / ADAPTED_FILE).write_text('{"model": "m", "share": 0.75}')
    assert words_weight(str(folder / "older")) == WORDS_WEIGHT
    damaged = shutil.copytree(folder / "once", folder / "damaged")
    (damaged / ADAPTED_FILE).write_text('{"model"')
    with pytest.raises(EncoderError, match=r"adapted\.json cannot be read .*: copy the folder again"):
        load_encoder(str(damaged))


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
    digests = {adapt.adaptation_digest(some) for some in (UTTERANCES, other, renamed)}
    assert len(digests) == 3 and adapt.adaptation_digest(dict(UTTERANCES)) in digests


@pytest.mark.parametrize("utterances", [{}, {"one": ["text"]}, {"one": ["text"], "none": []}])
def test_there_must_be_something_to_tell_apart(utterances, tmp_path):
    """One cohort, or one without utterances, is the operator's mistake; nothing is written."""
    with pytest.raises(EncoderError, match="two or more"):
        adapt.adapt("all-MiniLM-L6-v2", utterances, tmp_path / "new", "2026-01-01")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("cohorts", [2, 40])
def test_a_batch_has_as_many_texts_of_each_cohort_however_few_it_has(cohorts):
    """Every text has others of its cohort to be drawn to; cohorts and texts come in turn, in the seed's order."""
    member = np.repeat(np.arange(cohorts), [200, *[3] * (cohorts - 1)])
    batches = [*adapt._batches(member, epochs=8, seed=0)]
    some = min(cohorts, 16)
    assert len(batches) == round(8 * len(member) / 64)
    for batch in batches:
        _, counts = np.unique(member[batch], return_counts=True)
        assert counts.sum() == 64 and set(counts / (64 // some)) <= {1, 2}
    read = np.bincount(np.concatenate(batches), minlength=len(member))
    turns = np.bincount(member[np.concatenate(batches)]) / (64 // some)
    assert turns.max() - turns.min() <= 1
    assert all(np.ptp(read[member == cohort]) <= 1 for cohort in range(cohorts))
    assert batches == [*adapt._batches(member, epochs=8, seed=0)] != [*adapt._batches(member, epochs=8, seed=1)]


def test_contrast_is_the_published_loss():
    """Worked by hand: pairs of equal texts, of cosine 0.9 with the other pair; and cohorts across the pairs."""
    x, y = [1.0, 0.0], [0.9, np.sqrt(0.19)]
    labels = torch.tensor([0, 0, 1, 1])
    apart, mixed = (float(adapt._contrast(torch.tensor(rows), labels)) for rows in ([x, x, y, y], [x, y, x, y]))
    same, other = np.exp(1 / 0.07), np.exp(0.9 / 0.07)
    assert apart == pytest.approx(-np.log(same / (same + 2 * other)), rel=1e-4)
    assert mixed == pytest.approx(-np.log(other / (same + 2 * other)), rel=1e-4)

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
    """Return how much more similar utterances of one cohort are than utterances of two cohorts."""
    rows = encoder.encode([text for texts in UTTERANCES.values() for text in texts])
    alike = rows @ rows.T
    return float((alike[:4, :4].sum() + alike[4:, 4:].sum() - 8) / 24 - alike[:4, 4:].mean())


def test_cohorts_move_apart_and_the_folder_names_its_origin(adapted):
    """It loads like any other local model. The record of its origin is beside its weights."""
    folder, adaptation = adapted
    assert gap(TorchSentences(str(folder / "once"), 1)) > gap(TorchSentences("all-MiniLM-L6-v2", 1)) + 0.05
    written = msgspec.json.decode((folder / "once" / ADAPTED_FILE).read_bytes(), type=Adaptation)
    assert written == adaptation
    assert adaptation == Adaptation(
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


def test_words_have_the_recorded_weight_when_it_serves(adapted):
    """The weight is lower beside an adapted encoder. A damaged record is an error at the start."""
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


def test_adaptation_is_repeatable_and_its_share_is_a_part_of_the_way(adapted):
    """One seed gives the same vectors except for rounding. A share of 0 changes nothing, and 0.5 lies between."""
    folder, _ = adapted
    texts = ["where is my refund", "what is the weather"]
    vectors = {0.0: np.array([]), 0.5: np.array([]), 1.0: np.array([])}
    for share in vectors:
        adapt.adapt("all-MiniLM-L6-v2", UTTERANCES, folder / str(share), "2026-01-01", share=share)
        vectors[share] = TorchSentences(str(folder / str(share)), 1).encode(texts)
    assert vectors[1.0] == pytest.approx(TorchSentences(str(folder / "once"), 1).encode(texts), abs=1e-3)
    assert vectors[0.0] == pytest.approx(TorchSentences("all-MiniLM-L6-v2", 1).encode(texts), abs=1e-6)
    half, whole = (1 - (vectors[0.0] * vectors[share]).sum(axis=1) for share in (0.5, 1.0))
    assert (half < whole).all()


def test_the_digest_depends_on_texts_cohorts_and_order():
    """Everything that changes the fit changes the digest."""
    other = {"refund": UTTERANCES["refund"], "billing": UTTERANCES["billing"][::-1]}
    renamed = {"money": UTTERANCES["refund"], "billing": UTTERANCES["billing"]}
    digests = {adapt.adaptation_digest(utterances) for utterances in (UTTERANCES, other, renamed)}
    assert len(digests) == 3 and adapt.adaptation_digest(dict(UTTERANCES)) in digests


@pytest.mark.parametrize("utterances", [{}, {"one": ["text"]}, {"one": ["text"], "none": []}])
def test_one_cohort_or_one_without_texts_is_an_error(utterances, tmp_path):
    """There must be two cohorts to separate. Nothing is written."""
    with pytest.raises(EncoderError, match="give two or more, each with utterances"):
        adapt.adapt("all-MiniLM-L6-v2", utterances, tmp_path / "new", "2026-01-01")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("cohorts", [2, 40])
def test_a_batch_has_the_same_number_of_texts_of_each_cohort(cohorts):
    """Every text has others of its cohort. Cohorts and texts take turns, in an order that depends on the seed."""
    member = np.repeat(np.arange(cohorts), [200, *[3] * (cohorts - 1)])
    batches = [*adapt._batches(member, epochs=8, seed=0)]
    in_batch = min(cohorts, 16)
    assert len(batches) == round(8 * len(member) / 64)
    for batch in batches:
        _, counts = np.unique(member[batch], return_counts=True)
        assert counts.sum() == 64 and set(counts / (64 // in_batch)) <= {1, 2}
    read = np.bincount(np.concatenate(batches), minlength=len(member))
    turns = np.bincount(member[np.concatenate(batches)]) / (64 // in_batch)
    assert turns.max() - turns.min() <= 1
    assert all(np.ptp(read[member == cohort]) <= 1 for cohort in range(cohorts))
    assert batches == [*adapt._batches(member, epochs=8, seed=0)] != [*adapt._batches(member, epochs=8, seed=1)]


def test_contrast_is_the_published_loss():
    """Computed by hand: two pairs of equal texts with cosine 0.9, as two cohorts, and with cohorts across pairs."""
    x, y = [1.0, 0.0], [0.9, np.sqrt(0.19)]
    labels = torch.tensor([0, 0, 1, 1])
    apart, mixed = (float(adapt._contrast(torch.tensor(rows), labels)) for rows in ([x, x, y, y], [x, y, x, y]))
    same, other = np.exp(1 / 0.07), np.exp(0.9 / 0.07)
    assert apart == pytest.approx(-np.log(same / (same + 2 * other)), rel=1e-4)
    assert mixed == pytest.approx(-np.log(other / (same + 2 * other)), rel=1e-4)

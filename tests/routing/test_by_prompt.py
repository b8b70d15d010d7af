"""A choice between two tiers by the prompt: the file of predicted gains, and what the router does with it."""

import hashlib
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load, save

from extproc.acceptance.rules import Gain
from extproc.acceptance.score import SCORE_FACTS
from extproc.api.observation import Observation
from extproc.api.request import parse_request
from extproc.config.candidate import compile_all
from extproc.config.compile import compile_snapshot, utterances_digest
from extproc.config.load import Config, ConfigError, load_config
from extproc.config.signature import signature
from extproc.config.standing import Standing, stale_values
from extproc.contract.words import Reason
from extproc.routing.ask import Ask
from extproc.routing.by_prompt import match_prompt
from extproc.routing.centroid_file import metadata_header
from extproc.routing.decision import Decision, decide
from extproc.routing.gain_file import (
    GAINS_FILE,
    VERSION,
    GainHeader,
    OtherVersionError,
    decode_gains,
    encode_gains,
)
from extproc.routing.index import Match
from extproc.routing.mutation import asks_logprobs
from extproc.routing.policy import Cohort
from extproc.routing.prompt_facts import PROMPT_FACTS, prompt_facts
from extproc.routing.prompt_gain import AnswerGain, GainTrees, PromptColumns, PromptGains, Trees
from extproc.routing.signals import Signals
from extproc.settings import Price, Tier

CONFIGS = Path(__file__).parents[1] / "configs"
WIDTH = 2 + len(PROMPT_FACTS)
BILLING = "Why is my invoice higher this month"
RATES = np.array([0.5, 0.9, 0.4, 1.0], dtype=np.float32)


def stump(cut: float, below: float, above: float) -> Trees:
    """Return one tree of depth 1, which compares the logarithm of the characters of the ask."""
    middle, leaf = (below + above) / 2, (above - below) / 2
    leaves = np.array([[-leaf, leaf]], dtype=np.float32)
    return Trees(middle, np.array([[2]]), np.array([[cut]], dtype=np.float32), leaves)


def gains(
    direction: float = 0.0, low: float = -1e6, cost: tuple[float, float] = (1.0, 1.0), cut: float = 100
) -> PromptGains:
    """Return a gain of 0.3 for asks of more than 60 characters, otherwise of -0.1.

    `cost`: the extra cost of asks of up to `cut` characters, and of longer ones.
    """
    columns = PromptColumns(
        np.zeros(512, dtype=np.float32),
        np.full((512, 2), direction, dtype=np.float32),
        np.full(WIDTH, low, dtype=np.float32),
        np.full(WIDTH, 1e6, dtype=np.float32),
    )
    trees = stump(np.log1p(60), -0.1, 0.3), stump(np.log1p(cut), *cost)
    pair = GainTrees(("small", "large"), *trees, {"billing": RATES, "cooking": RATES})
    return PromptGains(columns, {pair.tiers: pair})


def header(config: Config | None = None) -> GainHeader:
    digest = utterances_digest(config) if config is not None else "1234567e8901"
    return GainHeader(
        version=2,
        date="2026-11-29",
        data="f1f958a82ea0",
        rows=400,
        encoder=config.policy.encoder.name if config is not None else "m",
        utterances=digest,
        pairs=(("small", "large"),),
        models={"small": "qwen3-8b", "large": "qwen3-32b"},
        cohorts=("billing", "cooking"),
    )


def folder_with(tmp_path: Path, floor: str = "floor: -1\n", fit: str | None = None, **more: PromptGains) -> Path:
    """Return the good folder, where the prompt chooses in billing."""
    folder = Path(shutil.copytree(CONFIGS / "good", tmp_path / "intents"))
    raw = encode_gains(header(load_config(folder)), more.get("predicted", gains()))
    (folder / GAINS_FILE).write_bytes(raw)
    seal = fit or decode_gains(raw).header.seal
    with (folder / "billing.yaml").open("a") as file:
        by_prompt = f"{{tiers: [small, large], least: 0.05, gain: [0.01, 0.04], rows: 300, fit: '{seal}'}}"
        file.write(f"{floor}by_prompt: {by_prompt}\n")
    return folder


def chosen(folder: Path, words, text: str) -> tuple[str, Reason]:
    """The tier's name and the reason."""
    snapshot = compile_snapshot(load_config(folder), words)
    ask = Ask(text, "last_user", len(text), False)
    signals = Signals(ask, tokens=100, turns=1, needs=frozenset(), strict_output=False, stream=False)
    decision = decide(snapshot.policy, signals, match_prompt(snapshot, words.encode([text])[0], ask), {})
    return decision.tier.name, decision.reason


# The facts


def test_the_facts_of_an_ask():
    """Options are read from an ask, which has no line breaks."""
    text = "Which is not 7? A. nine B. 12 C. x_1 Answer:"
    facts = dict(zip(PROMPT_FACTS, prompt_facts(Ask(text, "last_user", 100, True)).tolist(), strict=True))
    assert facts["chars"] == pytest.approx(np.log1p(100))
    assert facts["stem_chars"] == pytest.approx(np.log1p(len("Which is not 7?")))
    assert facts["numbers"] == pytest.approx(np.log1p(1))
    assert (facts["asks"], facts["negated"], facts["options"]) == (1, 1, 3)
    assert facts["numeric_options"] == pytest.approx(2 / 3)
    assert facts["code"] == pytest.approx(np.log1p(1))


@pytest.mark.parametrize("text", ["", "?", "A. ", "A. A. A. ", "B. one A. two", "\ud800", "等 A. 一 B. 二"])
def test_every_text_has_facts(text):
    """They are finite numbers for any text."""
    assert np.isfinite(prompt_facts(Ask(text, "raw", len(text), False))).all()


# The file


def test_a_written_file_is_read_back():
    """The same content gives the same bytes, and the same gain."""
    raw = encode_gains(header(), gains())
    file = decode_gains(raw)
    assert raw == encode_gains(header(), gains())
    assert msgspec.structs.replace(file.header, seal="") == header()
    vector = np.zeros(2560, dtype=np.float32)
    for chars, gain in ((50, -0.1), (70, 0.3)):
        ask = Ask("x" * chars, "last_user", chars, False)
        assert file.gains.gain(("small", "large"), "billing", vector, ask) == pytest.approx(gain)


@pytest.mark.parametrize(("chars", "gain"), [(70, 0.3), (150, 0.075), (50, -0.1)])
def test_a_prompt_with_expensive_answers_needs_a_larger_gain(chars, gain):
    """Above 100 characters the extra cost is four times the mean, so the same gain counts a quarter."""
    vector, ask = np.zeros(2560, dtype=np.float32), Ask("x" * chars, "last_user", chars, False)
    predicted = decode_gains(encode_gains(header(), gains(cost=(1.0, 4.0)))).gains
    assert predicted.gain(("small", "large"), "billing", vector, ask) == pytest.approx(gain)


def test_a_predicted_cost_of_nothing_counts_as_a_tenth_of_the_mean():
    """Otherwise a gain without a cost would be endless, and one with a saving would be negative."""
    vector, ask = np.zeros(2560, dtype=np.float32), Ask("x" * 70, "last_user", 70, False)
    for cost in (0.0, -2.0):
        gain = gains(cost=(cost, cost)).gain(("small", "large"), "billing", vector, ask)
        assert gain == pytest.approx(0.3 / 0.1)


def test_no_gain_for_what_was_not_fitted_on():
    """Other tiers, another cohort, and a prompt outside the range of the fit have none."""
    vector, ask = np.zeros(2560, dtype=np.float32), Ask("Hello", "last_user", 5, False)
    assert gains().gain(("small", "frontier"), "billing", vector, ask) is None
    assert gains().gain(("small", "large"), "other", vector, ask) is None
    assert gains(low=1.0).gain(("small", "large"), "billing", vector, ask) is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"0.gain.cuts": np.full((1, 1), np.nan, dtype=np.float32)}, "shapes"),
        ({"0.cost.features": np.array([[WIDTH + 4]], dtype=np.int16)}, "shapes"),
        ({"0.gain.features": np.array([[-1]], dtype=np.int16)}, "shapes"),
        ({"0.cost.leaves": np.zeros((1, 4), dtype=np.float32)}, "shapes"),
        ({"other": np.zeros(1, dtype=np.float32)}, "shapes"),
        ({"0.gain.base": np.array([0.2], dtype=np.float32)}, "changed after"),
    ],
)
def test_a_damaged_file_is_refused(change, what):
    """The error says what to do."""
    raw = encode_gains(header(), gains())
    arrays = load(raw) | change
    text = msgspec.json.encode(decode_gains(raw).header).decode()
    with pytest.raises(ValueError, match=f"{what}.*run `extproc calibrate --target"):
        decode_gains(save(arrays, metadata={"header": text}))


def test_a_file_of_another_version_is_refused():
    """A newer release may read columns in another way."""
    raw = encode_gains(msgspec.structs.replace(header(), version=4), gains())
    remedy = "delete the file, and run `extproc calibrate --target"
    with pytest.raises(ValueError, match=f"is of version 4, and this release reads the versions 2 and 3: {remedy}"):
        decode_gains(raw)


def test_a_text_file_is_refused():
    """It is not the file's format at all."""
    with pytest.raises(ValueError, match="is not a file of gains"):
        decode_gains(b"tiers: [small]")


# The predictions with an answer


def judging(question: float = 20) -> PromptGains:
    """Return predictions with an answer, too: a gain of 0.5 for questions of more characters, otherwise of -0.5."""
    of_prompts = gains()
    longer = Trees(
        0.0,
        np.array([[WIDTH + SCORE_FACTS.index("question_length")]]),
        np.array([[np.log1p(question)]], dtype=np.float32),
        np.array([[-0.5, 0.5]], dtype=np.float32),
    )
    pair = GainTrees(("small", "large"), longer, stump(100, 2.0, 2.0), {"billing": RATES, "cooking": RATES})
    return msgspec.structs.replace(of_prompts, answers={pair.tiers: pair})


def judging_header(config: Config | None = None) -> GainHeader:
    return msgspec.structs.replace(header(config), version=VERSION, judged=(("small", "large"),))


def test_the_gain_is_predicted_again_with_the_answer():
    """It is divided by the whole cost of the costlier tier. Another prompt's columns give none."""
    file = decode_gains(encode_gains(judging_header(), judging()))
    predictor = file.gains.of_answers(("small", "large"), "billing")
    assert predictor is not None and not predictor.wants_logprobs
    columns, answer = (0.0,) * WIDTH, Observation(text="Yes.")
    assert predictor.gain(columns, "x" * 30, answer) == pytest.approx(0.25)
    assert predictor.gain(columns, "x" * 10, answer) == pytest.approx(-0.25)
    assert predictor.gain(columns[1:], "x" * 30, answer) is None
    assert file.gains.of_answers(("small", "large"), "other") is None
    assert file.gains.of_answers(("small", "frontier"), "billing") is None


def test_trees_on_log_probabilities_need_them():
    """An answer without them has no prediction."""
    pair = judging().answers["small", "large"]
    trees = msgspec.structs.replace(pair.gain, features=np.array([[WIDTH + SCORE_FACTS.index("logprob")]]))
    predictor = AnswerGain(msgspec.structs.replace(pair, gain=trees), RATES, WIDTH)
    assert predictor.wants_logprobs
    assert predictor.gain((0.0,) * WIDTH, "x", Observation(text="Yes.")) is None
    assert predictor.gain((0.0,) * WIDTH, "x", Observation(text="Yes.", logprobs=(-0.1,))) is not None


@pytest.mark.parametrize(("columns", "asked"), [((0.0,) * WIDTH, True), ((), False)])
def test_log_probabilities_are_asked_for_only_with_a_prediction(columns, asked):
    """Without the columns of the prompt, the rule cannot use them."""
    pair = judging().answers["small", "large"]
    trees = msgspec.structs.replace(pair.gain, features=np.array([[WIDTH + SCORE_FACTS.index("logprob")]]))
    rule = Gain(0.2, predictor=AnswerGain(msgspec.structs.replace(pair, gain=trees), RATES, WIDTH))
    cohort = Cohort("billing", "small", 0.0, 0.0, True, accept=(rule,))
    tier = Tier("small", "m", "http://a", 8000, Price(1, 1))
    match = Match("billing", 1.0, 1.0, None, columns=columns)
    decision = Decision(tier, Reason.MATCHED, rewrite=True, cohort=cohort, match=match, judged=True)
    request = parse_request("/v1/chat/completions", b'{"model":"auto","messages":[]}')
    assert request is not None and asks_logprobs(decision, "small", request) is asked


def test_a_file_that_an_earlier_release_wrote_is_read():
    """Its header has no fields about answers, and its seal is without them."""
    raw = encode_gains(header(), gains())
    old = {k: v for k, v in msgspec.to_builtins(header()).items() if k not in ("answer_facts", "judged")}
    digest = hashlib.sha256(msgspec.json.encode(old))
    arrays = load(raw)
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
    text = msgspec.json.encode(old | {"seal": digest.hexdigest()[:12]}).decode()
    file = decode_gains(save(arrays, metadata={"header": text}))
    assert (file.header.seal, file.gains.answers) == (digest.hexdigest()[:12], {})


def test_an_earlier_release_reads_a_file_without_answers():
    """It refuses fields that it does not know."""
    fields = msgspec.json.decode(metadata_header(encode_gains(header(), gains())))
    assert not {"answer_facts", "judged"} & fields.keys()
    assert {"answer_facts", "judged"} <= msgspec.json.decode(
        metadata_header(encode_gains(judging_header(), judging()))
    ).keys()


def test_a_later_release_may_write_other_fields():
    """So a rollback starts, and says what to do."""
    raw = encode_gains(header(), gains())
    fields = msgspec.json.decode(metadata_header(raw)) | {"version": 4, "speed": 1}
    with pytest.raises(OtherVersionError, match="is of version 4"):
        decode_gains(save(load(raw), metadata={"header": msgspec.json.encode(fields).decode()}))


@pytest.mark.parametrize(
    "change",
    [
        {"answer.0.rates": np.zeros((3, 4), dtype=np.float32)},
        {"answer.0.gain.features": np.array([[WIDTH + len(SCORE_FACTS) + 4]], dtype=np.int16)},
        {"answer.1.rates": np.zeros((2, 4), dtype=np.float32)},
    ],
)
def test_damaged_predictions_with_an_answer_are_refused(change):
    """As those of the prompt are."""
    raw = encode_gains(judging_header(), judging())
    text = msgspec.json.encode(decode_gains(raw).header).decode()
    with pytest.raises(ValueError, match="shapes"):
        decode_gains(save(load(raw) | change, metadata={"header": text}))


def test_the_rule_has_its_predictions_from_the_file(tmp_path, words):
    """The match carries the columns for it. With another file the rule cannot run, and says so."""
    folder = folder_with(tmp_path)
    raw = encode_gains(judging_header(load_config(folder)), judging())
    before = decode_gains((folder / GAINS_FILE).read_bytes()).header.seal
    (folder / GAINS_FILE).write_bytes(raw)
    text = (folder / "billing.yaml").read_text().replace(before, decode_gains(raw).header.seal)
    (folder / "billing.yaml").write_text(f"{text}accept: [{{gain: {{least: 0.2}}}}]\nescalate: {{to: large}}\n")
    snapshot = compile_snapshot(load_config(folder), words)
    rule = snapshot.policy.cohorts["billing"].accept[0]
    assert isinstance(rule, Gain) and isinstance(rule.predictor, AnswerGain) and rule.predictor.tier == "small"
    ask = Ask(BILLING, "last_user", len(BILLING), False)
    match = match_prompt(snapshot, words.encode([BILLING])[0], ask)
    assert len(match.columns) == WIDTH
    assert match.columns[2:] == tuple(prompt_facts(ask).tolist())
    (folder / "billing.yaml").write_text(text.replace(decode_gains(raw).header.seal, "0123456789ab") +
                                         "accept: [{gain: {least: 0.2}}]\nescalate: {to: large}\n")  # fmt: skip
    stale = compile_snapshot(load_config(folder), words)
    assert stale.policy.cohorts["billing"].accept == (Gain(0.2),)
    assert match_prompt(stale, words.encode([BILLING])[0], ask).columns == ()


# The decision


def test_the_prompt_chooses_between_two_tiers(tmp_path, words):
    """A short bill stays small, a long one goes to the large tier, and cooking has its own tier."""
    folder = folder_with(tmp_path)
    assert chosen(folder, words, BILLING) == ("small", Reason.BY_PROMPT)
    assert chosen(folder, words, f"{BILLING}, and the invoice of last month") == ("large", Reason.BY_PROMPT)
    assert chosen(folder, words, "How long do I boil an egg")[0] == "large"


def test_an_uncalibrated_match_has_the_tier_of_the_cohort(tmp_path, words):
    """Without a floor a match may be a guess."""
    folder = folder_with(tmp_path, floor="")
    assert chosen(folder, words, f"{BILLING}, and the invoice of last month") == ("small", Reason.MATCHED)


def test_a_prompt_outside_the_range_has_the_tier_of_the_cohort(tmp_path, words):
    """The fit saw no prompt like it."""
    folder = folder_with(tmp_path, predicted=gains(low=1.0))
    assert chosen(folder, words, f"{BILLING}, and the invoice of last month") == ("small", Reason.MATCHED)


def test_a_rejected_match_is_not_chosen_by_its_prompt(tmp_path, words):
    """The default tier serves, as for any match below its floor."""
    folder = folder_with(tmp_path, floor="floor: 0.7\n")
    assert chosen(folder, words, "The invoice of a harbour") == ("large", Reason.OUT_OF_SCOPE)


# Stale files


@pytest.mark.parametrize(
    ("file", "old", "new", "why"),
    [
        ("policy.yaml", "qwen3-32b", "qwen4-32b", "the model of large changed"),
        ("billing.yaml", "Send my last invoice again", "Send the invoice again", "utterances or encoder.max_chars"),
    ],
)
def test_a_stale_file_is_not_used(tmp_path, words, caplog, file, old, new, why):
    """The tier of the cohort serves, the log says why, and `extproc status` names the cohort."""
    folder = folder_with(tmp_path)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    assert chosen(folder, words, f"{BILLING}, and the invoice of last month") == ("small", Reason.MATCHED)
    assert why in caplog.text
    config = load_config(folder)
    assert stale_values(config, compile_snapshot(config, words)) == [
        "choices by the prompt (gains.safetensors is missing, stale or of another fit): billing"
    ]


def test_another_file_or_none_is_stale(tmp_path, words, caplog):
    """The intent names the file by its seal."""
    folder = folder_with(tmp_path, fit="0123456789ab")
    assert chosen(folder, words, f"{BILLING}, and the invoice of last month") == ("small", Reason.MATCHED)
    (folder / GAINS_FILE).unlink()
    assert chosen(folder, words, BILLING) == ("small", Reason.MATCHED)
    assert "intents have `by_prompt`, but there is no gains.safetensors" in caplog.text


def test_a_file_of_an_earlier_release_does_not_stop_a_new_one(tmp_path, words, caplog):
    """The tier of the cohort serves until `calibrate` has written the file again. The log and `status` say so."""
    folder = folder_with(tmp_path)
    revision = load_config(folder).revision
    (folder / GAINS_FILE).write_bytes(encode_gains(msgspec.structs.replace(header(), version=1), gains()))
    config = load_config(folder)
    assert config.gains is None and config.revision != revision
    assert chosen(folder, words, f"{BILLING}, and the invoice of last month") == ("small", Reason.MATCHED)
    assert "no gains.safetensors that this release reads: their own tiers serve" in caplog.text
    assert stale_values(config, compile_snapshot(config, words)) == [
        "choices by the prompt (gains.safetensors is missing, stale or of another fit): billing"
    ]


def test_a_damaged_file_is_a_mistake_of_the_folder(tmp_path, words):
    """It is reported with the others, and a reload is refused."""
    folder = folder_with(tmp_path)
    before, revision = signature(folder), load_config(folder).revision
    (folder / GAINS_FILE).write_bytes(encode_gains(header(), gains(direction=1.0)))
    assert signature(folder) != before
    assert load_config(folder).revision != revision
    (folder / GAINS_FILE).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"gains\.safetensors:1: is not a file of gains"):
        load_config(folder)


def test_the_intents_of_an_app_have_their_own_gains(tmp_path, words):
    folder = folder_with(tmp_path)
    app = folder / "support"
    app.mkdir()
    for name in ("billing.yaml", "cooking.yaml", "_background.yaml", GAINS_FILE):
        if (folder / name).exists():
            shutil.copyfile(folder / name, app / name)
    (folder / GAINS_FILE).unlink()
    with (folder / "policy.yaml").open("a") as policy:
        policy.write("apps:\n  support: {hosts: [support.example], intents: support}\n")
    config = load_config(folder)
    snapshot = compile_all(config, folder, words)
    assert snapshot.gains is None and snapshot.policy.cohorts["billing"].prompt_stale
    own = snapshot.of_app("support")
    assert own.gains is not None and not own.policy.cohorts["billing"].prompt_stale
    stale = "choices by the prompt (gains.safetensors is missing, stale or of another fit): billing"
    assert Standing(folder, config).status(snapshot).stale == [stale]
    (app / GAINS_FILE).unlink()
    changed = load_config(folder)
    both = Standing(folder, changed).status(compile_all(changed, folder, words)).stale
    assert both == [stale, f"app support: {stale}"]
    (app / GAINS_FILE).write_bytes(b"damaged")
    assert [problem.file for problem in load_config(folder).broken["support"].problems] == [f"support/{GAINS_FILE}"]
    (app / GAINS_FILE).unlink()
    (app / "cooking.yaml").write_text((app / "cooking.yaml").read_text().replace("tier: large", "tier: small"))
    text = (folder / "policy.yaml").read_text()
    (folder / "policy.yaml").write_text(text.replace("support}", "support, default_tier: small, tiers: [small]}"))
    assert "tier `large` is not in `tiers` of the app" in str(load_config(folder).broken["support"].problems)

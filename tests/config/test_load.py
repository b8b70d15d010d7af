"""Reading a folder of intents: a right one compiles, and every mistake is reported with its place and a remedy.

`configs/good` is a valid folder; each `configs/bad_<mistake>` holds only the files that differ from it.
"""

import math
import re
import shutil
from pathlib import Path

import msgspec
import pytest

from extproc.config.candidate import compile_candidate
from extproc.config.compile import centroids_digest, compile_snapshot
from extproc.config.load import ConfigError, load_config
from extproc.routing.index import Match
from extproc.routing.policy import Cohort
from extproc.settings import Conditions, Efforts, Params, Price, Reasoning, Rule, Tier

CONFIGS = Path(__file__).parents[1] / "configs"
MISTAKES = {
    "candidate": [
        "policy.yaml:21: `dir` is empty: name the folder with the intents of the candidate",
        "policy.yaml:22: `percent` is 120: expected a number from 0 to 100",
        "policy.yaml:23: `loss` is 2: expected a number above 0 and below 1, as in 0.02 for 2 percentage points",
    ],
    "candidate_folder": [
        "policy.yaml:20: `candidate.dir` is next, but FOLDER/next is not a folder: create it, or remove `candidate`"
    ],
    "candidate_files": [
        "next/billing.yaml:2: no tier is called `smal`: did you mean `small`?",
        "next/policy.yaml:1: a candidate cannot have a policy, because that of FOLDER holds for it: remove "
        "this file",
        "policy.yaml:18: with the intents in next: no intent is called `cooking`: expected one of billing",
    ],
    "cache": [
        "billing.yaml:3: `ttl` is 1 day: expected a number followed by s, m, h or d, as in 24h",
        "billing.yaml:3: `verify` is 2: expected a share from 0 to 1, as in 0.01 for 1 %",
        "billing.yaml:3: only accepted answers are kept, and no rule accepts any: add rules to `accept`",
    ],
    "budget": [
        "policy.yaml:16: `per: team` is for the budget of an app: write all or principal",
        "policy.yaml:16: `usd_month` is 0: expected a number above 0 to 1,000,000",
        "policy.yaml:16: no tier is called `tiny`: expected one of small, large, refuse",
    ],
    "apps": [
        "policy.yaml:17: app `no requests` has no requests: give it `hosts` or `headers`",
        "policy.yaml:17: app `no requests`: its name is sent in metrics, so use only letters, digits, '.', '_' and "
        "'-', and begin with a letter or a digit",
        "policy.yaml:18: the default tier `large` is not in `tiers` of the app: add it there, or set "
        "`default_tier`",
        "policy.yaml:19: host `https://a.example`: write it in lower case, without scheme, port and path, as in "
        "llm.example.com or *.example.com",
        "policy.yaml:20: header `X-App`: write its name in lower case, with only letters, digits and '-'",
        "policy.yaml:21: no tier is called `tiny`: expected one of small, large",
        "policy.yaml:23: `per: team` needs a team: add `labels: {team: NAME}` to the app",
        "policy.yaml:24: label `Team` is `two words`: use only letters, digits, '.', '_' and '-'",
        "policy.yaml:24: label `Team`: use lower-case letters, digits and _, begin with a letter, and choose "
        "another name than `app`",
        "policy.yaml:27: `tiers` is an empty list, so every request would be refused: name at least one tier",
        "policy.yaml:31: host `b.example` is also one of app `again` above, which gets its requests: remove it "
        "from one of them, or write `third` first",
        "policy.yaml:32: team `x` has another budget in app `again`: write the same one",
        "policy.yaml:35: host `c.wide.example` is also one of app `wide` above, which gets its requests: remove it "
        "from one of them, or write `narrow` first",
        "policy.yaml:36: app `-`: its name is sent in metrics, so use only letters, digits, '.', '_' and '-', and "
        "begin with a letter or a digit",
        "policy.yaml:36: host `*.deep.wide.example` is also one of app `wide` above, which gets its requests: "
        "remove it from one of them, or write `-` first",
        "policy.yaml:36: host `*`: name the hosts of the app, because the policy itself decides about all "
        "other requests",
        "policy.yaml:36: host `münchen.example`: clients send another form of this name, so write "
        "`xn--mnchen-3ya.example`",
        "policy.yaml:37: header `x-router-app`: Envoy removes it from every request, so use a header with another "
        "name",
        "policy.yaml:39: app `any` above gets all of its requests: write `one` first",
        "policy.yaml:39: label `__name__`: use lower-case letters, digits and _, begin with a letter, and "
        "choose another name than `app`",
    ],
    "unknown_key": ["billing.yaml:3: unknown key `max_output_token`: did you mean `max_output_tokens`?"],
    "unknown_key_in_tier": ["policy.yaml:8: unknown key `contexts`: did you mean `context`?"],
    "duplicate_key": ["billing.yaml:3: `tier` is written twice: remove one of them"],
    "key_that_is_no_text": ["billing.yaml:3: the key 5 is not text: write a name, or put it in quotes"],
    "type": ["policy.yaml:8: `tiers[0].context`: expected a whole number, found the text `lots`"],
    "header_value": [
        "policy.yaml:18: `rules[0].when.headers.x-user-tier`: expected text, found the number 5: put it in quotes"
    ],
    "enum": [
        "policy.yaml:7: `tiers[0].reasoning`: expected anthropic, deepseek, gemini, gpt-oss, none, openai or "
        "qwen3, found the text `qwen`: did you mean `qwen3`?"
    ],
    "params": [
        "policy.yaml:11: `rename` gives two members the name x: a request can have only one",
        "policy.yaml:12: `drop` has an empty name: write the name of a request member",
        "policy.yaml:12: `drop` names `model`, which every request needs: remove it",
        "policy.yaml:13: `effort` has no effect, because dialect `qwen3` writes no effort for qwen3-8b: remove it, "
        "or choose another `reasoning`",
    ],
    "effort_level": ["policy.yaml:10: unknown key `hi`: did you mean `high`?"],
    "list_items": [
        "billing.yaml:6: `utterances[1]`: expected text, found the number 5: put it in quotes",
        "billing.yaml:9: `utterances[4]`: expected text, found the number 2.5: put it in quotes",
        "billing.yaml:10: `utterances[5]`: expected text, found true: put it in quotes",
    ],
    "tiers_twice": [
        "policy.yaml:4: `model` is missing: add it (model name that is written into requests for this tier)",
        "policy.yaml:13: `tiers[1].context`: expected a whole number, found the text `many`",
    ],
    "missing_field": ["billing.yaml:1: `tier` is missing: add it (tier that serves this intent)"],
    "empty_file": ["billing.yaml:1: the file is empty: fill it in, or remove it"],
    "yaml": ["billing.yaml:3: is not valid YAML: did not find expected ',' or ']'"],
    "unknown_tier": ["billing.yaml:2: no tier is called `smal`: did you mean `small`?"],
    "default_tier": ["policy.yaml:2: no tier is called `huge`: expected one of small, large"],
    "no_tiers": ["policy.yaml:3: there is no tier: write at least one, the cheapest first"],
    "duplicate_tier": [
        "policy.yaml:16: cluster `small` occurs twice: rename or remove one of them",
        "policy.yaml:16: tier `small` occurs twice: rename or remove one of them",
    ],
    "unknown_intent_in_rule": ["policy.yaml:18: no intent is called `cookign`: did you mean `cooking`?"],
    "file_that_a_rule_names": ["cooking.yaml:3: `risk`: expected high or low, found the text `medium`"],
    "rule_without_effect": [
        "policy.yaml:17: rule `cooks` does nothing: give it a tier, a tier_floor, reasoning or only"
    ],
    "only": ["billing.yaml:2: tier `small` is not in `only`: add it there, or name one of its tiers"],
    "otherwise": ["billing.yaml:4: `otherwise`: expected refuse, found the text `default`"],
    "only_below_the_floor": [
        "billing.yaml:3: all tiers of `only` are below the floor `large`, so every request would be refused: lower "
        "it, or add a tier to `only`"
    ],
    "only_in_rules": [
        "policy.yaml:19: no tier is called `smal`: did you mean `small`?",
        "policy.yaml:22: `only` is an empty list, so every request would be refused: name at least one tier",
        "policy.yaml:26: `otherwise` without `only` does nothing: add `only` with the allowed tiers",
    ],
    "endpoint": [
        "policy.yaml:5: endpoint `vllm-small` is not host:port: write `url` instead, as in http://vllm-small:8000"
    ],
    "url": [
        "policy.yaml:5: url `vllm-small:8000` does not begin with http:// or https://: write it as in "
        "http://vllm-small:8000",
        "policy.yaml:11: url `https://api.example/v1/chat/completions` names the path of one API: leave "
        "out `/chat/completions`",
    ],
    "url_with_key": [
        "policy.yaml:5: url `https://...@api.example` contains a user name or password: put the key "
        "into a file and name it in `key`",
        "policy.yaml:11: url `https://api.example/v1?...` has a query or a fragment: end it after the base path",
    ],
    "url_host": [
        "policy.yaml:5: url `http://::1:8000` has no valid host or port: write it as in http://vllm-small:8000",
        "policy.yaml:11: url `http://a b:8000` has no valid host: write it as in "
        "https://api.example.com or http://[::1]:8000",
    ],
    "endpoints": [
        "policy.yaml:5: the `endpoints` differ in scheme or path: write a separate tier for each kind",
        "policy.yaml:6: `weight` is 0: expected a number from 1 to 1000",
        "policy.yaml:13: `url` beside `endpoints`: remove one of them",
    ],
    "key": [
        "policy.yaml:6: `scheme` is `Bearer Token`: write one word, as in Bearer, or `none`",
        "policy.yaml:6: header `X-Api-Key`: write its name in lower case, with only letters, digits and '-'",
    ],
    "key_without_file": [
        "policy.yaml:12: `file` is missing: add it (file that holds the key, as Envoy sees its path)",
    ],
    "judge": [
        "policy.yaml:17: url `https://judge.example/v1/chat/complet...` names the path of one API: leave out "
        "`/chat/completions`",
        "policy.yaml:18: `api_key_env` beside `key`: remove one of them",
        "policy.yaml:18: header `X-Key`: write its name in lower case, with only letters, digits and '-'",
        "policy.yaml:19: endpoint `judge` is not host:port: write `url` instead, as in http://vllm-small:8000",
    ],
    "tls_names": [
        "policy.yaml:6: `ca` is for TLS, but the url is http://: write https://, or remove it",
        "policy.yaml:7: `sni` is for TLS, but the url is http://: write https://, or remove it",
    ],
    "tier_limits": [
        "policy.yaml:6: `escalate_on` has 200: expected statuses from 400 to 599",
        "policy.yaml:7: `retry.same` is 9: expected a number from 0 to 3",
        "policy.yaml:8: `idle_s` is 0: expected a number above 0 to 3600",
        "policy.yaml:9: `apis` is an empty list: name the APIs of the upstream, or remove it for all",
    ],
    "failover": [
        "policy.yaml:7: `failover` of tier `small` leads back to the tier that failed: name another tier",
        "policy.yaml:7: no tier is called `lage`: did you mean `large`?",
        "policy.yaml:7: tier `large` occurs twice in `failover`, but it is asked once: remove one of them",
        "policy.yaml:8: `timeouts.attempt_s` is 900: expected a number above 0, up to `timeouts.request_s` of the "
        "policy, which is 300",
        "policy.yaml:14: `failover` is an empty list: name the tiers to ask, or remove it for the next tier up",
        "policy.yaml:15: `timeouts.attempt_s` is 0: expected a number above 0, up to `timeouts.request_s` of the "
        "policy, which is 300",
    ],
    "timeouts_of_a_tier": [
        "policy.yaml:7: `attempt_s` is missing: add it (longest wait for an answer to begin, and between two parts "
        "of a stream; in seconds)",
        "policy.yaml:7: unknown key `request_s`: expected one of attempt_s",
    ],
    "apis": [
        "policy.yaml:6: `tiers[0].apis[1]`: expected chat, completions, messages or responses, found "
        "the text `embeddings`",
    ],
    "state": [
        "policy.yaml:2: tier `large` is `out`: name a tier whose `state` is `in`",
        "policy.yaml:20: no tier from `large` up has the state `in`: set one of them to `in`, or lower the floor",
    ],
    "header_name": [
        "policy.yaml:18: header `X-User-Tier`: write its name in lower case, with only letters, digits and '-'"
    ],
    "conversations": [
        "policy.yaml:20: `sticky.switch_budget` is -0.1: expected a number from 0 up",
        "policy.yaml:21: `state` is `valkey:6379`: expected a URL such as redis://valkey:6379/0",
    ],
    "upgrades": [
        "policy.yaml:20: `upgrades.burst` is 0: expected a number from 1 up; to forbid upgrades, let no intent and "
        "no rule name a tier above the default"
    ],
    "passthrough": [
        "policy.yaml:21: path `v1/embeddings`: start it with one /, without a query, and use * only at its end",
        "policy.yaml:22: POST /v1/chat/completions is routed, and needs no `passthrough`: remove POST from "
        "`methods`, or this entry",
        "policy.yaml:23: method `get`: write it in capitals, as in GET",
        "policy.yaml:23: no tier is called `smal`: did you mean `small`?",
        "policy.yaml:24: tier `small` has no key: give it one, or write `key: client`",
        "policy.yaml:25: `methods` is empty: name at least one, as in [POST]",
        "policy.yaml:25: path `/v1/a?b=c`: start it with one /, without a query, and use * only at its end",
    ],
    "client_keys": [
        "policy.yaml:20: header `X-Team-Token`: write its name in lower case, with only letters, digits and '-'"
    ],
    "max_body": ["policy.yaml:20: `max_body_mb` is 0: expected a number from 1 to 256"],
    "negative_price": ["policy.yaml:9: `price.input` is -0.05: expected a number from 0 up"],
    "intent_name": [
        "billing.yaml:1: `bills and such` is sent in headers: use only letters, digits, '.', '_' and '-'"
    ],
    "word_as_intent": [
        "billing.yaml:1: an intent cannot have the name `out_of_scope`: reports and metrics use this word for "
        "requests that belong to no intent. Give it another name"
    ],
    "background": [
        "_background.yaml:3: text `why is my invoice higher this month` is also an utterance in billing.yaml: "
        "remove one of them",
        "_background.yaml:4: this text is empty: write it, or remove it",
        "_background.yaml:6: text `tell me a story` occurs twice: remove one of them",
    ],
    "background_too_few": [
        "_background.yaml:1: only 1 text: write at least 3, better 200, or remove the file",
    ],
    "background_items": ["_background.yaml:3: `background[1]`: expected text, found true: put it in quotes"],
    "background_key": ["_background.yaml:5: unknown key `backgrund`: did you mean `background`?"],
    "reserved_name": [
        "_drafts.yaml:1: a name that begins with `_` is reserved, and only _background.yaml is known: "
        "rename the file"
    ],
    "duplicate_intent": ["invoices.yaml:1: intent `billing` is also in billing.yaml: rename one of them"],
    "duplicate_utterance": [
        "billing.yaml:7: utterance `send my last invoice again` occurs twice: rename or remove one of them"
    ],
    "too_few_utterances": ["billing.yaml:4: only 2 utterances: write at least 3, better 12"],
    "floor_out_of_range": ["billing.yaml:3: `floor` is 40: expected a number from -1 to 1"],
    "evidence_without_floor": [
        "billing.yaml:3: there is `evidence`, but no `floor` that it is about: run `extproc calibrate` again"
    ],
    "evidence_out_of_range": [
        "billing.yaml:11: `evidence.wrong` is [0.071, 0.004]: expected two numbers from 0 to 1, "
        "the lower one first",
        "billing.yaml:13: `evidence.probability.margin` is -8.3: expected a number from 0 up; "
        "run `extproc calibrate` again",
    ],
    "evidence_without_rows": [
        "billing.yaml:7: `evidence.rows` is 0: expected a number from 1 up; run `extproc calibrate` again",
        "billing.yaml:14: `deciles` must be finite numbers, and none below the one before: "
        "run `extproc calibrate` again",
    ],
    "score_without_scorer": [
        "billing.yaml:3: accept[1].score: no `scorer` was fitted for this intent; "
        "run `extproc calibrate --target ... --write`, or drop the rule"
    ],
    "scorer_of_another_model": [
        "billing.yaml:9: fitted on answers of qwen2-7b, but tier `small` is qwen3-8b now: "
        "run `extproc calibrate --target ... --write` again, or remove it and the rule `score`"
    ],
    "logprob_of_another_model": [
        "billing.yaml:5: fitted on answers of qwen2-7b, but tier `small` is qwen3-8b now: "
        "run `extproc calibrate --target ... --write` again, or remove the rule",
        "billing.yaml:6: no tier is called `smal`: did you mean `small`?",
        "billing.yaml:7: `logprob` names the model qwen3-8b, and no tier: add `tier`, or remove `model`",
    ],
    "scorer_numbers": [
        "billing.yaml:4: `offset` and `weights` must be finite numbers: "
        "run `extproc calibrate --target ... --write` again, or remove it and the rule `score`",
        "billing.yaml:12: no fact is called `lenght`: did you mean `length`?",
    ],
    "by_prompt": [
        "billing.yaml:4: `tiers` is [large, small]: name two different tiers, the cheaper one first",
        "billing.yaml:5: `least` is nan, which is not a finite number: run `extproc calibrate --target ... "
        "--write` again, or remove `by_prompt`",
        "billing.yaml:6: `gain` is [0.04, 0.01]: expected two numbers from -1 to 1, the lower one first: run "
        "`extproc calibrate --target ... --write` again, or remove `by_prompt`",
        "billing.yaml:7: `rows` is -1, which is less than 0: run `extproc calibrate --target ... --write` again, "
        "or remove `by_prompt`",
        "cooking.yaml:4: no tier is called `smal`: did you mean `small`?",
    ],
    "gain_rule": [
        "billing.yaml:9: `accept` can reject nothing, because no tier is above this one: remove it, or add "
        "`escalate`",
        "billing.yaml:9: `gain` judges answers of `small`, but the tier of the intent is `large`: run `extproc "
        "calibrate --target ... --write` again, or remove `by_prompt`",
        "billing.yaml:9: `least` of `gain` is inf, which is not a finite number: run `extproc calibrate --target "
        "... --write` again, or remove `by_prompt`",
        "cooking.yaml:3: `gain` needs the key `by_prompt`, which names its predictions: run `extproc calibrate "
        "--target ... --write`, or remove the rule",
    ],
    "chosen_out_of_range": [
        "billing.yaml:9: `chosen.quality` is [0.9, 0.8]: expected two numbers from 0 to 1, the lower one first"
    ],
    "evidence_key": [
        "billing.yaml:7: `evidence.rows`: expected a whole number, found the text `many`",
        "billing.yaml:9: unknown key `centroid`: did you mean `centroids`?",
    ],
    "utterance_of_another_intent": [
        "billing.yaml:8: this utterance of `billing` is nearer to `cooking`: "
        "reword it, move it there, or add utterances like it"
    ],
    "utterance_below_floor": [
        f"billing.yaml:{line}: this utterance has a similarity of 0.##, below the floor of 0.99: "
        "lower `floor`, or remove it"
        for line in (5, 6, 7)
    ],
    "skip_of_unknown_rule": [
        "billing.yaml:9: no rule of `accept` is called `no_refusl`: did you mean `no_refusal`?"
    ],
    "skip_without_rung": [
        f"{file}: `skip` has no rung to skip: name two tiers above this one in `to`, and set `max` to 2 or more"
        for file in ("billing.yaml:6", "cooking.yaml:4")
    ],
    "several_at_once": [
        "billing.yaml:2: no tier is called `smal`: did you mean `small`?",
        "billing.yaml:3: `max_output_tokens` is 0: expected a number above 0; leave it out for no limit",
        "billing.yaml:7: this utterance is empty: write it, or remove it",
        "cooking.yaml:3: `risk`: expected high or low, found the text `medium`",
        "cooking.yaml:4: unknown key `utterence`: did you mean `utterances`?",
        "policy.yaml:5: url `http://vllm-small:0` has no valid host or port: write it as in http://vllm-small:8000",
        "policy.yaml:19: no tier is called `larg`: did you mean `large`?",
    ],
}


@pytest.fixture
def folder(tmp_path):
    """A writable copy of the good folder."""
    return Path(shutil.copytree(CONFIGS / "good", tmp_path / "intents"))


def refused(folder, encoder) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config = load_config(folder)
        compile_snapshot(config, encoder)
        if config.policy.candidate is not None:
            compile_candidate(config, folder, encoder)
    assert str(caught.value).splitlines() == [str(problem) for problem in caught.value.problems]
    return str(caught.value).splitlines()


# Mistakes


def test_every_bad_folder_is_expected_to_be_refused():
    """A fixture without an expectation tests nothing, and an expectation needs its fixture."""
    names = {path.name for path in CONFIGS.iterdir() if not path.name.startswith("strict_")}  # see test_strict
    assert names == {"good"} | {f"bad_{mistake}" for mistake in MISTAKES}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_reported_with_file_line_and_remedy(mistake, folder, words):
    """All mistakes are reported, each of them once, and nothing else."""
    shutil.copytree(CONFIGS / f"bad_{mistake}", folder, dirs_exist_ok=True)
    lines = [line.replace(str(folder), "FOLDER") for line in refused(folder, words)]
    reported = [re.sub(r"similarity of 0\.\d\d", "similarity of 0.##", line) for line in lines]
    assert reported == MISTAKES[mistake]


def test_a_folder_without_a_policy_is_refused(folder, words):
    """The remedy names the folder that lacks it."""
    (folder / "policy.yaml").unlink()
    assert refused(folder, words) == [f"policy.yaml:1: not found in {folder}: create it there"]


def test_a_folder_that_is_not_there_and_a_file_in_its_place_are_refused(folder, words):
    """The remedy says which folder is expected, and not to create a policy in a wrong place."""
    remedy = "give the folder that holds policy.yaml and the intents"
    missing, file = folder / "nowhere", folder / "policy.yaml"
    assert refused(missing, words) == [f"policy.yaml:1: {missing} does not exist: {remedy}"]
    assert refused(file, words) == [f"policy.yaml:1: {file} is not a folder: {remedy}"]


def test_a_folder_without_intents_is_refused(folder, words):
    """Without intents the router could match nothing."""
    (folder / "billing.yaml").unlink()
    (folder / "cooking.yaml").unlink()
    policy = folder / "policy.yaml"
    policy.write_text(policy.read_text().partition("rules:")[0])
    assert refused(folder, words) == ["policy.yaml:1: no intent beside it: write at least one <intent>.yaml"]


def test_a_file_that_is_not_text_is_refused(folder, words):
    """A picture with the ending .yaml is reported like any other mistake."""
    (folder / "billing.yaml").write_bytes(b"\x89PNG\r\n\xff\x00")
    (problem,) = refused(folder, words)
    assert problem == "billing.yaml:1: is not UTF-8 text: save the file with the encoding UTF-8"


@pytest.mark.parametrize(
    "text", ["a: &a [*a]", "a: b: c", "\t- a", "a: !!python/object:os.system {}", "--- a\n--- b", "a: 2024-13-45"]
)
def test_hostile_yaml_is_refused_and_never_run(text, folder, words):
    """Cycles, tabs, tags and second documents are mistakes like any others."""
    (folder / "billing.yaml").write_text(text)
    assert refused(folder, words)[0].startswith("billing.yaml:")


def test_what_a_tier_renames_drops_and_calls_its_efforts_is_read(folder):
    """As keys, `off` and `on` are words and need no quotes."""
    policy = folder / "policy.yaml"
    params = "params: {rename: {seed: random_seed}, drop: [top_k], effort: {off: none, on: low, high: max}}"
    policy.write_text(policy.read_text().replace("reasoning: qwen3", f"reasoning: openai\n    {params}", 1))
    expected = Params({"seed": "random_seed"}, ("top_k",), Efforts(off="none", on="low", high="max"))
    assert load_config(folder).policy.tiers[0].params == expected


@pytest.mark.parametrize("text", ["null", "~", "--- null\n..."])
def test_a_file_that_says_null_is_empty(text, folder, words):
    """It is reported, not ignored."""
    for name in ("billing.yaml", "policy.yaml"):
        (folder / name).write_text(text)
        assert f"{name}:1: the file is empty: fill it in, or remove it" in refused(folder, words)


@pytest.mark.parametrize("key", ["tier[0].x", "a.b", "`", "x` - at `$.y", "` - at `$.x[...]", "? [a, b]\n"])
def test_a_key_that_looks_like_a_path_is_a_mistake_like_any_other(key, folder, words):
    """Dots, brackets and lists in a key do not confuse the reader."""
    quoted = key if key.startswith("?") else f"'{key}'"
    (folder / "billing.yaml").write_text((folder / "billing.yaml").read_text() + f"{quoted}: {{'.': 1}}\n")
    (problem,) = refused(folder, words)
    assert problem.startswith("billing.yaml:8: ")


def test_aliases_of_aliases_are_refused_before_they_are_written_out(folder, words):
    """A few lines can have billions of values."""
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]" for i in range(12)]
    (folder / "billing.yaml").write_text("\n".join(lines))
    assert refused(folder, words) == [
        "billing.yaml:1: is not valid YAML: aliases stand for too many values: write the values themselves"
    ]


# Right folders


def test_a_good_folder_is_read_whole(folder):
    """Every written value is read, and the others have their defaults."""
    config = load_config(folder)
    assert config.policy.tiers == (
        Tier("small", "qwen3-8b", "http://vllm-small:8000", 32_768, Price(0.05, 0.2), "qwen3"),
        Tier("large", "qwen3-32b", "http://vllm-large:8000", 131_072, Price(0.4, 1.2), "qwen3"),
    )
    conditions = Conditions(intents=("cooking",), headers={"x-user-tier": "gold"})
    assert config.policy.rules == (Rule("cooks", conditions, tier_floor="large"),)
    assert (config.policy.default_tier, config.policy.mode, config.policy.retarget) == (
        "large",
        "enforce",
        ("auto",),
    )
    assert [(i.intent, i.tier, len(i.utterances)) for i in config.intents] == [
        ("billing", "small", 3),
        ("cooking", "large", 3),
    ]
    assert config.files == {"billing": "billing.yaml", "cooking": "cooking.yaml"}


@pytest.mark.parametrize(
    ("written", "read"),
    [("off", False), ("on", True), ("true", True), ("{budget_tokens: 900}", {"budget_tokens": 900})],
)
def test_reasoning_is_off_on_or_a_budget(written, read, folder):
    """The YAML words for true and false work as well."""
    with (folder / "billing.yaml").open("a") as file:
        file.write(f"reasoning: {written}\n")
    assert load_config(folder).intents[0].reasoning == msgspec.convert(read, Reasoning)


def test_a_revision_names_what_is_in_the_files(folder):
    """The same files have the same revision in any folder. Any change, even of a comment, gives another one."""
    before = load_config(folder).revision
    assert before == load_config(CONFIGS / "good").revision
    assert re.fullmatch("[0-9a-f]{12}", before)
    with (folder / "billing.yaml").open("a") as file:
        file.write("# reviewed\n")
    assert load_config(folder).revision != before


def test_hidden_and_other_files_are_left_alone(folder):
    """Kubernetes has hidden folders beside the files, and people keep notes there."""
    (folder / "..data").mkdir()
    (folder / ".draft.yaml").write_text("not: an intent")
    (folder / "README.md").write_text("# Intents")
    assert load_config(folder) == load_config(CONFIGS / "good")


def test_the_background_is_read_and_is_part_of_what_evidence_is_about(folder):
    """It is no intent. Another text in it gives another revision, and makes evidence stale."""
    before = load_config(folder)
    assert before.background == ()
    (folder / "_background.yaml").write_text("background: [Tell me a story, Sing a song, Who are you]\n")
    config = load_config(folder)
    assert config.background == ("Tell me a story", "Sing a song", "Who are you")
    assert config.intents == before.intents
    assert config.revision != before.revision
    assert centroids_digest(config) != centroids_digest(before)


def test_a_snapshot_holds_the_compiled_cohorts(folder, words):
    """Without `floor` in the file it comes from the utterances, and the cohort is uncalibrated."""
    snapshot = compile_snapshot(load_config(folder), words)
    billing = snapshot.policy.cohorts["billing"]
    expected = Cohort("billing", "small", billing.floor, 0.0, calibrated=False, max_output_tokens=200)
    assert billing == expected
    assert -1 <= billing.floor <= 1
    assert snapshot.revision == load_config(folder).revision
    assert snapshot.index.cohorts == ["billing", "cooking"]


def test_a_floor_that_a_person_wrote_is_taken_as_it_is(folder, words):
    """It is not evidence, so the cohort stays uncalibrated."""
    with (folder / "billing.yaml").open("a") as file:
        file.write("floor: 0.1\nmargin: 0.05\n")
    billing = compile_snapshot(load_config(folder), words).policy.cohorts["billing"]
    assert (billing.floor, billing.margin, billing.calibrated) == (0.1, 0.05, False)


EVIDENCE = """
floor: 0.9
evidence:
  date: 2026-11-22
  data: 3f2a9c0d1e4b
  rows: 240
  encoder: all-MiniLM-L6-v2
  centroids: CENTROIDS
  risk: 0.05
  wrong: [0.004, 0.071]
  accepted: 0.93
  probability: {similarity: 12, margin: 8, offset: -4}
"""


def with_evidence(folder, words):
    """The cohort billing, calibrated on the utterances that the folder has now."""
    centroids = centroids_digest(load_config(folder))
    with (folder / "billing.yaml").open("a") as file:
        file.write(EVIDENCE.replace("CENTROIDS", centroids))
    return compile_snapshot(load_config(folder), words).policy.cohorts["billing"]


def test_a_floor_with_evidence_is_calibrated(folder, words):
    """A match then has a probability, and an utterance below the floor is not a mistake."""
    billing = with_evidence(folder, words)
    assert (billing.floor, billing.calibrated) == (0.9, True)
    assert billing.evidence is not None and billing.evidence.stamp == "3f2a9c0d1e4b 2026-11-22"
    assert billing.probability(Match("billing", 0.25, 0.25)) == pytest.approx(1 / (1 + math.exp(-1)))
    assert billing.probability(Match("billing", -1000, 0)) == pytest.approx(0, abs=1e-300)


def test_evidence_about_other_utterances_is_stale(folder, words):
    """An utterance of any intent moves centroids. The floor holds, but the cohort is not calibrated."""
    with_evidence(folder, words)
    with (folder / "cooking.yaml").open("a") as file:
        file.write("  - How much salt in a soup recipe\n")
    billing = compile_snapshot(load_config(folder), words).policy.cohorts["billing"]
    assert (billing.floor, billing.calibrated) == (0.9, False)
    assert billing.probability(Match("billing", 0.25, 0.25)) is None

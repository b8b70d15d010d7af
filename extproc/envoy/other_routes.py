"""The routes beside those of the APIs: paths that the policy opens, the list of models, and answers to the rest.

An error here is a text. `local_replies` puts it into the JSON of the client's API.
"""

import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from extproc.api.paths import APIS, KEPT_PATHS, PATH_PREFIX, SIDE_PATHS
from extproc.config.load import Config
from extproc.config.schema import Passthrough
from extproc.envoy.builders import Dict
from extproc.envoy.clusters import opened_cluster, opened_cluster_name
from extproc.envoy.filters import ENCODINGS
from extproc.envoy.undecided import UNKNOWN_MODEL, private_models
from extproc.settings import USUAL_BASE, Tier

_GET = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}}
# Bodies of these types may be large files. They pass unread and unbuffered. A form may name a model beside a file,
# except on the paths to which files are uploaded.
_FILE_TYPES = r"(?i)(audio/|image/|video/|application/octet-stream).*"
_FILES = {"name": "content-type", "string_match": {"safe_regex": {"regex": _FILE_TYPES}}}
_FORM = {"name": "content-type", "string_match": {"safe_regex": {"regex": "(?i)multipart/.*"}}}
_UPLOAD = {"name": ":path", "string_match": {"safe_regex": {"regex": r"[^?]*/(files|uploads)([/?].*)?"}}}
_CREATED, _OWNER = 0, "semantic-router"
_SERVED = (
    f"Served here: POST {', '.join((*APIS, *SIDE_PATHS))}, GET /v1/models, and requests about a response at "
    "/v1/responses/ID."
)


def opened_clusters(config: Config, follow_keys: bool) -> list[Dict]:
    """Return the clusters that only opened paths need."""
    uses = [(_tier(p, config), p.key) for p in config.policy.passthrough]
    needed = {opened_cluster_name(tier, config, key): (tier, key) for tier, key in uses}
    return [
        opened_cluster(tier, config, key, follow_keys)
        for name, (tier, key) in needed.items()
        if name != tier.cluster_name
    ]


def _tier(passthrough: Passthrough, config: Config) -> Tier:
    name = passthrough.tier or config.policy.default_tier
    return next(tier for tier in config.policy.tiers if tier.name == name)


def opened_routes(config: Config, inspected: Dict, form: Dict) -> Iterator[Dict]:
    """Yield the routes of the paths that the policy opens.

    `inspected` enables the filters that read JSON bodies, and `form` those that read forms.
    """
    for passthrough in config.policy.passthrough:
        tier = _tier(passthrough, config)
        cluster = opened_cluster_name(tier, config, passthrough.key)
        wildcard, path = passthrough.path.endswith("*"), passthrough.path.removesuffix("*")
        methods = {"safe_regex": {"regex": "|".join(passthrough.methods)}}
        headers: list[Dict] = [{"name": ":method", "string_match": methods}]
        match: Dict = {"prefix" if wildcard else "path": path}
        # Providers accept only their own host name.
        route = {"cluster": cluster, "timeout": "0s", "auto_host_rewrite": True, **base_rewrite(tier)}
        for named in _named(private_models(config)):
            named["headers"] = [*headers, *named.get("headers", [])]
            yield _answer("opened_named", match | named, 400, UNKNOWN_MODEL)
        for kinds in ([_FILES], [_FORM, _UPLOAD]):
            yield {"name": "opened_file", "match": match | {"headers": [*headers, *kinds]}, "route": route}
        yield bad_encoding(match | {"headers": headers})
        yield {
            "name": "opened_form",
            "match": match | {"headers": [*headers, _FORM]},
            "route": route,
            "typed_per_filter_config": form,
        }
        yield {
            "name": "opened",
            "match": match | {"headers": headers},
            "route": route,
            "typed_per_filter_config": inspected,
        }


def _named(models: Iterable[str]) -> Iterator[Dict]:
    """Yield the matches of requests that name one of these models in their query or in their path."""
    for name in sorted(models):
        yield {"query_parameters": [{"name": "model", "string_match": {"exact": name}}]}
        path = rf"[^?]*/(models|deployments)/{re.escape(name)}([:/?].*)?"
        yield {"headers": [{"name": ":path", "string_match": {"safe_regex": {"regex": path}}}]}


def base_rewrite(tier: Tier) -> Dict:
    """Return how the path is written below the base path of a tier, if it has one."""
    if tier.base == USUAL_BASE:
        return {}
    substitution = tier.base.replace("\\", "\\\\") + r"\1"
    return {"regex_rewrite": {"pattern": {"regex": f"^{USUAL_BASE}(/.*)$"}, "substitution": substitution}}


def path_match(path: str) -> Dict:
    """Return the match of a path of an API, in all the ways in which clients write it."""
    return {"safe_regex": {"regex": f"{PATH_PREFIX}{re.escape(path.removeprefix('/v1'))}/?"}}


def kept_match(pattern: str) -> Dict:
    """Return the match of one of KEPT_PATHS, in all the ways in which clients write it."""
    return {"safe_regex": {"regex": f"{PATH_PREFIX}{pattern}/?"}}


def wrong_method(match: Dict, *methods: str) -> Dict:
    """Return a route that answers 405 and names the right methods."""
    allow = {"header": {"key": "allow", "value": ", ".join(methods)}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    wrong = _answer("wrong_method", match, 405, f"this path takes only {' and '.join(methods)}")
    return wrong | {"response_headers_to_add": [allow]}


def bad_encoding(match: Dict) -> Dict:
    """Return a route that answers 415 to bodies that Envoy cannot decode."""
    known = {"safe_regex": {"regex": f"(?i)({'|'.join((*ENCODINGS, 'identity'))})?"}}
    encoding = [
        {"name": "content-encoding", "present_match": True},
        {"name": "content-encoding", "string_match": known, "invert_match": True},
    ]
    text = f"this content-encoding is not supported: send the body plain, or as one of {', '.join(ENCODINGS)}"
    return _answer("encoding", match | {"headers": [*match.get("headers", []), *encoding]}, 415, text)


def model_routes(config: Config) -> Iterator[Dict]:
    """Yield the routes that list the models: the names that the router replaces, and those of the tiers."""
    names = [name for name in config.policy.retarget if not set(name) & set("*?[")]
    models = list(dict.fromkeys([*names, *(tier.model for tier in config.policy.tiers)]))
    anthropic_entries = [_anthropic_model(model) for model in models]
    anthropic_list = {
        "data": anthropic_entries, "has_more": False, "first_id": models[0], "last_id": models[-1],
    }  # fmt: skip
    entries = [_openai_model(model) for model in models]
    every_model = {"safe_regex": {"regex": f"{PATH_PREFIX}/models/?"}}
    yield from _model_routes(every_model, anthropic_list, {"object": "list", "data": entries})
    for model, anthropic, openai in zip(models, anthropic_entries, entries, strict=True):
        for name in dict.fromkeys((model, quote(model, safe=""))):
            for base in ("/v1", ""):  # a regular expression of a long name is too long for Envoy
                yield from _model_routes({"path": f"{base}/models/{name}"}, anthropic, openai)


def _model_routes(match: Dict, anthropic: Dict, openai: Dict) -> Iterator[Dict]:
    for headers, answer in (
        ([_GET, {"name": "anthropic-version", "present_match": True}], anthropic),
        ([_GET], openai),
    ):
        content_type = {"header": {"key": "content-type", "value": "application/json"}}
        yield _answer("models", match | {"headers": headers}, 200, json.dumps(answer)) | {
            "response_headers_to_add": [content_type | {"append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]
        }


def _openai_model(model: str) -> Dict:
    return {"id": model, "object": "model", "created": _CREATED, "owned_by": _OWNER}


def _anthropic_model(model: str) -> Dict:
    return {"type": "model", "id": model, "display_name": model, "created_at": "1970-01-01T00:00:00Z"}


def closed_routes() -> Iterator[Dict]:
    """Yield the routes that answer every other request."""
    upgrade = {"name": "upgrade", "string_match": {"exact": "websocket", "ignore_case": True}}
    yield _answer("upgrade", {"prefix": "/", "headers": [upgrade]}, 426, "WebSocket is not served here: use HTTP")
    for path in (*APIS, *SIDE_PATHS):
        yield wrong_method(path_match(path), "POST")
    for pattern, taken in KEPT_PATHS.items():
        yield wrong_method(kept_match(pattern), *taken)
    yield _answer(
        "deployment", {"prefix": "/openai/deployments/"}, 404,
        "paths with a deployment are not served here: set the base URL of your client to this host with /openai/v1 "
        f"or /v1, and name the model in the body. {_SERVED}",
    )  # fmt: skip
    yield _answer(
        "closed", {"prefix": "/"}, 404,
        f"this path is closed. {_SERVED} The operator of this gateway opens other paths with `passthrough` in "
        "policy.yaml.",
    )  # fmt: skip


def _answer(name: str, match: Dict, status: int, text: str) -> Dict:
    return {"name": name, "match": match, "direct_response": {"status": status, "body": {"inline_string": text}}}

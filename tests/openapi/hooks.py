"""What Schemathesis must know of the node that tests/openapi.rs has prepared for it.

Closes the objects of the description, so that a member that is not described is a fault. Turns most calls that were
made up into calls about things that exist, so that successes are reached and not only refusals, and keeps calls from
breaking what other calls need: accounts that others name stay, passwords stay, and no URL leads out of this machine.
Counts the answers. What is right or wrong in an answer is for Schemathesis to say.
"""

import atexit
import collections
import itertools
import json
import os

import requests.sessions
import schemathesis
from requests.adapters import HTTPAdapter

ROLE = os.environ["CLEARWAY_ROLE"]
NODE = os.environ["CLEARWAY_NODE"]
# A packet that the node forwards or rejects.
PREPARE = bytes.fromhex(os.environ["CLEARWAY_PREPARE"])
# Accounts that are there to be deleted, one after the other.
SPARES = iter(os.environ["CLEARWAY_SPARES"].split())
# Accounts that stay. Those that change are not alice, who calls as a holder meanwhile.
CHANGED = itertools.cycle(["bob", "hub_two"] if ROLE == "admin" else ["alice"])
# Where copies of the book may be made: they go with the node.
COPIES = os.environ["CLEARWAY_COPIES"]
NEEDED = ["alice", "bob", "hub_two", "uplink"]
# Nobody listens there.
NOWHERE = "http://127.0.0.1:9/"

# Three calls of four are about things that exist.
mostly = itertools.cycle([True, True, True, False])
# The node waits two seconds for each connection that it shall dial.
dials = iter([True, True])
names = itertools.count()
answers = collections.defaultdict(collections.Counter)


class EachCallFromElsewhere(HTTPAdapter):
    """Makes every call on a connection and from a loopback address of its own: the node slows down who guesses
    secrets, and a call that is refused must not spoil the next one."""

    numbers = itertools.count()

    def send(self, *args, **kwargs):
        number = next(self.numbers)
        address = f"127.{1 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"
        self.poolmanager.clear()
        self.init_poolmanager(1, 1, source_address=(address, 0))
        return super().send(*args, **kwargs)


requests.sessions.HTTPAdapter = EachCallFromElsewhere


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Clients must expect members that are new to them; this test must not."""
    components = raw_schema["components"]
    # What stands within answers, or in a choice of two.
    for name in ["Links", "Payment", "Warning", "Balance", "AssetAudit", "InvalidParam", "RateTrouble", "RateProvider", "RateState", "HeldRate"]:
        components["schemas"][name]["unevaluatedProperties"] = False
    operations = [item[method] for item in raw_schema["paths"].values() for method in item if method != "parameters"]
    responses = [response for operation in operations for response in operation["responses"].values()]
    for response in itertools.chain(responses, components["responses"].values()):
        for content in response.get("content", {}).values():
            close(content["schema"])


def close(schema):
    """In place and where the answer is, because an object may be a part of another that has more members."""
    for part in schema.get("anyOf", []) + [schema[name] for name in schema if name == "items"]:
        close(part)
    if "$ref" in schema or "allOf" in schema:
        schema["unevaluatedProperties"] = False


@schemathesis.hook
def before_call(context, case, kwargs):
    label, path, body = case.operation.label, case.path_parameters, case.body
    if "username" in path:
        if label.startswith("DELETE"):
            if path["username"] in NEEDED or next(mostly):
                path["username"] = next(SPARES, "nobody")
        elif path["username"] in NEEDED or next(mostly):
            path["username"] = next(CHANGED)
    if label == "DELETE /routes/static/{prefix}" and next(mostly):
        path["prefix"] = "example.some-prefix"
    if label == "PUT /routes/static/{prefix}" and isinstance(body, str) and next(mostly):
        case.body = "bob"
    if label in ("POST /ilp", "POST /accounts/{username}/ilp") and next(mostly):
        case.body = PREPARE
    if label == "POST /rates/confirm" and next(mostly):
        case.body = ["HELD"]
    elif isinstance(body, dict):
        if label == "PUT /settlement/engines":
            case.body = {code: nowhere(url) for code, url in body.items()}
        elif label == "PUT /routes/static":
            case.body = {prefix: "bob" if isinstance(name, str) and next(mostly) else name for prefix, name in body.items()}
        elif label in ("POST /accounts/{username}/payments", "POST /accounts/{username}/quotes"):
            change_payment(body)
        elif label == "POST /ledger/backup":
            # Nowhere else, whatever was made up.
            if isinstance(body.get("directory"), str) and body["directory"].startswith("/"):
                body["directory"] = f"{COPIES}/copy-{next(names) if next(mostly) else 0}"
        elif "/accounts" in label:
            change_account(label, body)


def change_payment(body):
    """To somebody on this machine, of little, and soon over."""
    if isinstance(body.get("receiver"), str):
        body["receiver"] = f"{NODE}/accounts/bob/spsp" if next(mostly) else nowhere(body["receiver"])
        if body["receiver"].startswith("$"):
            body["receiver"] = NOWHERE
    for name in [name for name in ("source_amount", "destination_amount") if isinstance(body.get(name), int)]:
        body[name] = min(body[name], 50)
    body["timeout_ms"] = 1_000


def change_account(label, body):
    for name in [name for name in body if name.endswith("_url")]:
        body[name] = nowhere(body[name])
    if isinstance(body.get("ilp_over_btp_url"), str) and not next(dials, False):
        del body["ilp_over_btp_url"]
    if label == "POST /accounts":
        if "username" in body and next(mostly):
            body["username"] = f"made_{next(names)}"
    else:
        body.pop("ilp_over_http_incoming_token", None)
        if next(mostly):
            body.pop("username", None)


def nowhere(url):
    return NOWHERE if isinstance(url, str) and ":" in url else url


@schemathesis.hook
def after_call(context, case, response):
    answers[case.operation.label][response.status_code] += 1


@atexit.register
def write_answers():
    with open(os.environ["CLEARWAY_ANSWERS"], "w", encoding="utf-8") as file:
        json.dump(answers, file)

"""Keeps schemathesis from revoking its own key, and lets it make others."""

import os
import re

import schemathesis

OWN_ID = os.environ["OWN_KEY_ID"]
OWN_CONSUMER = os.environ["OWN_CONSUMER_ID"]
NOBODY = "00000000-0000-7000-8000-000000000000"
# The patterns of the document.
NETWORK = re.compile(r"^[0-9A-Fa-f.:]{2,45}(/[0-9]{1,3})?$")
ORIGIN = re.compile(r"^[a-z][a-z0-9+.-]*://[^\s/]{1,247}$")

SCOPE = re.compile(r"^[\x21\x23-\x2b\x2d-\x5b\x5d-\x7e]{1,128}$")
PLAN = re.compile(r"^[A-Za-z0-9._-]{1,64}$")


def are_texts(value, pattern):
    return isinstance(value, list) and all(isinstance(it, str) and pattern.match(it) for it in value)


@schemathesis.hook
def before_call(context, case, **kwargs):
    if case.path_parameters and case.path_parameters.get("id") == OWN_ID:
        case.path_parameters["id"] = NOBODY
    if case.path.endswith("/api-keys/revoke") and isinstance(case.body, dict):
        if case.body.get("consumer_id") == OWN_CONSUMER:
            case.body["consumer_id"] = "nobody"
        if "prefix" in case.body and isinstance(case.body["prefix"], str):
            case.body["prefix"] = case.body["prefix"].replace("sk_live_", "nothing_")
    if case.method == "POST" and case.path.endswith("/api-keys") and isinstance(case.body, dict):
        # What a schema cannot say: most texts of this pattern are no networks, and only a
        # publishable key has origins. What violates the schema stays as it is.
        # Nor what its key may grant.
        if are_texts(case.body.get("scopes"), SCOPE):
            case.body["scopes"] = ["orders:read"]
        if are_texts([case.body.get("plan")], PLAN):
            del case.body["plan"]
        if are_texts(case.body.get("networks"), NETWORK):
            case.body["networks"] = ["203.0.113.0/24"]
        if are_texts(case.body.get("origins") or [], ORIGIN):
            if case.body.get("kind") == "publishable":
                case.body["origins"] = ["https://shop.example"]
            elif case.body.get("kind") in ("secret", None):
                case.body.pop("origins", None)

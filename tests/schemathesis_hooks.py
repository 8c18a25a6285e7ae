"""Keeps schemathesis from revoking its own key."""

import os

import schemathesis

OWN_ID = os.environ["OWN_KEY_ID"]
OWN_CONSUMER = os.environ["OWN_CONSUMER_ID"]
NOBODY = "00000000-0000-7000-8000-000000000000"


@schemathesis.hook
def before_call(context, case, **kwargs):
    if case.path_parameters and case.path_parameters.get("id") == OWN_ID:
        case.path_parameters["id"] = NOBODY
    if case.path.endswith("/api-keys/revoke") and isinstance(case.body, dict):
        if case.body.get("consumer_id") == OWN_CONSUMER:
            case.body["consumer_id"] = "nobody"
        if "prefix" in case.body and isinstance(case.body["prefix"], str):
            case.body["prefix"] = case.body["prefix"].replace("sk_live_", "nothing_")

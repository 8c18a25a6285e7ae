"""djangorestframework-api-key on a PostgreSQL: makes keys, or says which are let in.

djangorestframework_api_key.py URL (2 | 3) make: a JSON list of keys, with what became of each
djangorestframework_api_key.py URL (2 | 3) verify KEY…: a JSON list of true and false
"""

import datetime
import json
import os
import sys
import urllib.parse

url, version, command, *keys = sys.argv[1:]
# Version 2 is not in the site's packages, where 3 is.
if version == "2":
    sys.path.insert(0, os.path.join(os.environ["MOVING_IN"], "djangorestframework-api-key-2"))

import django
from django.conf import settings

parts = urllib.parse.urlsplit(url)
settings.configure(
    INSTALLED_APPS=["rest_framework", "rest_framework_api_key"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": parts.path.lstrip("/"),
            "USER": parts.username or "",
            "PASSWORD": parts.password or "",
            "HOST": parts.hostname,
            "PORT": parts.port or "",
        }
    },
    REST_FRAMEWORK={"UNAUTHENTICATED_USER": None},
    USE_TZ=True,
)
django.setup()

from django.core.management import call_command
from django.test import RequestFactory
from django.utils import timezone
from rest_framework_api_key.models import APIKey
from rest_framework_api_key.permissions import HasAPIKey


def make():
    call_command("migrate", verbosity=0)
    made = []
    for name, state in [("acme", "works"), ("globex", "works"), ("acme", "revoked"), ("acme", "expired")]:
        api_key, key = APIKey.objects.create_key(name=name)
        api_key.revoked = state == "revoked"
        if state == "expired":
            api_key.expiry_date = timezone.now() - datetime.timedelta(days=1)
        api_key.save()
        made.append({"key": key, "consumer": name, "state": state})
    return made


def verify(key):
    request = RequestFactory().get("/", headers={"Authorization": f"Api-Key {key}"})
    return HasAPIKey().has_permission(request, None)


print(json.dumps(make() if command == "make" else [verify(key) for key in keys]))

"""djangorestframework-api-key as its documentation has it, in one file."""

import os
from urllib.parse import urlsplit

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application

url = urlsplit(os.environ["DATABASE_URL"])
settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": url.hostname,
            "PORT": url.port,
            "USER": url.username,
            "NAME": url.path.lstrip("/"),
            # A persistent connection per thread.
            "CONN_MAX_AGE": None,
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["rest_framework", "rest_framework_api_key"],
    # Only keys, no users: without what Django's project template adds for browsers.
    MIDDLEWARE=[],
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "UNAUTHENTICATED_USER": None,
    },
    ROOT_URLCONF=__name__,
    SECRET_KEY="only for this benchmark",
)
django.setup()

from django.urls import path  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402
from rest_framework_api_key.models import APIKey  # noqa: E402
from rest_framework_api_key.permissions import HasAPIKey, KeyParser  # noqa: E402


class BearerParser(KeyParser):
    keyword = "Bearer"


class HasBearerKey(HasAPIKey):
    key_parser = BearerParser()


class Ok(APIView):
    permission_classes = [HasBearerKey]

    def get(self, request):
        return Response("ok")


urlpatterns = [path("", Ok.as_view())]
application = get_wsgi_application()


def issue():
    """Makes the tables and a key, before there are workers."""
    call_command("migrate", verbosity=0)
    _, key = APIKey.objects.create_key(name="bench")
    django.db.connections.close_all()
    return key

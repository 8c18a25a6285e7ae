"""Laravel Sanctum's tokens and its table on a PostgreSQL, by the algorithm of its documentation.

sanctum.py URL make: a JSON list of tokens, with what became of each
sanctum.py URL verify TOKEN…: a JSON list of true and false
"""

import hashlib
import json
import secrets
import string
import sys
import zlib

import psycopg

url, command, *tokens = sys.argv[1:]
database = psycopg.connect(url, autocommit=True)


def digest(secret):
    return hashlib.sha256(secret.encode()).hexdigest()


def create_token(user, name, ends):
    entropy = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(40))
    secret = f"{entropy}{zlib.crc32(entropy.encode()):08x}"
    token_id = database.execute(
        "INSERT INTO personal_access_tokens (tokenable_type, tokenable_id, name, token, abilities, expires_at)"
        " VALUES ('App\\Models\\User', %s, %s, %s, '[\"orders:read\",\"orders:write\"]', now() + %s::interval)"
        " RETURNING id",
        [user, name, digest(secret), ends],
    ).fetchone()[0]
    return f"{token_id}|{secret}"


def make():
    database.execute(
        """CREATE TABLE personal_access_tokens (
            id bigserial PRIMARY KEY,
            tokenable_type varchar(255) NOT NULL,
            tokenable_id bigint NOT NULL,
            name text NOT NULL,
            token varchar(64) NOT NULL UNIQUE,
            abilities text,
            last_used_at timestamp(0),
            expires_at timestamp(0),
            created_at timestamp(0) DEFAULT now(),
            updated_at timestamp(0) DEFAULT now()
        )"""
    )
    kinds = [(17, None, "works"), (18, "1 day", "works"), (17, "-1 day", "expired")]
    return [
        {"key": create_token(user, "phone", ends), "consumer": str(user), "state": state}
        for user, ends, state in kinds
    ]


def verify(token):
    token_id, _, secret = token.partition("|")
    row = database.execute(
        "SELECT token FROM personal_access_tokens"
        " WHERE id = %s AND (expires_at IS NULL OR expires_at > now())",
        [token_id],
    ).fetchone()
    return row is not None and secrets.compare_digest(row[0], digest(secret))


print(json.dumps(make() if command == "make" else [verify(token) for token in tokens]))

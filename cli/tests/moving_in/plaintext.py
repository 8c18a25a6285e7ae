"""A table with the keys themselves on a PostgreSQL.

plaintext.py URL make: a JSON list of keys, with what became of each
plaintext.py URL verify KEY…: a JSON list of true and false
"""

import json
import secrets
import sys

import psycopg

url, command, *keys = sys.argv[1:]
database = psycopg.connect(url, autocommit=True)


def make():
    database.execute(
        "CREATE TABLE customers ("
        "id serial PRIMARY KEY, api_key text UNIQUE, active boolean, created_at timestamptz DEFAULT now())"
    )
    made = []
    for state in ["works", "works", "revoked"]:
        key = secrets.token_urlsafe(32)
        customer = database.execute(
            "INSERT INTO customers (api_key, active) VALUES (%s, %s) RETURNING id",
            [key, state == "works"],
        ).fetchone()[0]
        made.append({"key": key, "consumer": str(customer), "state": state})
    return made


def verify(key):
    found = database.execute("SELECT 1 FROM customers WHERE api_key = %s AND active", [key])
    return found.fetchone() is not None


print(json.dumps(make() if command == "make" else [verify(key) for key in keys]))

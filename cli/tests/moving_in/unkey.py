"""Unkey's keys and its table on a PostgreSQL, by the formats of its source.

unkey.py URL make: a JSON list of keys, with what became of each
unkey.py URL verify KEY…: a JSON list of true and false
"""

import base64
import hashlib
import json
import secrets
import sys

import psycopg

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

url, command, *keys = sys.argv[1:]
database = psycopg.connect(url, autocommit=True)


def base58(data):
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = ALPHABET[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def castagnoli(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def of_16_bytes(length):
    """Most have 22 characters, and some 21 or fewer."""
    while True:
        key = base58(secrets.token_bytes(16))
        if len(key) == length:
            return f"sk_{key}"


def of_version_1():
    random = "".join(secrets.choice(ALPHABET) for _ in range(44))
    unsigned = f"sk_{random[:8]}unkeyv1{random[8:]}"
    return unsigned + base58(castagnoli(unsigned.encode()).to_bytes(4, "big")).rjust(6, "1")


def digest(key):
    return base64.b64encode(hashlib.sha256(key.encode()).digest()).decode()


def make():
    database.execute(
        "CREATE TABLE keys (id text, hash text UNIQUE, start text, name text, owner_id text,"
        " expires timestamp(3), created_at_m bigint, enabled boolean)"
    )
    made = []
    for key, state in [
        (of_16_bytes(22), "works"),
        (of_16_bytes(21), "works"),
        (of_version_1(), "works"),
        (of_16_bytes(22), "revoked"),
    ]:
        database.execute(
            "INSERT INTO keys VALUES (%s, %s, %s, 'ci', 'acme', NULL, 1709294400123, %s)",
            [f"key_{secrets.token_hex(8)}", digest(key), key[:7], state == "works"],
        )
        made.append({"key": key, "consumer": "acme", "state": state})
    return made


def verify(key):
    found = database.execute("SELECT 1 FROM keys WHERE hash = %s AND enabled", [digest(key)])
    return found.fetchone() is not None


print(json.dumps(make() if command == "make" else [verify(key) for key in keys]))

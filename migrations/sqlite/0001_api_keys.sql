-- One row per key in any state, so that revoked keys can be distinguished from unknown ones. STRICT
-- enforces column types. Times are microseconds since 1970.
create table api_keys (
    -- The 16 bytes of a version 7 UUID: new keys are appended to the index.
    id blob not null primary key check (length(id) = 16),

    -- SHA-256 of the key, never the key itself. The unique index serves look-ups.
    key_hash blob not null unique check (length(key_hash) = 32),

    -- For display, so that people can recognise their keys.
    key_prefix text not null,
    key_last4 text not null,
    name text,

    -- Consumers belong to the application: there is no table to reference.
    consumer_id text not null,

    -- A JSON array: SQLite has no array type.
    scopes text not null check (json_valid(scopes) and json_type(scopes) = 'array'),

    -- null: the layer's default. An empty list: explicitly unlimited.
    rate_limits text check (json_valid(rate_limits) and json_type(rate_limits) = 'array'),

    -- Application-defined.
    metadata text not null check (json_valid(metadata) and json_type(metadata) = 'object'),

    -- Can be switched back on, unlike a revocation.
    is_active integer not null check (is_active in (0, 1)),

    -- By the clock of the node that issued it.
    created_at integer not null,
    created_by text,

    -- null means "from the start" and "never".
    not_before integer,
    expires_at integer,

    -- A time rather than a flag: investigating a leak requires knowing when.
    revoked_at integer,
    revoked_reason text check (revoked_reason is null or revoked_at is not null),

    -- Not a foreign key: the replaced key may be deleted, and is still named.
    rotated_from blob check (length(rotated_from) = 16),

    -- The first key in the chain of rotations, under which the whole chain shares rate limits:
    -- following rotated_from would take a query per link.
    root_id blob not null check (length(root_id) = 16),

    -- Incremented by each change, so that two administrators do not overwrite each other's changes.
    version integer not null check (version > 0)
) strict;

-- Lists the live keys of a consumer. Revoked keys accumulate over the years and are left out.
create index api_keys_live_of_consumer on api_keys (consumer_id) where revoked_at is null;

-- Separate from api_keys because it is written all the time: the wide rows above stay untouched. No
-- foreign key: a key deleted meanwhile would fail the whole batch.
create table api_key_usage (
    key_id blob not null primary key check (length(key_id) = 16),
    last_used_at integer not null
) strict, without rowid;

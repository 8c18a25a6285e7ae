-- One row per key, whatever its state: a revoked key is still told from an unknown one.
-- STRICT, so that a column holds what it says. Times are microseconds since 1970.
create table api_keys (
    -- The 16 bytes of a UUID of version 7: new keys go to the end of the index.
    id blob not null primary key check (length(id) = 16),

    -- SHA-256 of the key, never the key. The index behind UNIQUE serves the look-up.
    key_hash blob not null unique check (length(key_hash) = 32),

    -- For people, who know their keys by these.
    key_prefix text not null,
    key_last4 text not null,
    name text,

    -- Whom the key stands for. Consumers are the application's: there is no table to refer to.
    consumer_id text not null,

    -- A JSON array: SQLite has no other.
    scopes text not null check (json_valid(scopes) and json_type(scopes) = 'array'),

    -- null: the layer's default. An empty list: no limit, on purpose.
    rate_limits text check (json_valid(rate_limits) and json_type(rate_limits) = 'array'),

    -- The application's own.
    metadata text not null check (json_valid(metadata) and json_type(metadata) = 'object'),

    -- A switch. A revocation is for good, this is not.
    is_active integer not null check (is_active in (0, 1)),

    -- As the clock of the node that issued it had it.
    created_at integer not null,
    created_by text,

    -- null is "from the start" and "never".
    not_before integer,
    expires_at integer,

    -- A time rather than a switch: whoever looks into a leak asks when.
    revoked_at integer,
    revoked_reason text check (revoked_reason is null or revoked_at is not null),

    -- Not a foreign key: the key it replaces may be deleted, and is then still named.
    rotated_from blob check (length(rotated_from) = 16),

    -- The first key of a chain of rotations, which all of it shares rate limits under: following
    -- rotated_from back would take a query for each link.
    root_id blob not null check (length(root_id) = 16),

    -- Counts changes, so that two administrators do not overwrite each other's.
    version integer not null check (version > 0)
) strict;

-- Lists the live keys of a consumer. Revoked keys pile up over the years and stay out of it.
create index api_keys_live_of_consumer on api_keys (consumer_id) where revoked_at is null;

-- Apart from api_keys because it is written all the time: the wide rows above stay untouched.
-- No foreign key: one key deleted meanwhile would fail the whole batch.
create table api_key_usage (
    key_id blob not null primary key check (length(key_id) = 16),
    last_used_at integer not null
) strict, without rowid;

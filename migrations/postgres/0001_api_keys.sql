-- One row per key in any state, so that revoked keys can be distinguished from unknown ones. Names
-- are unqualified: the search_path decides the schema.
create table api_keys (
    -- A version 7 UUID: new keys are appended to the index.
    id uuid primary key,

    -- SHA-256 of the key, never the key itself. The unique index serves look-ups.
    key_hash bytea not null
        constraint api_keys_key_hash_key unique
        constraint api_keys_key_hash_is_sha256 check (octet_length(key_hash) = 32),

    -- For display, so that people can recognise their keys.
    key_prefix text not null,
    key_last4 text not null,
    name text,

    -- Consumers belong to the application: there is no table to reference.
    consumer_id text not null,

    -- An array: always read as a whole, but still searchable in SQL.
    scopes text[] not null,

    -- null: the layer's default. An empty list: explicitly unlimited.
    rate_limits jsonb
        constraint api_keys_rate_limits_are_a_list check (jsonb_typeof(rate_limits) = 'array'),

    -- Application-defined. jsonb, so that it is valid JSON and searchable.
    metadata jsonb not null
        constraint api_keys_metadata_is_an_object check (jsonb_typeof(metadata) = 'object'),

    -- Can be switched back on, unlike a revocation.
    is_active boolean not null,

    -- An instant, independent of the time zones of server and session.
    created_at timestamptz not null,
    created_by text,

    -- null means "from the start" and "never". 'infinity' would be a second way to say it.
    not_before timestamptz
        constraint api_keys_not_before_is_finite check (isfinite(not_before)),
    expires_at timestamptz
        constraint api_keys_expires_at_is_finite check (isfinite(expires_at)),

    -- A time rather than a flag: investigating a leak requires knowing when.
    revoked_at timestamptz,
    revoked_reason text
        constraint api_keys_only_the_revoked_have_a_reason
            check (revoked_reason is null or revoked_at is not null),

    -- Not a foreign key: the replaced key may be deleted, and is still named.
    rotated_from uuid,

    -- The first key in the chain of rotations, under which the whole chain shares rate limits:
    -- following rotated_from would take a query per link.
    root_id uuid not null,

    -- Incremented by each change, so that two administrators do not overwrite each other's changes.
    version bigint not null
        constraint api_keys_version_counts_from_1 check (version > 0)
);

-- Lists the live keys of a consumer. Revoked keys accumulate over the years and are left out.
create index api_keys_live_of_consumer on api_keys (consumer_id) where revoked_at is null;

-- Separate from api_keys because it is written all the time: the wide rows above stay untouched,
-- and so do the caches and triggers that watch them.
--
-- No foreign key: it would lock the row of each used key, and a key deleted meanwhile would fail
-- the whole batch. The fill factor keeps updates on their page and out of the index.
create table api_key_usage (
    key_id uuid primary key,
    last_used_at timestamptz not null
) with (fillfactor = 50);

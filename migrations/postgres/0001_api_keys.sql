-- One row per key, whatever its state: a revoked key is still told from an unknown one.
-- Names are unqualified, so the search_path decides the schema.
create table api_keys (
    -- A UUID of version 7: new keys go to the end of the index.
    id uuid primary key,

    -- SHA-256 of the key, never the key. The index behind UNIQUE serves the look-up.
    key_hash bytea not null
        constraint api_keys_key_hash_key unique
        constraint api_keys_key_hash_is_sha256 check (octet_length(key_hash) = 32),

    -- For people, who know their keys by these.
    key_prefix text not null,
    key_last4 text not null,
    name text,

    -- Whom the key stands for. Consumers are the application's: there is no table to refer to.
    consumer_id text not null,

    -- An array: a set of words that is always read whole, and that SQL can still search.
    scopes text[] not null,

    -- null: the layer's default. An empty list: no limit, on purpose.
    rate_limits jsonb
        constraint api_keys_rate_limits_are_a_list check (jsonb_typeof(rate_limits) = 'array'),

    -- The application's own. jsonb, so that it can be searched and is known to be JSON.
    metadata jsonb not null
        constraint api_keys_metadata_is_an_object check (jsonb_typeof(metadata) = 'object'),

    -- A switch. A revocation is for good, this is not.
    is_active boolean not null,

    -- An instant, whatever the time zone of server and session.
    created_at timestamptz not null,
    created_by text,

    -- null is "from the start" and "never". 'infinity' would be a second way of saying it.
    not_before timestamptz
        constraint api_keys_not_before_is_finite check (isfinite(not_before)),
    expires_at timestamptz
        constraint api_keys_expires_at_is_finite check (isfinite(expires_at)),

    -- A time rather than a switch: whoever looks into a leak asks when.
    revoked_at timestamptz,
    revoked_reason text
        constraint api_keys_only_the_revoked_have_a_reason
            check (revoked_reason is null or revoked_at is not null),

    -- Not a foreign key: the key it replaces may be deleted, and is then still named.
    rotated_from uuid,

    -- The first key of a chain of rotations, which all of it shares rate limits under: following
    -- rotated_from back would take a query for each link.
    root_id uuid not null,

    -- Counts changes, so that two administrators do not overwrite each other's.
    version bigint not null
        constraint api_keys_version_counts_from_1 check (version > 0)
);

-- Lists the live keys of a consumer. Revoked keys pile up over the years and stay out of it.
create index api_keys_live_of_consumer on api_keys (consumer_id) where revoked_at is null;

-- Apart from api_keys because it is written all the time: the wide rows above stay untouched, and
-- so do the caches and triggers that watch them.
--
-- No foreign key: it would lock the row of each key that was used, and one key deleted meanwhile
-- would fail the whole batch. Half-filled pages keep updates on their page and out of the index.
create table api_key_usage (
    key_id uuid primary key,
    last_used_at timestamptz not null
) with (fillfactor = 50);

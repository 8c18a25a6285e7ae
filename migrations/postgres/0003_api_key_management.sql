-- What listing, changing and auditing keys takes. Look-ups go on while the indexes are built; the
-- table itself is locked at the end, for a moment.
--
-- Pages of keys are read along an index in the order of their ids. Each of these is for one
-- question, and a table of a million keys is never searched from end to end.
drop index api_keys_live_of_consumer;
create index api_keys_of_consumer on api_keys (consumer_id, id);
create index api_keys_of_prefix on api_keys (key_prefix, id);

-- What is not revoked, which is what people ask for, and revoke by the thousand. Revoked keys pile
-- up over the years and stay out of it.
create index api_keys_live on api_keys (id) where revoked_at is null;
create index api_keys_live_of_consumer on api_keys (consumer_id, id) where revoked_at is null;
create index api_keys_live_of_prefix on api_keys (key_prefix, id) where revoked_at is null;

-- Exceptions, wherever they hide among the others.
create index api_keys_revoked on api_keys (id) where revoked_at is not null;
create index api_keys_inactive on api_keys (id) where revoked_at is null and not is_active;
create index api_keys_beginning on api_keys (id) where revoked_at is null and not_before is not null;

-- Serves pruning, and what expires soon.
create index api_keys_by_revocation on api_keys (revoked_at) where revoked_at is not null;
create index api_keys_by_expiry on api_keys (expires_at) where expires_at is not null;

-- Which keys have a scope, in the order of their ids: an index of the array has no order.
create table api_key_scopes (
    scope text not null,
    key_id uuid not null,
    primary key (scope, key_id)
);

-- Keeps what hangs on keys in step with them, whoever changes them: their scopes, and their use,
-- which ends with them. With the rights of its owner and beside its table, as `api_keys_tell`.
--
-- Once for each statement, so that a batch costs little more than a key.
create function api_keys_follow() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    case tg_op
        when 'INSERT' then
            execute format(
                'insert into %I.api_key_scopes
                select distinct scope, id from added, unnest(scopes) as scope
                where scope is not null
                on conflict do nothing',
                tg_table_schema
            );
        when 'UPDATE' then
            execute format(
                'delete from %1$I.api_key_scopes where (scope, key_id) in (
                    select unnest(scopes), id from removed
                    except select unnest(scopes), id from added
                )',
                tg_table_schema
            );
            execute format(
                'insert into %I.api_key_scopes
                select scope, id from added, unnest(scopes) as scope where scope is not null
                except select unnest(scopes), id from removed
                on conflict do nothing',
                tg_table_schema
            );
        when 'DELETE' then
            execute format(
                'delete from %I.api_key_scopes
                where (scope, key_id) in (select unnest(scopes), id from removed)',
                tg_table_schema
            );
            -- In the order in which uses are recorded, so that neither waits for the other's row
            -- while it keeps one.
            execute format(
                'with used as materialized (
                    select key_id from %1$I.api_key_usage
                    where key_id in (select id from removed)
                    order by key_id
                    for update
                )
                delete from %1$I.api_key_usage where key_id in (select key_id from used)',
                tg_table_schema
            );
        when 'TRUNCATE' then
            execute format('truncate %1$I.api_key_scopes, %1$I.api_key_usage', tg_table_schema);
    end case;
    return null;
end
$$;

revoke all on function api_keys_follow() from public;

create trigger api_keys_follow_insert after insert on api_keys
referencing new table as added
for each statement execute function api_keys_follow();

create trigger api_keys_follow_update after update on api_keys
referencing old table as removed new table as added
for each statement execute function api_keys_follow();

create trigger api_keys_follow_delete after delete on api_keys
referencing old table as removed
for each statement execute function api_keys_follow();

create trigger api_keys_follow_truncate after truncate on api_keys
for each statement execute function api_keys_follow();

insert into api_key_scopes
select distinct scope, id from api_keys, unnest(scopes) as scope where scope is not null;

delete from api_key_usage
where not exists (select from api_keys where api_keys.id = api_key_usage.key_id);

-- Who did what to which key, in the transaction that did it. It names keys that may be deleted.
create table api_key_events (
    id bigint generated always as identity primary key,

    -- The clock itself: a transaction that waited for a lock began earlier.
    at timestamptz not null default clock_timestamp(),

    action text not null,
    key_id uuid,
    consumer_id text,
    actor text not null,
    origin text,
    reason text,
    changes jsonb
        constraint api_key_events_changes_are_an_object check (jsonb_typeof(changes) = 'object')
);

create index api_key_events_of_key on api_key_events (key_id, id);
create index api_key_events_of_consumer on api_key_events (consumer_id, id);

-- An audit that could be edited would prove nothing. Whoever owns the table can take the trigger
-- away: that is a change of the schema, not a slip, and such rights are what services should lack.
create function api_key_events_stay() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception '% of api_key_events is refused: the audit is append-only', lower(tg_op)
        using errcode = 'TK002';
end
$$;

create trigger api_key_events_stay before update or delete on api_key_events
for each row execute function api_key_events_stay();

create trigger api_key_events_stay_truncate before truncate on api_key_events
for each statement execute function api_key_events_stay();

-- Requests that were carried out, so that one which is sent again is not carried out again.
create table api_key_requests (
    -- A digest: what clients call their requests is theirs.
    request bytea primary key
        constraint api_key_requests_request_is_sha256 check (octet_length(request) = 32),
    fingerprint bytea not null
        constraint api_key_requests_fingerprint_is_sha256 check (octet_length(fingerprint) = 32),
    key_id uuid not null,
    at timestamptz not null default clock_timestamp()
);

-- Serves who sweeps.
create index api_key_requests_by_time on api_key_requests (at);

-- Deleting a key is one thing, bringing it back to life another. After the update, when no other
-- trigger can change its mind.
create function api_keys_stay_revoked() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception 'key % is revoked, and a revocation is for good: issue another key', old.id
        using errcode = 'TK001';
end
$$;

create trigger api_keys_stay_revoked after update on api_keys
for each row when (
    old.revoked_at is not null and new.revoked_at is distinct from old.revoked_at
) execute function api_keys_stay_revoked();

-- When a key was replaced by another. It goes on working until it expires.
alter table api_keys add column rotated_at timestamptz
    constraint api_keys_rotated_at_is_finite check (isfinite(rotated_at));

-- Answers to a key that was rotated say so: whoever caches it is told.
drop trigger api_keys_tell_update on api_keys;
create trigger api_keys_tell_update after update on api_keys
for each row when (
    (old.id, old.key_hash, old.consumer_id, old.name, old.scopes, old.rate_limits, old.metadata,
        old.is_active, old.not_before, old.expires_at, old.revoked_at, old.rotated_at, old.root_id)
    is distinct from
    (new.id, new.key_hash, new.consumer_id, new.name, new.scopes, new.rate_limits, new.metadata,
        new.is_active, new.not_before, new.expires_at, new.revoked_at, new.rotated_at, new.root_id)
) execute function api_keys_tell();

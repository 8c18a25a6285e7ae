-- When a key was last changed, for those who cache it: one row per key, which each change replaces,
-- so there is nothing to purge. Deleted keys keep theirs.
--
-- A time or a sequence would not do for who polls: transactions do not commit in the order in which
-- they draw numbers. The transaction itself is compared with those that a snapshot sees.
create table api_key_changes (
    -- The zero UUID stands for every key.
    key_id uuid primary key,

    -- Which transaction inserted the key, or gave it a new hash. 0: one before this table was.
    created_in xid8 not null,

    -- Which transaction changed it last. Not the greatest of them: a lower number may commit later.
    changed_in xid8 not null
);

-- Serves who polls: everything from a transaction on.
create index api_key_changes_by_transaction on api_key_changes (changed_in);

-- Writes the log, and tells those who listen. At commit, and only if there is one.
--
-- Every role may listen: the payload names the id, which is public, and nothing else of the key.
--
-- With the rights of its owner, so that a role that may write keys need not be told of the log. The
-- log is the one beside the table, whatever the search_path of the session is, and whatever the
-- schema is called by then; pg_temp comes last, where nobody can put another one in its place.
create function api_keys_tell() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    changed constant uuid := case tg_op
        when 'TRUNCATE' then '00000000-0000-0000-0000-000000000000'
        when 'INSERT' then null
        else old.id
    end;
    created constant uuid := case
        when tg_op = 'INSERT' then new.id
        when tg_op = 'UPDATE' and (old.id, old.key_hash) is distinct from (new.id, new.key_hash)
            then new.id
    end;
begin
    if changed is not null then
        execute format(
            'insert into %I.api_key_changes values ($1, ''0'', pg_current_xact_id())
            on conflict (key_id) do update set changed_in = excluded.changed_in',
            tg_table_schema
        ) using changed;
        perform pg_notify('tower_api_key', case tg_op
            when 'TRUNCATE' then 'v1:everything'
            else 'v1:changed:' || changed
        end);
    end if;
    if created is not null then
        execute format(
            'insert into %I.api_key_changes values ($1, pg_current_xact_id(), pg_current_xact_id())
            on conflict (key_id) do update
            set created_in = excluded.created_in, changed_in = excluded.changed_in',
            tg_table_schema
        ) using created;
        perform pg_notify('tower_api_key', 'v1:created:' || created);
    end if;
    return null;
end
$$;

-- Whoever could make a trigger of it could have its owner write to a table of theirs, and run what
-- hangs on that. Firing a trigger takes no right.
revoke all on function api_keys_tell() from public;

create trigger api_keys_tell after insert or delete on api_keys
for each row execute function api_keys_tell();

-- What matters to a request that presents the key. The rest is for people.
create trigger api_keys_tell_update after update on api_keys
for each row when (
    (old.id, old.key_hash, old.consumer_id, old.name, old.scopes, old.rate_limits, old.metadata,
        old.is_active, old.not_before, old.expires_at, old.revoked_at, old.root_id)
    is distinct from
    (new.id, new.key_hash, new.consumer_id, new.name, new.scopes, new.rate_limits, new.metadata,
        new.is_active, new.not_before, new.expires_at, new.revoked_at, new.root_id)
) execute function api_keys_tell();

create trigger api_keys_tell_truncate after truncate on api_keys
for each statement execute function api_keys_tell();

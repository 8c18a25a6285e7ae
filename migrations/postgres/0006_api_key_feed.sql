-- Where changes are announced, and how an announcement is told from a forgery.
--
-- Every role that may connect may NOTIFY, and LISTEN, on any channel whose name it knows.
--
-- 1. The name of the channel is random: a role that may not read this table can neither flood those
--    who listen nor hear them.
-- 2. An announcement ends with a digest over the secret. Names of channels are found in logs and
--    statistics of statements, and a name that became known does not let its finder forge.
-- 3. It carries the number of its transaction. Listeners take the announcements of a transaction
--    once, so one that was overheard is worth nothing.
--
-- To replace both: `update api_key_feed set channel = default, secret = default`. Listeners notice
-- at their next heartbeat.
create table api_key_feed (
    id smallint primary key default 1
        constraint api_key_feed_has_one_row check (id = 1),
    channel text not null
        default 'tower_api_key_' || replace(gen_random_uuid()::text, '-', ''),
    secret bytea not null
        default uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
);

insert into api_key_feed default values;

-- Services that may read keys, or their changes, may listen. Not PUBLIC: that is every role.
revoke all on api_key_feed from public;
do $$
declare
    reader text;
begin
    for reader in
        select distinct quote_ident(rolname)
        from pg_class
        cross join aclexplode(relacl) as granted
        join pg_roles on pg_roles.oid = grantee
        where pg_class.oid in ('api_keys'::regclass, 'api_key_changes'::regclass)
            and privilege_type = 'SELECT' and grantee <> relowner
    loop
        execute 'grant select on api_key_feed to ' || reader;
    end loop;
end
$$;

-- Without the row no change of a key could be announced, and so none could be made.
create function api_key_feed_stay() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    raise exception '% of api_key_feed is refused: changes of keys are announced by its row',
        lower(tg_op)
        using errcode = 'TK002';
end
$$;

revoke all on function api_key_feed_stay() from public;

create trigger api_key_feed_stay before delete on api_key_feed
for each row execute function api_key_feed_stay();

create trigger api_key_feed_stay_truncate before truncate on api_key_feed
for each statement execute function api_key_feed_stay();

-- Announces at commit: 'changed:' or 'created:' and an id, or 'everything'. A role that may read
-- api_key_feed may call it, for instance after a table was restored.
--
-- The parts of the digest are preceded by their lengths, so nothing can be appended. The table is
-- bound when the function is created: neither search_path nor the name of the schema matters.
create function api_key_announce(message text) returns void
language sql
begin atomic
    select pg_notify(
        (select channel from api_key_feed),
        signed.text || ':' || left(
            encode(
                sha256(
                    int8send(octet_length((select secret from api_key_feed))::bigint)
                    || (select secret from api_key_feed)
                    || int8send(octet_length(signed.text)::bigint)
                    || convert_to(signed.text, 'UTF8')
                ),
                'hex'
            ),
            32
        )
    )
    from (select 'v2:' || message || ':' || pg_current_xact_id()::text as text) as signed;
end;

-- As before, but for how it announces.
create or replace function api_keys_tell() returns trigger
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
            'with logged as (
                insert into %1$I.api_key_changes values ($1, ''0'', pg_current_xact_id())
                on conflict (key_id) do update set changed_in = excluded.changed_in
            )
            select %1$I.api_key_announce($2)',
            tg_table_schema
        ) using changed, case tg_op when 'TRUNCATE' then 'everything' else 'changed:' || changed end;
    end if;
    if created is not null then
        execute format(
            'with logged as (
                insert into %1$I.api_key_changes
                values ($1, pg_current_xact_id(), pg_current_xact_id())
                on conflict (key_id) do update
                set created_in = excluded.created_in, changed_in = excluded.changed_in
            )
            select %1$I.api_key_announce($2)',
            tg_table_schema
        ) using created, 'created:' || created;
    end if;
    return null;
end
$$;

create or replace function api_key_plans_tell() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    execute format(
        'with logged as (
            insert into %1$I.api_key_changes
            values (''00000000-0000-0000-0000-000000000000'', ''0'', pg_current_xact_id())
            on conflict (key_id) do update set changed_in = excluded.changed_in
        )
        select %1$I.api_key_announce(''everything'')',
        tg_table_schema
    );
    return null;
end
$$;

-- Webhooks: endpoints that are sent the audit, and events that time brings about.

-- One row per endpoint, with how far it has got.
create table api_key_webhooks (
    id uuid primary key,

    url text not null
        constraint api_key_webhooks_url_is_bounded check (octet_length(url) between 1 and 2048),

    -- Readable, because requests are signed with it. The previous one signs, too, until its end.
    secret bytea not null
        constraint api_key_webhooks_secret_is_bounded check (octet_length(secret) between 24 and 64),
    previous_secret bytea constraint api_key_webhooks_previous_secret_is_bounded
        check (octet_length(previous_secret) between 24 and 64),
    previous_until timestamptz,

    -- Types of events, separated by spaces. null: all of them.
    events text
        constraint api_key_webhooks_events_are_bounded check (octet_length(events) between 1 and 2048),

    -- Events of api_key_events up to this id were delivered, or are not for this endpoint.
    delivered_to bigint not null,

    state text not null default 'active' constraint api_key_webhooks_state_is_known
        check (state in ('active', 'parked', 'unsubscribed')),
    failures integer not null default 0
        constraint api_key_webhooks_failures_count_from_0 check (failures >= 0),
    next_attempt_at timestamptz,
    last_error text
        constraint api_key_webhooks_last_error_is_bounded check (octet_length(last_error) <= 512),
    last_delivered_at timestamptz,
    created_at timestamptz not null default clock_timestamp(),

    -- Each change takes the next: of two workers with the same row, one changes it.
    version bigint not null default 1
);

-- Which node delivers. Times of the database, as nodes' clocks differ.
create table api_key_webhook_lease (
    id smallint primary key default 1
        constraint api_key_webhook_lease_has_one_row check (id = 1),
    holder uuid not null default '00000000-0000-0000-0000-000000000000',
    expires_at timestamptz not null default 'epoch'
);

insert into api_key_webhook_lease default values;

-- Which keys an event was written for that must not be written again, and what it was about.
create table api_key_notices (
    key_id uuid not null,
    notice text not null,
    about timestamptz not null,
    primary key (key_id, notice)
);

-- How far each search for such keys has got.
create table api_key_notice_positions (
    notice text primary key,
    at timestamptz not null,
    key_id uuid not null
);

-- Keys that were used for the first time, until the event is written.
create table api_key_first_uses (
    key_id uuid primary key
);

revoke all on
    api_key_webhooks, api_key_webhook_lease, api_key_notices, api_key_notice_positions,
    api_key_first_uses
from public;

-- Roles that may change keys may deliver their events.
do $$
declare
    writer text;
begin
    for writer in
        select distinct quote_ident(rolname)
        from pg_class
        cross join aclexplode(relacl) as granted
        join pg_roles on pg_roles.oid = grantee
        where pg_class.oid = 'api_keys'::regclass
            and privilege_type = 'UPDATE' and grantee <> relowner
    loop
        execute 'grant select, insert, update, delete on
            api_key_webhooks, api_key_notices, api_key_notice_positions, api_key_first_uses
            to ' || writer;
        execute 'grant select, update on api_key_webhook_lease to ' || writer;
    end loop;
end
$$;

-- The first row of a key in api_key_usage is its first use. Nothing is kept without an endpoint.
-- With the rights of its owner and beside its table, as `api_keys_tell`.
create function api_key_usage_begins() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    execute format(
        'insert into %1$I.api_key_first_uses (key_id)
        select $1 where exists (select from %1$I.api_key_webhooks)
        on conflict do nothing',
        tg_table_schema
    ) using new.key_id;
    return null;
end
$$;

revoke all on function api_key_usage_begins() from public;

create trigger api_key_usage_begins after insert on api_key_usage
for each row execute function api_key_usage_begins();

-- What was noticed of a key ends with it.
create function api_keys_unnotice() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'TRUNCATE' then
        execute format('truncate %1$I.api_key_notices, %1$I.api_key_first_uses', tg_table_schema);
    else
        execute format(
            'delete from %I.api_key_notices where key_id in (select id from removed)',
            tg_table_schema
        );
    end if;
    return null;
end
$$;

revoke all on function api_keys_unnotice() from public;

create trigger api_keys_unnotice_delete after delete on api_keys
referencing old table as removed
for each statement execute function api_keys_unnotice();

create trigger api_keys_unnotice_truncate after truncate on api_keys
for each statement execute function api_keys_unnotice();

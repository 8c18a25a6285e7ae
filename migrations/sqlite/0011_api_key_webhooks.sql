-- Webhooks: endpoints that are sent the audit, and events that time brings about.

-- One row per endpoint, with how far it has got.
create table api_key_webhooks (
    id blob primary key not null check (length(id) = 16),
    url text not null check (length(cast(url as blob)) between 1 and 2048),

    -- Readable, because requests are signed with it. The previous one signs, too, until its end.
    secret blob not null check (length(secret) between 24 and 64),
    previous_secret blob check (length(previous_secret) between 24 and 64),
    previous_until integer,

    -- Types of events, separated by spaces. null: all of them.
    events text check (length(cast(events as blob)) between 1 and 2048),

    -- Events of api_key_events up to this id were delivered, or are not for this endpoint.
    delivered_to integer not null,

    state text not null default 'active' check (state in ('active', 'parked', 'unsubscribed')),
    failures integer not null default 0 check (failures >= 0),
    next_attempt_at integer,
    last_error text check (length(cast(last_error as blob)) <= 512),
    last_delivered_at integer,
    created_at integer not null
        default (cast(round(unixepoch('now', 'subsec') * 1000) as integer) * 1000),

    -- Each change takes the next: of two workers with the same row, one changes it.
    version integer not null default 1
) strict, without rowid;

-- Which process delivers.
create table api_key_webhook_lease (
    id integer primary key default 1 check (id = 1),
    holder blob not null default (zeroblob(16)) check (length(holder) = 16),
    expires_at integer not null default 0
) strict;

insert into api_key_webhook_lease default values;

-- Which keys an event was written for that must not be written again, and what it was about.
create table api_key_notices (
    key_id blob not null check (length(key_id) = 16),
    notice text not null,
    about integer not null,
    primary key (key_id, notice)
) strict, without rowid;

-- How far each search for such keys has got.
create table api_key_notice_positions (
    notice text primary key not null,
    at integer not null,
    key_id blob not null check (length(key_id) = 16)
) strict, without rowid;

-- Keys that were used for the first time, until the event is written.
create table api_key_first_uses (
    key_id blob primary key not null check (length(key_id) = 16)
) strict, without rowid;

-- The first row of a key in api_key_usage is its first use. Nothing is kept without an endpoint.
create trigger api_key_usage_begins after insert on api_key_usage
when exists (select 1 from api_key_webhooks)
begin
    insert into api_key_first_uses (key_id) values (new.key_id) on conflict do nothing;
end;

-- What was noticed of a key ends with it.
create trigger api_keys_unnotice_delete after delete on api_keys begin
    delete from api_key_notices where key_id = old.id;
end;

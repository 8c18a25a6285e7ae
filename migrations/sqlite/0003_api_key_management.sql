-- What listing, changing and auditing keys takes.

-- When a key was replaced by another. It goes on working until it expires.
alter table api_keys add column rotated_at integer;

-- Pages of keys are read along an index in the order of their ids. Each of these is for one
-- question.
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

-- Which keys have a scope, in the order of their ids. `insert or replace` leaves rows behind here:
-- whoever reads it asks the key as well.
create table api_key_scopes (
    scope text not null,
    key_id blob not null check (length(key_id) = 16),
    primary key (scope, key_id)
) strict, without rowid;

insert into api_key_scopes (scope, key_id)
select distinct scope.value, api_keys.id from api_keys, json_each(api_keys.scopes) as scope;

create trigger api_keys_follow_insert after insert on api_keys begin
    insert into api_key_scopes (scope, key_id)
    select distinct value, new.id
    from json_each(iif(json_valid(new.scopes), new.scopes, '[]')) where type = 'text'
    on conflict do nothing;
end;

create trigger api_keys_follow_update after update of id, scopes on api_keys
when old.id is not new.id or old.scopes is not new.scopes
begin
    delete from api_key_scopes
    where key_id = old.id and scope in (
        select value from json_each(iif(json_valid(old.scopes), old.scopes, '[]'))
    );
    insert into api_key_scopes (scope, key_id)
    select distinct value, new.id
    from json_each(iif(json_valid(new.scopes), new.scopes, '[]')) where type = 'text'
    on conflict do nothing;
end;

-- The use of a key ends with it.
create trigger api_keys_follow_delete after delete on api_keys begin
    delete from api_key_scopes
    where key_id = old.id and scope in (
        select value from json_each(iif(json_valid(old.scopes), old.scopes, '[]'))
    );
    delete from api_key_usage where key_id = old.id;
end;

delete from api_key_usage
where not exists (select 1 from api_keys where api_keys.id = api_key_usage.key_id);

-- Who did what to which key, in the transaction that did it. It names keys that may be deleted.
-- AUTOINCREMENT, so that no number is given twice.
create table api_key_events (
    id integer primary key autoincrement,
    at integer not null
        default (cast(round(unixepoch('now', 'subsec') * 1000) as integer) * 1000),
    action text not null,
    key_id blob check (length(key_id) = 16),
    consumer_id text,
    actor text not null,
    origin text,
    reason text,
    changes text check (json_valid(changes) and json_type(changes) = 'object')
) strict;

create index api_key_events_of_key on api_key_events (key_id, id);
create index api_key_events_of_consumer on api_key_events (consumer_id, id);

-- An audit that could be edited would prove nothing.
create trigger api_key_events_stay_update before update on api_key_events begin
    select raise(abort, 'update of api_key_events is refused: the audit is append-only');
end;

create trigger api_key_events_stay_delete before delete on api_key_events begin
    select raise(abort, 'delete of api_key_events is refused: the audit is append-only');
end;

-- `insert or replace` deletes without firing a trigger for it.
create trigger api_key_events_stay_replace before insert on api_key_events
when exists (select 1 from api_key_events where id = new.id)
begin
    select raise(abort, 'replacement in api_key_events is refused: the audit is append-only');
end;

-- Requests that were carried out, so that one which is sent again is not carried out again.
create table api_key_requests (
    -- A digest: what clients call their requests is theirs.
    request blob not null primary key check (length(request) = 32),
    fingerprint blob not null check (length(fingerprint) = 32),
    key_id blob not null check (length(key_id) = 16),
    at integer not null
        default (cast(round(unixepoch('now', 'subsec') * 1000) as integer) * 1000)
) strict, without rowid;

-- Serves who sweeps.
create index api_key_requests_by_time on api_key_requests (at);

-- Deleting a key is one thing, bringing it back to life another.
create trigger api_keys_stay_revoked before update of revoked_at on api_keys
when old.revoked_at is not null and new.revoked_at is not old.revoked_at
begin
    select raise(abort, 'the key is revoked, and a revocation is for good: issue another key');
end;

-- `insert or replace` and `update or replace` would put another key in the place of a revoked one.
create trigger api_keys_stay_revoked_on_insert before insert on api_keys
when exists (
    select 1 from api_keys
    where id = new.id and revoked_at is not null
    union all
    select 1 from api_keys
    where key_hash = new.key_hash and revoked_at is not null
)
begin
    select raise(abort, 'the key is revoked, and a revocation is for good: issue another key');
end;

create trigger api_keys_stay_revoked_on_update before update of id, key_hash on api_keys
when exists (
    select 1 from api_keys
    where id = new.id and id is not old.id and revoked_at is not null
    union all
    select 1 from api_keys
    where key_hash = new.key_hash and id is not old.id and revoked_at is not null
)
begin
    select raise(abort, 'the key is revoked, and a revocation is for good: issue another key');
end;

-- Answers to a key that was rotated say so: whoever caches it is told.
drop trigger api_keys_tell_update;
create trigger api_keys_tell_update after update on api_keys
when old.id is not new.id
    or old.key_hash is not new.key_hash
    or old.consumer_id is not new.consumer_id
    or old.name is not new.name
    or old.scopes is not new.scopes
    or old.rate_limits is not new.rate_limits
    or old.metadata is not new.metadata
    or old.is_active is not new.is_active
    or old.not_before is not new.not_before
    or old.expires_at is not new.expires_at
    or old.revoked_at is not new.revoked_at
    or old.rotated_at is not new.rotated_at
    or old.root_id is not new.root_id
begin
    insert into api_key_changes (key_id, created_in, changed_in)
    select old.id, 0, latest + 1
    from (select coalesce(max(changed_in), 0) as latest from api_key_changes) where true
    on conflict (key_id) do update set changed_in = excluded.changed_in;
end;

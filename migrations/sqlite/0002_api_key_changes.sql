-- When a key was last changed, for those who cache it: one row per key, which each change replaces,
-- so there is nothing to purge. Deleted keys keep theirs.
--
-- Changes are numbered. Writers take turns, so numbers are committed in order.
create table api_key_changes (
    key_id blob not null primary key check (length(key_id) = 16),

    -- Which change inserted the key, or gave it a new hash. 0: one before this table was.
    created_in integer not null,

    -- Which change was the last.
    changed_in integer not null
) strict, without rowid;

-- Serves who polls: everything from a change on. And its end is the latest number.
create index api_key_changes_by_number on api_key_changes (changed_in);

create trigger api_keys_tell_insert after insert on api_keys begin
    insert into api_key_changes (key_id, created_in, changed_in)
    select new.id, latest + 1, latest + 1
    from (select coalesce(max(changed_in), 0) as latest from api_key_changes) where true
    on conflict (key_id) do update
    set created_in = excluded.created_in, changed_in = excluded.changed_in;
end;

-- `insert or replace` deletes the key that has the hash without firing a trigger for it.
create trigger api_keys_tell_replace before insert on api_keys begin
    insert into api_key_changes (key_id, created_in, changed_in)
    select id, 0, latest + 1
    from api_keys, (select coalesce(max(changed_in), 0) as latest from api_key_changes)
    where key_hash = new.key_hash and id <> new.id
    on conflict (key_id) do update set changed_in = excluded.changed_in;
end;

-- So does `update or replace`.
create trigger api_keys_tell_replace_by_update before update of key_hash on api_keys begin
    insert into api_key_changes (key_id, created_in, changed_in)
    select id, 0, latest + 1
    from api_keys, (select coalesce(max(changed_in), 0) as latest from api_key_changes)
    where key_hash = new.key_hash and id <> old.id
    on conflict (key_id) do update set changed_in = excluded.changed_in;
end;

create trigger api_keys_tell_delete after delete on api_keys begin
    insert into api_key_changes (key_id, created_in, changed_in)
    select old.id, 0, latest + 1
    from (select coalesce(max(changed_in), 0) as latest from api_key_changes) where true
    on conflict (key_id) do update set changed_in = excluded.changed_in;
end;

-- What matters to a request that presents the key. The rest is for people.
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
    or old.root_id is not new.root_id
begin
    insert into api_key_changes (key_id, created_in, changed_in)
    select old.id, 0, latest + 1
    from (select coalesce(max(changed_in), 0) as latest from api_key_changes) where true
    on conflict (key_id) do update set changed_in = excluded.changed_in;
end;

-- A key of another id or hash is another key.
create trigger api_keys_tell_rename after update of id, key_hash on api_keys
when old.id is not new.id or old.key_hash is not new.key_hash
begin
    insert into api_key_changes (key_id, created_in, changed_in)
    select new.id, latest + 1, latest + 1
    from (select coalesce(max(changed_in), 0) as latest from api_key_changes) where true
    on conflict (key_id) do update
    set created_in = excluded.created_in, changed_in = excluded.changed_in;
end;

-- Limits that many keys share: a key names its plan. To change a plan is to change one row here.
create table api_key_plans (
    -- Of the same characters as the name of a quota.
    name text not null primary key
        check (length(name) between 1 and 64 and name not glob '*[^A-Za-z0-9._-]*'),

    -- As those of a key. An empty list: no limit, on purpose.
    rate_limits text not null check (json_valid(rate_limits) and json_type(rate_limits) = 'array'),

    updated_at integer not null
        default (cast(round(unixepoch('now', 'subsec') * 1000) as integer) * 1000)
) strict, without rowid;

-- Nobody knows which keys have a plan, nor wants to tell them one by one: everything is told, which
-- in the log is the id of 16 zeros.
create trigger api_key_plans_tell_insert after insert on api_key_plans begin
    insert into api_key_changes (key_id, created_in, changed_in)
    select zeroblob(16), 0, latest + 1
    from (select coalesce(max(changed_in), 0) as latest from api_key_changes) where true
    on conflict (key_id) do update set changed_in = excluded.changed_in;
end;

create trigger api_key_plans_tell_update after update on api_key_plans
when old.name is not new.name or old.rate_limits is not new.rate_limits
begin
    insert into api_key_changes (key_id, created_in, changed_in)
    select zeroblob(16), 0, latest + 1
    from (select coalesce(max(changed_in), 0) as latest from api_key_changes) where true
    on conflict (key_id) do update set changed_in = excluded.changed_in;
end;

create trigger api_key_plans_tell_delete after delete on api_key_plans begin
    insert into api_key_changes (key_id, created_in, changed_in)
    select zeroblob(16), 0, latest + 1
    from (select coalesce(max(changed_in), 0) as latest from api_key_changes) where true
    on conflict (key_id) do update set changed_in = excluded.changed_in;
end;

-- null: none. Not a foreign key: services may define plans of their own.
alter table api_keys add column plan text
    check (length(plan) between 1 and 64 and plan not glob '*[^A-Za-z0-9._-]*');

-- A key of another plan has other limits: whoever caches it is told.
drop trigger api_keys_tell_update;
create trigger api_keys_tell_update after update on api_keys
when old.id is not new.id
    or old.key_hash is not new.key_hash
    or old.consumer_id is not new.consumer_id
    or old.name is not new.name
    or old.scopes is not new.scopes
    or old.rate_limits is not new.rate_limits
    or old.plan is not new.plan
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

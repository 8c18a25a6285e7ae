-- The audit of changes that are made in SQL.
--
-- The library writes its own lines in the transaction of the change, and marks that transaction: it
-- writes a row here when it begins and takes it out before it commits, so that no reader ever sees one
-- and a transaction that ends early leaves none. A row that was put here by hand silences the audit of
-- SQL until the library's next transaction, which takes that out, too.
create table api_key_audited (
    transaction_is integer not null
) strict;

-- Every key that is changed gets its line: what was different, from what to what, and of the hash only
-- that it is another one. SQLite knows no users: the actor is `sql`.
create trigger api_keys_audit_insert after insert on api_keys
when not exists (select 1 from api_key_audited)
begin
    insert into api_key_events (action, key_id, consumer_id, actor, changes)
    select 'imported', new.id, new.consumer_id, 'sql', json_group_object(field, json_object('to', json(value)))
    from (
        select null as field, null as value where false
        union all
        select 'name', json_quote(new.name) where new.name is not null
        union all
        select 'scopes', iif(json_valid(new.scopes), json(new.scopes), json_quote(new.scopes)) where new.scopes is not null
        union all
        select 'rate_limits', iif(json_valid(new.rate_limits), json(new.rate_limits), json_quote(new.rate_limits)) where new.rate_limits is not null
        union all
        select 'plan', json_quote(new.plan) where new.plan is not null
        union all
        select 'metadata', iif(json_valid(new.metadata), json(new.metadata), json_quote(new.metadata)) where new.metadata is not null
        union all
        select 'is_active', json(iif(new.is_active, 'true', 'false')) where new.is_active is not null
        union all
        select 'created_by', json_quote(new.created_by) where new.created_by is not null
        union all
        select 'not_before', json_quote(strftime('%Y-%m-%dT%H:%M:%fZ', new.not_before / 1e6, 'unixepoch')) where new.not_before is not null
        union all
        select 'expires_at', json_quote(strftime('%Y-%m-%dT%H:%M:%fZ', new.expires_at / 1e6, 'unixepoch')) where new.expires_at is not null
        union all
        select 'revoked_at', json_quote(strftime('%Y-%m-%dT%H:%M:%fZ', new.revoked_at / 1e6, 'unixepoch')) where new.revoked_at is not null
        union all
        select 'revoked_reason', json_quote(new.revoked_reason) where new.revoked_reason is not null
        union all
        select 'rotated_from', json_quote(iif(new.rotated_from is null, null, lower(hex(new.rotated_from)))) where new.rotated_from is not null
        union all
        select 'rotated_at', json_quote(strftime('%Y-%m-%dT%H:%M:%fZ', new.rotated_at / 1e6, 'unixepoch')) where new.rotated_at is not null
        union all
        select 'key_prefix', json_quote(new.key_prefix) where new.key_prefix is not null
    );
end;

create trigger api_keys_audit_update after update on api_keys
when not exists (select 1 from api_key_audited)
begin
    insert into api_key_events (action, key_id, consumer_id, actor, changes)
    select
        iif(old.revoked_at is null and new.revoked_at is not null, 'revoked', 'updated'),
        old.id, old.consumer_id, 'sql',
        json_group_object(field, json(difference))
    from (
        select field, json_object('from', json(before), 'to', json(after)) as difference
        from (
            select null as field, null as before, null as after where false
            union all
        select 'consumer_id', json_quote(old.consumer_id), json_quote(new.consumer_id)
        where old.consumer_id is not new.consumer_id
        union all
        select 'name', json_quote(old.name), json_quote(new.name)
        where old.name is not new.name
        union all
        select 'scopes', iif(json_valid(old.scopes), json(old.scopes), json_quote(old.scopes)), iif(json_valid(new.scopes), json(new.scopes), json_quote(new.scopes))
        where old.scopes is not new.scopes
        union all
        select 'rate_limits', iif(json_valid(old.rate_limits), json(old.rate_limits), json_quote(old.rate_limits)), iif(json_valid(new.rate_limits), json(new.rate_limits), json_quote(new.rate_limits))
        where old.rate_limits is not new.rate_limits
        union all
        select 'plan', json_quote(old.plan), json_quote(new.plan)
        where old.plan is not new.plan
        union all
        select 'metadata', iif(json_valid(old.metadata), json(old.metadata), json_quote(old.metadata)), iif(json_valid(new.metadata), json(new.metadata), json_quote(new.metadata))
        where old.metadata is not new.metadata
        union all
        select 'is_active', json(iif(old.is_active, 'true', 'false')), json(iif(new.is_active, 'true', 'false'))
        where old.is_active is not new.is_active
        union all
        select 'created_by', json_quote(old.created_by), json_quote(new.created_by)
        where old.created_by is not new.created_by
        union all
        select 'not_before', json_quote(strftime('%Y-%m-%dT%H:%M:%fZ', old.not_before / 1e6, 'unixepoch')), json_quote(strftime('%Y-%m-%dT%H:%M:%fZ', new.not_before / 1e6, 'unixepoch'))
        where old.not_before is not new.not_before
        union all
        select 'expires_at', json_quote(strftime('%Y-%m-%dT%H:%M:%fZ', old.expires_at / 1e6, 'unixepoch')), json_quote(strftime('%Y-%m-%dT%H:%M:%fZ', new.expires_at / 1e6, 'unixepoch'))
        where old.expires_at is not new.expires_at
        union all
        select 'revoked_at', json_quote(strftime('%Y-%m-%dT%H:%M:%fZ', old.revoked_at / 1e6, 'unixepoch')), json_quote(strftime('%Y-%m-%dT%H:%M:%fZ', new.revoked_at / 1e6, 'unixepoch'))
        where old.revoked_at is not new.revoked_at
        union all
        select 'revoked_reason', json_quote(old.revoked_reason), json_quote(new.revoked_reason)
        where old.revoked_reason is not new.revoked_reason
        union all
        select 'rotated_from', json_quote(iif(old.rotated_from is null, null, lower(hex(old.rotated_from)))), json_quote(iif(new.rotated_from is null, null, lower(hex(new.rotated_from))))
        where old.rotated_from is not new.rotated_from
        union all
        select 'rotated_at', json_quote(strftime('%Y-%m-%dT%H:%M:%fZ', old.rotated_at / 1e6, 'unixepoch')), json_quote(strftime('%Y-%m-%dT%H:%M:%fZ', new.rotated_at / 1e6, 'unixepoch'))
        where old.rotated_at is not new.rotated_at
        union all
        select 'key_prefix', json_quote(old.key_prefix), json_quote(new.key_prefix)
        where old.key_prefix is not new.key_prefix
        union all
        select 'key_last4', json_quote(old.key_last4), json_quote(new.key_last4)
        where old.key_last4 is not new.key_last4
        union all
        select 'created_at', json_quote(strftime('%Y-%m-%dT%H:%M:%fZ', old.created_at / 1e6, 'unixepoch')), json_quote(strftime('%Y-%m-%dT%H:%M:%fZ', new.created_at / 1e6, 'unixepoch'))
        where old.created_at is not new.created_at
        union all
        select 'root_id', json_quote(lower(hex(old.root_id))), json_quote(lower(hex(new.root_id)))
        where old.root_id is not new.root_id
        )
        union all
        select 'key_hash', '{"to":"another hash"}' where old.key_hash is not new.key_hash
        union all
        select 'id', '{"to":"another id"}' where old.id is not new.id
    )
    having count(*) > 0;

    -- A key of another id is another key.
    insert into api_key_events (action, key_id, consumer_id, actor, changes)
    select 'imported', new.id, new.consumer_id, 'sql', '{"id":{"from":"another id"}}'
    where old.id is not new.id;
end;

create trigger api_keys_audit_delete after delete on api_keys
when not exists (select 1 from api_key_audited)
begin
    insert into api_key_events (action, key_id, consumer_id, actor)
    values ('deleted', old.id, old.consumer_id, 'sql');
end;

-- `insert or replace` and `update or replace` delete keys without firing a trigger for it, and a
-- trigger before them does not know whether it will come to that: `or ignore` and `on conflict` look the
-- same. What would be replaced is noted before, and written down after.
create table api_key_replaced (
    id blob not null,
    consumer_id text not null
) strict;

create trigger api_keys_audit_replace before insert on api_keys
when not exists (select 1 from api_key_audited)
begin
    delete from api_key_replaced;
    insert into api_key_replaced (id, consumer_id)
    select id, consumer_id from api_keys where id = new.id
    union
    select id, consumer_id from api_keys where key_hash = new.key_hash;
end;

create trigger api_keys_audit_replaced after insert on api_keys
when not exists (select 1 from api_key_audited) and exists (select 1 from api_key_replaced)
begin
    insert into api_key_events (action, key_id, consumer_id, actor, reason)
    select 'deleted', id, consumer_id, 'sql', 'replaced by another row' from api_key_replaced;
    delete from api_key_replaced;
end;

create trigger api_keys_audit_replace_by_update before update of id, key_hash on api_keys
when not exists (select 1 from api_key_audited)
begin
    delete from api_key_replaced;
    insert into api_key_replaced (id, consumer_id)
    select id, consumer_id from api_keys where id = new.id and id is not old.id
    union
    select id, consumer_id from api_keys where key_hash = new.key_hash and id is not old.id;
end;

create trigger api_keys_audit_replaced_by_update after update of id, key_hash on api_keys
when not exists (select 1 from api_key_audited) and exists (select 1 from api_key_replaced)
begin
    insert into api_key_events (action, key_id, consumer_id, actor, reason)
    select 'deleted', id, consumer_id, 'sql', 'replaced by another row' from api_key_replaced;
    delete from api_key_replaced;
end;

create trigger api_key_plans_audit_insert after insert on api_key_plans
when not exists (select 1 from api_key_audited)
begin
    insert into api_key_events (action, actor, changes)
    values ('plan_created', 'sql', json_object(
        'name', json_object('to', new.name),
        'rate_limits', json_object('to', json(new.rate_limits))
    ));
end;

create trigger api_key_plans_audit_update after update on api_key_plans
when not exists (select 1 from api_key_audited) and (old.name is not new.name or old.rate_limits is not new.rate_limits)
begin
    insert into api_key_events (action, actor, changes)
    values ('plan_updated', 'sql', json_object(
        'name', json_object('from', old.name, 'to', new.name),
        'rate_limits', json_object('from', json(old.rate_limits), 'to', json(new.rate_limits))
    ));
end;

create trigger api_key_plans_audit_delete after delete on api_key_plans
when not exists (select 1 from api_key_audited)
begin
    insert into api_key_events (action, actor, changes)
    values ('plan_removed', 'sql', json_object(
        'name', json_object('from', old.name),
        'rate_limits', json_object('from', json(old.rate_limits))
    ));
end;

-- Canary keys are always refused, and their use is written down.

-- SQLite cannot change a constraint: the columns are replaced, with all triggers that name them.
drop trigger api_keys_tell_update;
drop trigger api_keys_succeed;
drop trigger api_keys_audit_insert;
drop trigger api_keys_audit_replaced;
drop trigger api_keys_audit_update;
drop trigger api_keys_audit_replaced_by_update;

alter table api_keys add column new_kind text not null default 'secret'
    check (new_kind in ('secret', 'publishable', 'canary'));

-- null: none. The web origins that a publishable key works for.
alter table api_keys add column new_origins text
    check (json_valid(new_origins) and json_type(new_origins) = 'array'
        and json_array_length(new_origins) between 1 and 32)
    check ((new_kind = 'publishable') = (new_origins is not null));

update api_keys set new_kind = kind, new_origins = origins where kind <> 'secret';

alter table api_keys drop column origins;
alter table api_keys drop column kind;
alter table api_keys rename column new_kind to kind;
alter table api_keys rename column new_origins to origins;

-- As before, of the new columns.
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
    or old.networks is not new.networks
    or old.tags is not new.tags
    or old.origins is not new.origins
    or old.kind is not new.kind
begin
    insert into api_key_changes (key_id, created_in, changed_in)
    select old.id, 0, latest + 1
    from (select coalesce(max(changed_in), 0) as latest from api_key_changes) where true
    on conflict (key_id) do update set changed_in = excluded.changed_in;
end;

-- During a rolling upgrade, a release that does not know a column rotates keys, too. A key that
-- replaces another one must not work from more places, nor let in whom the other did not.
create trigger api_keys_succeed after insert on api_keys
when new.rotated_from is not null and new.networks is null and new.origins is null
    and new.kind = 'secret'
begin
    update api_keys
    set networks = before.networks, tags = coalesce(new.tags, before.tags),
        kind = before.kind, origins = before.origins
    from (
        select networks, tags, kind, origins from api_keys where id = new.rotated_from
    ) as before
    where id = new.id and (before.networks is not null or before.tags is not null
        or before.kind is not 'secret');
end;

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
        union all
        select 'networks', iif(json_valid(new.networks), json(new.networks), json_quote(new.networks)) where new.networks is not null
        union all
        select 'tags', iif(json_valid(new.tags), json(new.tags), json_quote(new.tags)) where new.tags is not null
        union all
        select 'origins', iif(json_valid(new.origins), json(new.origins), json_quote(new.origins)) where new.origins is not null
        union all
        select 'kind', json_quote(new.kind) where new.kind is not null
    );
end;

-- Triggers created later fire earlier, and the deletion of a row precedes the one that replaces it.
create trigger api_keys_audit_replaced after insert on api_keys
when not exists (select 1 from api_key_audited) and exists (select 1 from api_key_replaced)
begin
    insert into api_key_events (action, key_id, consumer_id, actor, reason)
    select 'deleted', id, consumer_id, 'sql', 'replaced by another row' from api_key_replaced;
    delete from api_key_replaced;
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
        union all
        select 'networks', iif(json_valid(old.networks), json(old.networks), json_quote(old.networks)), iif(json_valid(new.networks), json(new.networks), json_quote(new.networks))
        where old.networks is not new.networks
        union all
        select 'tags', iif(json_valid(old.tags), json(old.tags), json_quote(old.tags)), iif(json_valid(new.tags), json(new.tags), json_quote(new.tags))
        where old.tags is not new.tags
        union all
        select 'origins', iif(json_valid(old.origins), json(old.origins), json_quote(old.origins)), iif(json_valid(new.origins), json(new.origins), json_quote(new.origins))
        where old.origins is not new.origins
        union all
        select 'kind', json_quote(old.kind), json_quote(new.kind)
        where old.kind is not new.kind
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

create trigger api_keys_audit_replaced_by_update after update of id, key_hash on api_keys
when not exists (select 1 from api_key_audited) and exists (select 1 from api_key_replaced)
begin
    insert into api_key_events (action, key_id, consumer_id, actor, reason)
    select 'deleted', id, consumer_id, 'sql', 'replaced by another row' from api_key_replaced;
    delete from api_key_replaced;
end;

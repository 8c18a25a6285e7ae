-- The audit of changes that are made in SQL, and fewer rights for PUBLIC.
--
-- The library writes its own lines in the transaction of the change, and marks that transaction
-- when it begins: the setting `tower_api_key.audited`, local to the transaction, holds the time at
-- which it began. A value that was set by accident, or for a session, is the time of no transaction
-- and silences nothing. It is a mark, not a lock: a role that may write the tables may set it.
--
-- Once for each statement, so that the library's own batches cost one comparison. With the rights of
-- its owner and beside its table, as `api_keys_tell`. Every key that a statement changes gets its line:
-- what was different, from what to what, and of the hash only that it is another one.
create function api_keys_audit() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set timezone = 'UTC'
as $$
begin
    if current_setting('tower_api_key.audited', true)
        is not distinct from extract(epoch from transaction_timestamp())::text
    then
        return null;
    end if;
    case tg_op
        when 'INSERT' then
            execute format(
                'insert into %I.api_key_events
                    (action, key_id, consumer_id, actor, origin, changes)
                select ''imported'', id, consumer_id, $1, $2, (
                    select jsonb_object_agg(name, jsonb_build_object(''to'', value))
                    from jsonb_each(to_jsonb(added) - array[
                        ''id'', ''key_hash'', ''key_last4'', ''consumer_id'', ''created_at'',
                        ''root_id'', ''version''
                    ]) as fields (name, value)
                    where value <> ''null''
                )
                from added order by id',
                tg_table_schema
            ) using 'sql:' || session_user, host(inet_client_addr());
        when 'UPDATE' then
            execute format(
                'insert into %I.api_key_events
                    (action, key_id, consumer_id, actor, origin, changes)
                select
                    case
                        when removed.revoked_at is null and added.revoked_at is not null
                        then ''revoked'' else ''updated''
                    end,
                    removed.id, removed.consumer_id, $1, $2, difference.changes
                from removed join added using (id),
                lateral (
                    select jsonb_object_agg(name, case name
                        when ''key_hash'' then ''{"to": "another hash"}''
                        else jsonb_build_object(''from'', before, ''to'', after)
                    end) as changes
                    from jsonb_each(to_jsonb(removed)) as before (name, before)
                    join jsonb_each(to_jsonb(added)) as after (name, after) using (name)
                    where before <> after and name <> ''version''
                ) as difference
                where difference.changes is not null
                order by id',
                tg_table_schema
            ) using 'sql:' || session_user, host(inet_client_addr());
            -- A key of another id is another key.
            execute format(
                'insert into %I.api_key_events
                    (action, key_id, consumer_id, actor, origin, changes)
                select ''deleted'', id, consumer_id, $1, $2, ''{"id": {"to": "another id"}}''::jsonb
                from removed where id not in (select id from added)
                union all
                select ''imported'', id, consumer_id, $1, $2, ''{"id": {"from": "another id"}}''::jsonb
                from added where id not in (select id from removed)',
                tg_table_schema
            ) using 'sql:' || session_user, host(inet_client_addr());
        when 'DELETE' then
            execute format(
                'insert into %I.api_key_events (action, key_id, consumer_id, actor, origin)
                select ''deleted'', id, consumer_id, $1, $2 from removed order by id',
                tg_table_schema
            ) using 'sql:' || session_user, host(inet_client_addr());
        when 'TRUNCATE' then
            execute format(
                'insert into %I.api_key_events (action, actor, origin, reason)
                values (''deleted'', $1, $2, ''truncate: every key is gone'')',
                tg_table_schema
            ) using 'sql:' || session_user, host(inet_client_addr());
    end case;
    return null;
end
$$;

create trigger api_keys_audit_insert after insert on api_keys
referencing new table as added
for each statement execute function api_keys_audit();

create trigger api_keys_audit_update after update on api_keys
referencing old table as removed new table as added
for each statement execute function api_keys_audit();

create trigger api_keys_audit_delete after delete on api_keys
referencing old table as removed
for each statement execute function api_keys_audit();

create trigger api_keys_audit_truncate after truncate on api_keys
for each statement execute function api_keys_audit();

-- The same for plans, of which there are few: row by row.
create function api_key_plans_audit() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    action constant text := case tg_op
        when 'INSERT' then 'plan_created' when 'UPDATE' then 'plan_updated' else 'plan_removed'
    end;
    before jsonb;
    after jsonb;
begin
    if current_setting('tower_api_key.audited', true)
        is not distinct from extract(epoch from transaction_timestamp())::text
    then
        return null;
    end if;
    if tg_op in ('UPDATE', 'DELETE') then
        before := to_jsonb(old);
    end if;
    if tg_op in ('INSERT', 'UPDATE') then
        after := to_jsonb(new);
    end if;
    execute format(
        'insert into %I.api_key_events (action, actor, origin, reason, changes)
        values ($1, $2, $3, $4, nullif(jsonb_strip_nulls($5), ''{}''))',
        tg_table_schema
    ) using
        action, 'sql:' || session_user, host(inet_client_addr()),
        case tg_op when 'TRUNCATE' then 'truncate: every plan is gone' end,
        jsonb_build_object(
            'name', nullif(jsonb_build_object(
                'from', before -> 'name', 'to', after -> 'name'
            ), '{"from": null, "to": null}'),
            'rate_limits', nullif(jsonb_build_object(
                'from', before -> 'rate_limits', 'to', after -> 'rate_limits'
            ), '{"from": null, "to": null}')
        );
    return null;
end
$$;

create trigger api_key_plans_audit after insert or delete on api_key_plans
for each row execute function api_key_plans_audit();

create trigger api_key_plans_audit_update after update on api_key_plans
for each row when (
    (old.name, old.rate_limits) is distinct from (new.name, new.rate_limits)
) execute function api_key_plans_audit();

create trigger api_key_plans_audit_truncate after truncate on api_key_plans
for each statement execute function api_key_plans_audit();

-- Default privileges may have given every role what these tables hold, and the right to write an
-- administrator's key into them. What named roles were given stays: `api-key doctor` tells of it.
revoke all on
    _api_key_migrations, api_keys, api_key_usage, api_key_changes, api_key_scopes, api_key_events,
    api_key_requests, api_key_plans
from public;

revoke all on function
    api_keys_tell(), api_keys_follow(), api_key_events_stay(), api_keys_stay_revoked(),
    api_key_plans_tell(), api_keys_audit(), api_key_plans_audit()
from public;

do $$
begin
    execute 'revoke all on sequence ' || pg_get_serial_sequence('api_key_events', 'id')
        || ' from public';
end
$$;

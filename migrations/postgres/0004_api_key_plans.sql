-- Limits that many keys share: a key names its plan. To change a plan is to change one row here.
create table api_key_plans (
    -- Of the same characters as the name of a quota.
    name text primary key
        constraint api_key_plans_name_is_plain check (name ~ '^[A-Za-z0-9._-]{1,64}$'),

    -- As those of a key. An empty list: no limit, on purpose.
    rate_limits jsonb not null
        constraint api_key_plans_rate_limits_are_a_list
            check (jsonb_typeof(rate_limits) = 'array'),

    updated_at timestamptz not null default clock_timestamp()
);

-- Every look-up of a key reads its plan as well: whoever may do the one has to be able to do the
-- other, or no key would be let in any more.
do $$
declare
    reader text;
begin
    for reader in
        select distinct case grantee when 0 then 'public' else quote_ident(rolname) end
        from pg_class
        cross join aclexplode(relacl) as granted
        left join pg_roles on pg_roles.oid = grantee
        where pg_class.oid = 'api_keys'::regclass
            and privilege_type = 'SELECT' and grantee <> relowner
            and (grantee = 0 or rolname is not null)
    loop
        execute 'grant select on api_key_plans to ' || reader;
    end loop;
end
$$;

-- Nobody knows which keys have a plan, nor wants to tell them one by one: everything is told. In
-- the log that is the zero UUID. With the rights of its owner and beside its table, as
-- `api_keys_tell`.
create function api_key_plans_tell() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    execute format(
        'insert into %I.api_key_changes
        values (''00000000-0000-0000-0000-000000000000'', ''0'', pg_current_xact_id())
        on conflict (key_id) do update set changed_in = excluded.changed_in',
        tg_table_schema
    );
    perform pg_notify('tower_api_key', 'v1:everything');
    return null;
end
$$;

revoke all on function api_key_plans_tell() from public;

create trigger api_key_plans_tell after insert or delete on api_key_plans
for each row execute function api_key_plans_tell();

create trigger api_key_plans_tell_update after update on api_key_plans
for each row when (
    (old.name, old.rate_limits) is distinct from (new.name, new.rate_limits)
) execute function api_key_plans_tell();

create trigger api_key_plans_tell_truncate after truncate on api_key_plans
for each statement execute function api_key_plans_tell();

-- null: none. Not a foreign key: services may define plans of their own.
alter table api_keys add column plan text;

-- Not valid, so that it is not held against a million keys while look-ups wait: none of them has a
-- plan. It holds for every row that is written from here on.
alter table api_keys
    add constraint api_keys_plan_is_plain check (plan ~ '^[A-Za-z0-9._-]{1,64}$') not valid;

-- A key of another plan has other limits: whoever caches it is told.
drop trigger api_keys_tell_update on api_keys;
create trigger api_keys_tell_update after update on api_keys
for each row when (
    (old.id, old.key_hash, old.consumer_id, old.name, old.scopes, old.rate_limits, old.plan,
        old.metadata, old.is_active, old.not_before, old.expires_at, old.revoked_at,
        old.rotated_at, old.root_id)
    is distinct from
    (new.id, new.key_hash, new.consumer_id, new.name, new.scopes, new.rate_limits, new.plan,
        new.metadata, new.is_active, new.not_before, new.expires_at, new.revoked_at,
        new.rotated_at, new.root_id)
) execute function api_keys_tell();

-- How often keys are used, by outcome: per hour, for the last weeks, and per day, for ever. Nodes add
-- to the rows in the statement that writes the last uses.
--
-- No foreign key: use outlives its key. The free space keeps updates on their page and out of the
-- indexes, since the row of the present hour is updated every few seconds.
create table api_key_usage_hourly (
    key_id uuid not null,

    -- The beginning of an hour.
    hour timestamptz not null,

    consumer_id text not null,
    admitted bigint not null,
    limited bigint not null,
    forbidden bigint not null,
    refused bigint not null,
    units bigint not null,
    primary key (key_id, hour)
) with (fillfactor = 70);

create index api_key_usage_hourly_of_consumer on api_key_usage_hourly (consumer_id, hour);

-- Serves totals, exports and pruning.
create index api_key_usage_hourly_by_hour on api_key_usage_hourly (hour, key_id);

create table api_key_usage_daily (
    key_id uuid not null,

    -- The beginning of a day in UTC.
    day timestamptz not null,

    consumer_id text not null,
    admitted bigint not null,
    limited bigint not null,
    forbidden bigint not null,
    refused bigint not null,
    units bigint not null,
    primary key (key_id, day)
) with (fillfactor = 70);

create index api_key_usage_daily_of_consumer on api_key_usage_daily (consumer_id, day);
create index api_key_usage_daily_by_day on api_key_usage_daily (day);

-- The last batch of each node, so that one which is sent again is not added again.
create table api_key_usage_writers (
    -- A random id of the node's process.
    writer uuid primary key,
    sequence bigint not null,
    at timestamptz not null default clock_timestamp()
);

revoke all on api_key_usage_hourly, api_key_usage_daily, api_key_usage_writers from public;

-- Roles have the rights that they have on the last uses. Days are kept.
do $$
declare
    role text;
    privilege text;
begin
    for role, privilege in
        select distinct quote_ident(rolname), privilege_type
        from pg_class
        cross join aclexplode(relacl) as granted
        join pg_roles on pg_roles.oid = grantee
        where pg_class.oid = 'api_key_usage'::regclass
            and privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE') and grantee <> relowner
    loop
        execute format(
            'grant %s on api_key_usage_hourly, api_key_usage_writers to %s', privilege, role
        );
        if privilege <> 'DELETE' then
            execute format('grant %s on api_key_usage_daily to %s', privilege, role);
        end if;
    end loop;
end
$$;

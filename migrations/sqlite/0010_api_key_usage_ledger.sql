-- How often keys are used, by outcome: per hour, for the last weeks, and per day, for ever. Nodes add
-- to the rows in the statement that writes the last uses. No foreign key: use outlives its key.
create table api_key_usage_hourly (
    key_id blob not null check (length(key_id) = 16),

    -- The beginning of an hour, in microseconds since 1970.
    hour integer not null,

    consumer_id text not null,
    admitted integer not null,
    limited integer not null,
    forbidden integer not null,
    refused integer not null,
    units integer not null,
    primary key (key_id, hour)
) strict, without rowid;

create index api_key_usage_hourly_of_consumer on api_key_usage_hourly (consumer_id, hour);

-- Serves totals, exports and pruning.
create index api_key_usage_hourly_by_hour on api_key_usage_hourly (hour, key_id);

create table api_key_usage_daily (
    key_id blob not null check (length(key_id) = 16),

    -- The beginning of a day in UTC, in microseconds since 1970.
    day integer not null,

    consumer_id text not null,
    admitted integer not null,
    limited integer not null,
    forbidden integer not null,
    refused integer not null,
    units integer not null,
    primary key (key_id, day)
) strict, without rowid;

create index api_key_usage_daily_of_consumer on api_key_usage_daily (consumer_id, day);
create index api_key_usage_daily_by_day on api_key_usage_daily (day);

-- The last batch of each process, so that one which is sent again is not added again.
create table api_key_usage_writers (
    -- A random id of the process.
    writer blob not null primary key check (length(writer) = 16),
    sequence integer not null,
    at integer not null
        default (cast(round(unixepoch('now', 'subsec') * 1000) as integer) * 1000)
) strict, without rowid;

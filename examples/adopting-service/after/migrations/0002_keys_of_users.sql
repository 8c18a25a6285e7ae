-- Keys end with their user, as before. The consumer of a key is the id of its user.
alter table keys.api_keys add column user_id bigint references users on delete cascade
    generated always as (case when consumer_id ~ '^[0-9]+$' then consumer_id::bigint end) stored;

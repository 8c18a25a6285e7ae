-- Where a key works from, what people find it by, and whether it is a secret.

-- null: from anywhere. A type that refuses what is not a network, and bits beyond its prefix.
alter table api_keys add column networks cidr[];

-- null: none. For people and for lists: tags grant nothing.
alter table api_keys add column tags text[];

-- null: none. The web origins that a publishable key works for.
alter table api_keys add column origins text[];

alter table api_keys add column kind text not null default 'secret';

-- Not valid, so that a million keys are not checked while look-ups wait: none of them has any of these.
-- Every row that is written from here on is checked. An empty list would be a second way of saying
-- "none".
alter table api_keys
    add constraint api_keys_networks_are_bounded check (
        array_ndims(networks) = 1 and cardinality(networks) between 1 and 64
        and array_position(networks, null) is null
    ) not valid,
    add constraint api_keys_tags_are_plain check (
        array_ndims(tags) = 1 and cardinality(tags) between 1 and 32
        and array_position(tags, null) is null
        -- No tag has a space, so that joined by spaces each can be told from the next.
        and strpos(array_to_string(tags, ''), ' ') = 0
        and array_to_string(tags, ' ')
            ~ '^[-!#$%&()*+./0-9:;<=>?@A-Z[\]^_a-z{|}~]{1,64}( [-!#$%&()*+./0-9:;<=>?@A-Z[\]^_a-z{|}~]{1,64})*$'
    ) not valid,
    add constraint api_keys_origins_are_plain check (
        array_ndims(origins) = 1 and cardinality(origins) between 1 and 32
        and array_position(origins, null) is null
        and strpos(array_to_string(origins, ''), ' ') = 0
        and array_to_string(origins, ' ') ~ '^[!-~]{1,255}( [!-~]{1,255})*$'
    ) not valid,
    add constraint api_keys_kind_is_known check (kind in ('secret', 'publishable')) not valid,
    add constraint api_keys_only_the_publishable_have_origins
        check ((kind = 'publishable') = (origins is not null)) not valid;

-- What matters to a request that presents the key, and what its handler sees: changes of it
-- invalidate caches.
drop trigger api_keys_tell_update on api_keys;
create trigger api_keys_tell_update after update on api_keys
for each row when (
    (old.id, old.key_hash, old.consumer_id, old.name, old.scopes, old.rate_limits, old.plan,
        old.metadata, old.is_active, old.not_before, old.expires_at, old.revoked_at,
        old.rotated_at, old.root_id, old.networks, old.tags, old.origins, old.kind)
    is distinct from
    (new.id, new.key_hash, new.consumer_id, new.name, new.scopes, new.rate_limits, new.plan,
        new.metadata, new.is_active, new.not_before, new.expires_at, new.revoked_at,
        new.rotated_at, new.root_id, new.networks, new.tags, new.origins, new.kind)
) execute function api_keys_tell();

-- During a rolling upgrade, a release that does not know these columns rotates keys, too. A key that
-- replaces another one must not work from more places. This release inserts the same values, so that
-- the trigger changes nothing.
create function api_keys_succeed() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    before record;
begin
    execute format(
        'select networks, tags, origins, kind from %I.api_keys where id = $1', tg_table_schema
    ) into before using new.rotated_from;
    if before.kind is not null then
        new.networks := coalesce(new.networks, before.networks);
        new.tags := coalesce(new.tags, before.tags);
        new.origins := coalesce(new.origins, before.origins);
        new.kind := before.kind;
    end if;
    return new;
end
$$;

revoke all on function api_keys_succeed() from public;

create trigger api_keys_succeed before insert on api_keys
for each row when (
    new.rotated_from is not null and new.networks is null and new.origins is null
        and new.kind = 'secret'
) execute function api_keys_succeed();

-- Which keys have a tag, in the order of their ids: an index of the array has no order.
create table api_key_tags (
    tag text not null,
    key_id uuid not null,
    primary key (tag, key_id)
);

revoke all on api_key_tags from public;

-- Roles that may search keys by scope may search them by tag.
do $$
declare
    reader text;
begin
    for reader in
        select distinct quote_ident(rolname)
        from pg_class
        cross join aclexplode(relacl) as granted
        join pg_roles on pg_roles.oid = grantee
        where pg_class.oid = 'api_key_scopes'::regclass
            and privilege_type = 'SELECT' and grantee <> relowner
    loop
        execute 'grant select on api_key_tags to ' || reader;
    end loop;
end
$$;

-- With the rights of its owner and beside its table, as `api_keys_tell`. Row by row, and only for keys
-- with tags: the others cost nothing.
create function api_keys_tag() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'TRUNCATE' then
        execute format('truncate %I.api_key_tags', tg_table_schema);
        return null;
    end if;
    if tg_op in ('UPDATE', 'DELETE') then
        execute format(
            'delete from %I.api_key_tags where key_id = $1 and tag = any($2)', tg_table_schema
        ) using old.id, old.tags;
    end if;
    if tg_op in ('INSERT', 'UPDATE') then
        execute format(
            'insert into %I.api_key_tags
            select distinct tag, $1 from unnest($2) as tag where tag is not null
            on conflict do nothing',
            tg_table_schema
        ) using new.id, new.tags;
    end if;
    return null;
end
$$;

revoke all on function api_keys_tag() from public;

create trigger api_keys_tag_insert after insert on api_keys
for each row when (new.tags is not null) execute function api_keys_tag();

create trigger api_keys_tag_update after update on api_keys
for each row when ((old.id, old.tags) is distinct from (new.id, new.tags))
execute function api_keys_tag();

create trigger api_keys_tag_delete after delete on api_keys
for each row when (old.tags is not null) execute function api_keys_tag();

create trigger api_keys_tag_truncate after truncate on api_keys
for each statement execute function api_keys_tag();

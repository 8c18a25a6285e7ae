-- The slow or salted hashes of keys that were imported from another system. A key keeps its own until
-- it is first used: it has moved when its hash in api_keys is that of the key.
--
-- No foreign key, so that `truncate api_keys` goes on working: triggers do what it would.
create table api_key_legacy_hashes (
    key_id uuid primary key,

    -- The part of the key by which a request finds the row. null: none.
    hint text constraint api_key_legacy_hashes_hint_is_bounded
        check (octet_length(hint) between 1 and 64),

    -- null: the key has moved.
    verifier text constraint api_key_legacy_hashes_verifier_is_bounded
        check (octet_length(verifier) between 1 and 512),

    -- SHA-256 of the verifier. It stays, so that another import of the verifier recognizes the key.
    digest bytea not null unique constraint api_key_legacy_hashes_digest_is_sha256
        check (octet_length(digest) = 32)
);

create index api_key_legacy_hashes_left on api_key_legacy_hashes (hint) where verifier is not null;

revoke all on api_key_legacy_hashes from public;

-- Roles that may change keys may move them.
do $$
declare
    writer text;
begin
    for writer in
        select distinct quote_ident(rolname)
        from pg_class
        cross join aclexplode(relacl) as granted
        join pg_roles on pg_roles.oid = grantee
        where pg_class.oid = 'api_keys'::regclass
            and privilege_type = 'UPDATE' and grantee <> relowner
    loop
        execute 'grant select, insert, update on api_key_legacy_hashes to ' || writer;
    end loop;
end
$$;

-- With the rights of its owner and beside its table, as `api_keys_tell`.
create function api_keys_legacy() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_op = 'TRUNCATE' then
        execute format('truncate %I.api_key_legacy_hashes', tg_table_schema);
    else
        execute format(
            'delete from %I.api_key_legacy_hashes where key_id in (select id from removed)',
            tg_table_schema
        );
    end if;
    return null;
end
$$;

revoke all on function api_keys_legacy() from public;

create trigger api_keys_legacy_delete after delete on api_keys
referencing old table as removed
for each statement execute function api_keys_legacy();

create trigger api_keys_legacy_truncate after truncate on api_keys
for each statement execute function api_keys_legacy();

-- The slow or salted hashes of keys that were imported from another system. A key keeps its own until
-- it is first used: it has moved when its hash in api_keys is that of the key.
create table api_key_legacy_hashes (
    key_id blob primary key not null check (length(key_id) = 16),

    -- The part of the key by which a request finds the row. null: none.
    hint text check (length(cast(hint as blob)) between 1 and 64),

    -- null: the key has moved.
    verifier text check (length(cast(verifier as blob)) between 1 and 512),

    -- SHA-256 of the verifier. It stays, so that another import of the verifier recognizes the key.
    digest blob not null unique check (length(digest) = 32)
) strict, without rowid;

create index api_key_legacy_hashes_left on api_key_legacy_hashes (hint) where verifier is not null;

-- Not a foreign key: most programs that open the file do not enforce them.
create trigger api_keys_legacy_delete after delete on api_keys begin
    delete from api_key_legacy_hashes where key_id = old.id;
end;

-- What bounds on the keys of a consumer take: how many are live, and how often one was rotated.

-- Keys without an expiry, and those whose expiry is still to come, are a range each.
create index api_keys_live_by_expiry on api_keys (consumer_id, expires_at) where revoked_at is null;

-- Few keys replace another one.
create index api_keys_of_root on api_keys (root_id, created_at) where rotated_from is not null;

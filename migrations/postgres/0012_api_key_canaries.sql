-- Canary keys are always refused, and their use is written down.

-- Not valid, so that a million keys are not checked while look-ups wait: each has a kind of the
-- constraint that this one replaces.
alter table api_keys
    drop constraint api_keys_kind_is_known,
    add constraint api_keys_kind_is_known
        check (kind in ('secret', 'publishable', 'canary')) not valid;

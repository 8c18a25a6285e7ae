create table users (
    id bigint primary key,
    email text not null unique
);

create table projects (
    id bigint generated always as identity primary key,
    user_id bigint not null references users on delete cascade,
    name text not null
);

create table api_keys (
    id bigint generated always as identity primary key,
    -- SHA-256 in hexadecimal.
    key_hash text not null unique,
    user_id bigint not null references users on delete cascade,
    name text,
    created_at timestamptz not null default now(),
    last_used timestamptz,
    is_active boolean not null default true
);

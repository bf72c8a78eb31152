-- Times are microseconds since the Unix epoch. `part` is the tenant's logical
-- partition, and first in every key and join of the hot tables, so that each of
-- their statements can be sent to one shard.

-- The store's clock. Stable: one value for a statement.
create function now_us() returns bigint language sql stable parallel safe
as $$ select (extract(epoch from statement_timestamp()) * 1000000)::bigint $$;

create function today() returns integer language sql stable parallel safe
as $$ select (now_us() / 86400000000)::integer $$;

-- Configuration ---------------------------------------------------------------

create table config_rev (
  one boolean primary key default true check (one),
  rev bigint not null
);
insert into config_rev (rev) values (1);

create table tombstones (
  id uuid primary key,
  rev bigint not null,
  at bigint not null
);

create table sealed_keys (
  purpose text not null,
  version integer not null,
  sealed bytea not null,
  primary key (purpose, version)
);

create table tenants (
  id uuid primary key,
  name text not null constraint tenants_name unique,
  display_name text not null,
  created_at bigint not null,
  rev bigint not null
);

-- Counts the changes of a tenant's subscriptions.
create table tenant_rev (
  tenant uuid primary key,
  rev bigint not null,
  config_rev bigint not null
);

create table keys (
  id uuid primary key,
  tenant uuid,
  kind smallint not null,
  doc text not null,
  status smallint not null,
  pepper integer not null,
  digest bytea not null,
  previous_pepper integer not null,
  previous_digest bytea not null,
  previous_until bigint not null,
  updated_at bigint not null,
  rev bigint not null
);
create index keys_rev on keys (rev);
create index keys_tenant on keys (tenant, id);

create table key_use (
  id uuid primary key,
  last_used bigint not null,
  new_secret_first_used bigint not null
);

create table subscriptions (
  id uuid primary key,
  tenant uuid not null,
  doc text not null,
  secret bytea not null,
  previous_secret bytea not null,
  previous_until bigint not null,
  updated_at bigint not null,
  rev bigint not null
);
create index subscriptions_tenant on subscriptions (tenant, id);

create table switches (
  name text primary key,
  enabled boolean not null,
  rev bigint not null
);

-- Nodes -------------------------------------------------------------------------

create table nodes (
  sid bigint generated always as identity primary key,
  name text not null,
  expires_at bigint not null
);

create table part_owner (
  part smallint primary key,
  sid bigint not null,
  epoch bigint not null,
  held bigint not null,
  held_since bigint not null
);
insert into part_owner select n, 0, 0, 0, 0 from generate_series(0, 63) n;

-- The queue ---------------------------------------------------------------------

-- Only what is not finished. No index on the lease: it would cost each delivery
-- two writes, and is asked for only when a session has ended. Rows are deleted at the rate at which they are
-- inserted: vacuum often, and leave room for updates in place.
create table queue (
  part smallint not null,
  id uuid not null,
  tenant uuid not null,
  sub uuid not null,
  event uuid not null,
  event_day integer not null,
  due_at bigint not null,
  dead_at bigint not null,
  age_from bigint not null,
  lease_sid bigint not null,
  token integer not null,
  state smallint not null,
  attempts smallint not null,
  replays smallint not null,
  by_hand boolean not null,
  status smallint not null,
  reason text not null,
  primary key (part, id)
) with (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02,
        autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
create index queue_due on queue (part, sub, due_at) where lease_sid = 0;
create index queue_dead on queue (part, dead_at) where dead_at > 0;

create table dead (
  part smallint not null,
  id uuid not null,
  tenant uuid not null,
  sub uuid not null,
  event uuid not null,
  event_day integer not null,
  dead_at bigint not null,
  age_from bigint not null,
  token integer not null,
  state smallint not null,
  attempts smallint not null,
  status smallint not null,
  reason text not null,
  primary key (part, id)
);
create index dead_sub on dead (part, sub, id);

create table kept_bodies (
  part smallint not null,
  event uuid not null,
  tenant uuid not null,
  type text not null,
  body bytea not null,
  primary key (part, event)
);

-- History, by day ------------------------------------------------------------------

create table events (
  part smallint not null,
  day integer not null,
  id uuid not null,
  tenant uuid not null,
  key uuid,
  type text not null,
  body bytea not null,
  primary key (part, id, day)
) partition by range (day);

create table done (
  part smallint not null,
  day integer not null,
  id uuid not null,
  tenant uuid not null,
  sub uuid not null,
  event uuid not null,
  finished_at bigint not null,
  took bigint not null,
  token integer not null,
  state smallint not null,
  attempts smallint not null,
  status smallint not null,
  reason text not null,
  worker text not null,
  response bytea not null,
  primary key (part, id, day)
) partition by range (day);
create index done_sub on done (part, sub, id);

create table attempts (
  part smallint not null,
  day integer not null,
  delivery uuid not null,
  token integer not null,
  number smallint not null,
  started_at bigint not null,
  took bigint not null,
  kind smallint not null,
  status smallint not null,
  error text not null,
  worker text not null,
  response bytea not null,
  primary key (part, delivery, token, day)
) partition by range (day);

-- `bucket` follows from the key alone, so that keys can be unique: 1 to 8 in turn
-- by the day of a UUIDv7, 0 for any other key. A bucket is emptied at once when
-- its days are over.
create table idempotency (
  part smallint not null,
  bucket smallint not null,
  tenant uuid not null,
  key_hash uuid not null,
  content_hash uuid not null,
  event uuid not null,
  deliveries integer not null,
  at bigint not null,
  primary key (part, tenant, key_hash, bucket)
) partition by list (bucket);
do $$ begin
  for n in 0..8 loop
    execute format('create table idempotency_%s partition of idempotency for values in (%s)', n, n);
  end loop;
end $$;
create index idempotency_0_at on idempotency_0 (at);

create table usage (
  tenant uuid not null,
  day integer not null,
  sid bigint not null,
  events bigint not null,
  bytes bigint not null,
  primary key (tenant, day, sid)
);

-- A day's partitions. Made apart and attached: `create … partition of` would
-- lock every reader out.
create procedure prepare_day(d integer) language plpgsql as $$
declare
  parent text;
  child text;
begin
  foreach parent in array array['events', 'done', 'attempts'] loop
    child := parent || '_' || d;
    if to_regclass(child) is null then
      execute format('create table %I (like %I including defaults including constraints)', child, parent);
      execute format('alter table %I attach partition %I for values from (%s) to (%s)',
                     parent, child, d, d + 1);
    end if;
  end loop;
end $$;

insert into tenants (id, name, display_name, created_at, rev)
values ('00000000-0000-7000-8000-000000000000', 'default', 'Default', now_us(), 1);
insert into tenant_rev values ('00000000-0000-7000-8000-000000000000', 1, 1);

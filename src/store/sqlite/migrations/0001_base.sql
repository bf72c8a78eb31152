-- Times are microseconds since the Unix epoch, ids are UUIDs in 16 bytes. Tables
-- that are read and written by their key alone are kept in its order, without a
-- second tree for a row number; events are not, because their bodies are long.

-- Configuration ---------------------------------------------------------------

create table config_rev (
  one integer primary key default 1 check (one = 1),
  rev integer not null
);
insert into config_rev (rev) values (1);

create table tombstones (
  id blob primary key,
  rev integer not null,
  at integer not null
) without rowid;

create table sealed_keys (
  purpose text not null,
  version integer not null,
  sealed blob not null,
  primary key (purpose, version)
) without rowid;

create table tenants (
  id blob primary key,
  name text not null unique,
  display_name text not null,
  created_at integer not null,
  rev integer not null
) without rowid;

-- Counts the changes of a tenant's subscriptions.
create table tenant_rev (
  tenant blob primary key,
  rev integer not null,
  config_rev integer not null
) without rowid;
create index tenant_rev_config on tenant_rev (config_rev);

create table keys (
  id blob primary key not null,
  tenant blob,
  kind integer not null,
  doc text not null,
  status integer not null,
  pepper integer not null,
  digest blob not null,
  previous_pepper integer not null,
  previous_digest blob not null,
  previous_until integer not null,
  updated_at integer not null,
  rev integer not null
);
create index keys_rev on keys (rev);
create index keys_tenant on keys (tenant, id);

create table key_use (
  id blob primary key,
  last_used integer not null,
  new_secret_first_used integer not null
) without rowid;

create table subscriptions (
  id blob primary key not null,
  tenant blob not null,
  doc text not null,
  secret blob not null,
  previous_secret blob not null,
  previous_until integer not null,
  updated_at integer not null,
  rev integer not null
);
create index subscriptions_tenant on subscriptions (tenant, id);

create table switches (
  name text primary key,
  enabled integer not null,
  rev integer not null
) without rowid;

-- Nodes -------------------------------------------------------------------------

-- `autoincrement`: a session's number is never used again.
create table nodes (
  sid integer primary key autoincrement,
  name text not null,
  expires_at integer not null
);

create table part_owner (
  part integer primary key,
  sid integer not null,
  epoch integer not null,
  held integer not null,
  held_since integer not null
);
with recursive n(part) as (select 0 union all select part + 1 from n where part < 63)
insert into part_owner select part, 0, 0, 0, 0 from n;

-- The queue ---------------------------------------------------------------------

-- Only what is not finished.
create table queue (
  part integer not null,
  id blob not null,
  tenant blob not null,
  sub blob not null,
  event blob not null,
  event_day integer not null,
  due_at integer not null,
  dead_at integer not null,
  age_from integer not null,
  lease_sid integer not null,
  token integer not null,
  state integer not null,
  attempts integer not null,
  replays integer not null,
  by_hand integer not null,
  status integer not null,
  reason text not null,
  primary key (part, id)
) without rowid;
create index queue_due on queue (part, sub, due_at) where lease_sid = 0;
create index queue_leased on queue (part, lease_sid) where lease_sid <> 0;
create index queue_dead on queue (part, dead_at) where dead_at > 0;

create table dead (
  part integer not null,
  id blob not null,
  tenant blob not null,
  sub blob not null,
  event blob not null,
  event_day integer not null,
  dead_at integer not null,
  age_from integer not null,
  token integer not null,
  state integer not null,
  attempts integer not null,
  status integer not null,
  reason text not null,
  primary key (part, id)
) without rowid;
create index dead_sub on dead (part, sub, id);

create table kept_bodies (
  part integer not null,
  event blob not null,
  tenant blob not null,
  type text not null,
  body blob not null,
  primary key (part, event)
);

-- History -----------------------------------------------------------------------

-- The indexes over `day` grow at their end only, and let an old day go in slices.
create table events (
  part integer not null,
  day integer not null,
  id blob not null,
  tenant blob not null,
  key blob,
  type text not null,
  body blob not null,
  primary key (part, id, day)
);
create index events_day on events (day);

create table done (
  part integer not null,
  day integer not null,
  id blob not null,
  tenant blob not null,
  sub blob not null,
  event blob not null,
  finished_at integer not null,
  took integer not null,
  token integer not null,
  state integer not null,
  attempts integer not null,
  status integer not null,
  reason text not null,
  worker text not null,
  response blob not null,
  primary key (part, id, day)
);
create index done_sub on done (part, sub, id);
create index done_day on done (day);

create table attempts (
  part integer not null,
  day integer not null,
  delivery blob not null,
  token integer not null,
  number integer not null,
  started_at integer not null,
  took integer not null,
  kind integer not null,
  status integer not null,
  error text not null,
  worker text not null,
  response blob not null,
  primary key (part, delivery, token, day)
);
create index attempts_day on attempts (day);

-- Swept by age, whatever the key's day: the window counts.
create table idempotency (
  part integer not null,
  day integer not null,
  tenant blob not null,
  key_hash blob not null,
  content_hash blob not null,
  event blob not null,
  deliveries integer not null,
  at integer not null,
  primary key (part, tenant, key_hash, day)
) without rowid;
create index idempotency_at on idempotency (at);

create table usage (
  tenant blob not null,
  day integer not null,
  sid integer not null,
  events integer not null,
  bytes integer not null,
  primary key (tenant, day, sid)
) without rowid;

insert into tenants (id, name, display_name, created_at, rev)
values (x'00000000000070008000000000000000', 'default', 'Default',
        cast(unixepoch('subsec') * 1000000 as integer), 1);
insert into tenant_rev values (x'00000000000070008000000000000000', 1, 1);

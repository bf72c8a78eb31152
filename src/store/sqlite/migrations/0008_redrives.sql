-- Selections of dead letters, or of past events, that the owner of the tenant's
-- partition works at a rate. `position` and what it did with the rows below it are
-- written in one transaction.
create table redrives (
  part integer not null,
  id blob not null,
  tenant blob not null,
  kind integer not null,
  state integer not null,
  selection text not null,
  rate integer not null,
  total integer,
  done integer not null,
  skipped integer not null,
  position blob not null,
  until blob not null,
  credit integer not null,
  credited_at integer not null,
  created_at integer not null,
  created_by text not null,
  reason text not null,
  finished_at integer not null,
  note text not null,
  primary key (part, id)
) without rowid;
create index redrives_running on redrives (part, id) where state = 1;

-- Deliveries that a replay made. A row apart: the others pay nothing for it.
create table replayed (
  part integer not null,
  id blob not null,
  redrive blob not null,
  primary key (part, id)
) without rowid;

-- A tenant's dead letters, newest first, beside those of others in its partition.
create index dead_tenant on dead (part, tenant, id);

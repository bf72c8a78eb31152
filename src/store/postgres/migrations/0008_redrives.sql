-- Selections of dead letters, or of past events, that the owner of the tenant's
-- partition works at a rate. `position` and what it did with the rows below it are
-- written in one transaction.
create table redrives (
  part smallint not null,
  id uuid not null,
  tenant uuid not null,
  kind smallint not null,
  state smallint not null,
  selection text not null,
  rate integer not null,
  total bigint,
  done bigint not null,
  skipped bigint not null,
  position uuid not null,
  until uuid not null,
  credit bigint not null,
  credited_at bigint not null,
  created_at bigint not null,
  created_by text not null,
  reason text not null,
  finished_at bigint not null,
  note text not null,
  primary key (part, id)
);
create index redrives_running on redrives (part, id) where state = 1;

-- Deliveries that a replay made. A row apart: the others pay nothing for it.
create table replayed (
  part smallint not null,
  id uuid not null,
  redrive uuid not null,
  primary key (part, id)
);

-- A tenant's dead letters, newest first, beside those of others in its partition.
create index dead_tenant on dead (part, tenant, id);

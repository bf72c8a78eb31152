-- Event types that are registered, with the JSON Schema that payloads must fit.
create table event_types (
  id blob primary key,
  tenant blob not null,
  name text not null,
  description text not null,
  schema text,
  updated_at integer not null,
  rev integer not null,
  unique (tenant, name)
) without rowid;
create index event_types_rev on event_types (rev);

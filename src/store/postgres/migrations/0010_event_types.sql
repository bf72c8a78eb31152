-- Event types that are registered, with the JSON Schema that payloads must fit.
create table event_types (
  id uuid primary key,
  tenant uuid not null,
  name text not null,
  description text not null,
  schema text,
  updated_at bigint not null,
  rev bigint not null,
  constraint event_types_name unique (tenant, name)
);
create index event_types_rev on event_types (rev);

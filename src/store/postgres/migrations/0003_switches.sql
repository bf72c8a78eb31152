-- Switches that are changed while the server runs, which nodes follow, and the
-- log of what was changed.

alter table switches
  add column stopped boolean not null default false,
  add column updated_at bigint not null default 0,
  add column updated_by text not null default '',
  add column reason text not null default '';

-- The last revision that a node has in force, and the switches that its
-- environment pins, with commas between them.
alter table nodes
  add column seen_rev bigint not null default 0,
  add column pins text not null default '';

create table audit (
  seq bigint primary key,
  at bigint not null,
  actor text not null,
  action text not null,
  target text not null,
  old text not null,
  new text not null,
  reason text not null,
  hash bytea not null
);
create index audit_target on audit (target, seq);

-- Which record is the last one.
create table audit_head (
  one boolean primary key default true check (one),
  seq bigint not null,
  mac bytea not null
);

-- Against mistakes; against whoever drops them there are the hashes.
create function audit_is_append_only() returns trigger language plpgsql
as $$ begin raise exception 'the audit log is append-only'; end $$;
create trigger audit_rows before update or delete on audit
  for each row execute function audit_is_append_only();
create trigger audit_all before truncate on audit
  for each statement execute function audit_is_append_only();

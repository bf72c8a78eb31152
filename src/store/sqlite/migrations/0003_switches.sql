-- Switches that are changed while the server runs, which nodes follow, and the
-- log of what was changed.

alter table switches add column stopped integer not null default 0;
alter table switches add column updated_at integer not null default 0;
alter table switches add column updated_by text not null default '';
alter table switches add column reason text not null default '';

-- The last revision that a node has in force, and the switches that its
-- environment pins, with commas between them.
alter table nodes add column seen_rev integer not null default 0;
alter table nodes add column pins text not null default '';

create table audit (
  seq integer primary key,
  at integer not null,
  actor text not null,
  action text not null,
  target text not null,
  old text not null,
  new text not null,
  reason text not null,
  hash blob not null
);
create index audit_target on audit (target, seq);

-- Which record is the last one.
create table audit_head (
  one integer primary key default 1 check (one = 1),
  seq integer not null,
  mac blob not null
);

-- Against mistakes; against whoever drops them there are the hashes.
create trigger audit_update before update on audit
begin select raise(abort, 'the audit log is append-only'); end;
create trigger audit_delete before delete on audit
begin select raise(abort, 'the audit log is append-only'); end;
